"""Sentences with labels: from ESBFLOW_DATA, split into words or characters, as rows of vocabulary numbers.

IMDB: Maas et al., "Learning Word Vectors for Sentiment Analysis", ACL 2011. THUCNews titles: Sun et al., "THUCTC: An
Efficient Chinese Text Classifier", 2016, in the form of the repository Chinese-Text-Classification-Pytorch. Files are
UTF-8 lines of fields split by tabs; docs/text.md says which.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from esbflow.errors import BadValue
from esbflow.suggest import no_such
from esbflow.training.data import DataUnavailable, data_folder

PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def words(text: str) -> list:
    """Lower-case words and numbers.

    >>> words("It's <br />a 10!")
    ["it's", 'a', '10']
    """
    return _WORD.findall(text.lower().replace("<br />", " "))


def characters(text: str) -> list:
    """Lower-case characters without white space: Chinese has no spaces between words.

    >>> characters("A股 2")
    ['a', '股', '2']
    """
    return list("".join(text.lower().split()))


@dataclass(frozen=True)
class TextSource:
    """Where a data set lies. `fields` is how many a line has; `named` the first field of its lines, if the file holds
    several sets; `splits` what the file calls train and test."""

    file: str
    fields: int
    named: str | None
    splits: dict
    classes: int
    tokens: Callable


TEXTS = {
    "imdb": TextSource("imdb.tsv", 4, None, {"train": "train", "test": "test"}, 2, words),
    # The 180,000 training titles are not in the file: the published dev part trains.
    "thucnews": TextSource("text_small.tsv", 4, "thucnews", {"train": "dev", "test": "test"}, 10, characters),
}


def text_source(name: str) -> TextSource:
    """The entry of a name.

    Raises
    ------
    ValueError
        for an unknown name, listing the known ones.
    """
    if name not in TEXTS:
        raise BadValue(no_such("text data set", name, TEXTS))
    return TEXTS[name]


class Texts(NamedTuple):
    """A list of tokens for each text, and int64 labels (n,)."""

    sentences: list[list[str]]
    labels: np.ndarray


def load_text(name: str, split: str) -> Texts:
    """(list of n token lists, labels int64 (n,)), in the order of the file.

    A text without any token is an empty list, not an error.

    Raises
    ------
    ValueError
        for an unknown data set or split.
    DataUnavailable
        if the file is not under ESBFLOW_DATA, has no lines of that split, or is damaged, naming the line.
    """
    source = text_source(name)
    if split not in source.splits:
        raise BadValue(f"split must be train or test, not {split!r}")
    folder = data_folder()
    path = folder / source.file if folder else None
    if path is None or not path.exists():
        raise DataUnavailable(f"the texts {name} are not at {path or f'ESBFLOW_DATA (not set)/{source.file}'}; docs/text.md "
                              "says what that file holds")
    sentences, labels = [], []
    # Only a line feed ends a line: reviews hold other characters that str.splitlines() takes for ends.
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        if not raw:
            continue
        try:
            part, label, text = _fields(raw, source)
        except ValueError as error:
            raise DataUnavailable(f"{path} is damaged: line {number} {error}; remove it and make it again") from None
        if part == source.splits[split]:
            sentences.append(source.tokens(text))
            labels.append(label)
    if not sentences:
        raise DataUnavailable(f"{path} holds no lines of {name}, {source.splits[split]}")
    return Texts(sentences, np.array(labels, dtype=np.int64))


def _fields(raw: bytes, source: TextSource) -> tuple:
    """(split, label, text) of a line; split is None for a line of another data set. ValueError says what is wrong."""
    try:
        fields = raw.decode("utf-8").rstrip("\r").split("\t")
    except UnicodeDecodeError:
        raise BadValue("is not UTF-8") from None
    if len(fields) != source.fields:
        raise BadValue(f"has {len(fields)} fields, not {source.fields}")
    if source.named is None:
        part, label = fields[:2]
    elif fields[0] != source.named:
        return None, 0, ""
    else:
        part, label = fields[1:3]
    if not (label.isascii() and label.isdigit() and int(label) < source.classes):
        raise BadValue(f"has label {label!r}, not 0 to {source.classes - 1}")
    return part, int(label), fields[-1]


@dataclass(frozen=True)
class Vocabulary:
    """`entries` in order; entry i has number i + 2. Number 0 pads, 1 stands for everything else."""

    entries: tuple

    @classmethod
    def of(cls, sentences: list, size: int) -> "Vocabulary":
        """The most frequent tokens of the training part; of equally frequent ones, the first in the order of their text.

        `size` counts padding and unknown.

        Raises
        ------
        ValueError
            if the size leaves no room, or there are no tokens.
        """
        if size < 3:
            raise BadValue(f"a vocabulary has at least 3 entries, padding and unknown among them, not {size}")
        counts = Counter(token for sentence in sentences for token in sentence)
        if not counts:
            raise BadValue("there are no tokens to make a vocabulary of")
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        return cls(tuple(ranked[:size - 2]))

    def __len__(self) -> int:
        return len(self.entries) + 2

    def numbers(self, sentences: list, length: int) -> np.ndarray:
        """int32 (n, length): longer sentences are cut, shorter ones padded at the end.

        Raises
        ------
        ValueError
            for a length below 1.
        """
        if length < 1:
            raise BadValue(f"the length of sentences must be at least 1, not {length}")
        known = {token: i for i, token in enumerate(self.entries, 2)}
        rows = np.full((len(sentences), length), PAD, dtype=np.int32)
        for row, sentence in zip(rows, sentences):
            found = [known.get(token, UNKNOWN) for token in sentence[:length]]
            row[:len(found)] = found
        return rows
