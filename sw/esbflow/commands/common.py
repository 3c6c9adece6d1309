"""What the commands share: options, loading, tables and progress."""

import argparse
import json
import sys
from contextlib import contextmanager

import numpy as np

from esbflow.commands.model_files import other_tools
from esbflow.engine_config import EngineConfig
from esbflow.engines import DEFAULT_ENGINE, engine
from esbflow.errors import UserError, reason

CHANNELS_LAST_HELP = "images are (n, h, w, c), which an engine folds faster"
JSON_HELP = "print one JSON object instead of a table"


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def above_zero(text: str) -> float:
    """An argparse type: a number of at least 0.001, as exact as that."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 0.001 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0.001 and finite, not {text}")
    return value


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add --engine."""
    parser.add_argument("--engine", default=DEFAULT_ENGINE, metavar="NAME",
                        help=f"a name or the path of an engine.json (default {DEFAULT_ENGINE})")


def add_own_network(parser: argparse.ArgumentParser) -> None:
    """Add --network, for models whose network is no name of the registry."""
    parser.add_argument("--network", metavar="MODULE:FACTORY",
                        help="what makes the network, where the model is one of your own; it is imported")


def engine_of(arguments) -> EngineConfig:
    """The configuration that --engine names; raises ValueError for an unknown name or a bad file."""
    return engine(arguments.engine or DEFAULT_ENGINE)


def load_graph(path):
    """The integer graph of a file, or of a model of the zoo (zoo:NAME)."""
    from esbflow import zoo
    from esbflow.graph.file import load

    way = other_tools(path, (".npz",))
    if way:
        raise UserError(way)
    return load(zoo.resolve(path))


def load_data(name: str, count: int | None):
    """(uint8 images, labels or None): a data set's test images, or an .npz with `images` and perhaps `labels`."""
    if not str(name).endswith(".npz"):
        from esbflow.training.data import load_images

        if str(name).endswith((".npy", ".png", ".jpg", ".jpeg", ".csv")):
            raise UserError(f"{name} is no .npz; write one with np.savez(FILE, images=uint8 (n, channels, height, width), "
                            "labels=(n,))")
        return load_images(name, "test", count)
    try:
        with np.load(name, allow_pickle=False) as archive:
            if "images" not in archive.files:
                raise UserError(f"{name} has no array `images`; it has {', '.join(archive.files) or 'none'}")
            images = archive["images"]
            labels = archive["labels"] if "labels" in archive.files else None
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no data file {name}") from None
    except Exception as error:  # whatever NumPy raises on a damaged archive
        raise UserError(f"{name} is not a whole .npz with an array `images` ({reason(error)})") from None
    if images.ndim == 0 or len(images) == 0:
        raise UserError(f"{name} holds no images; `images` must be a uint8 array (n, channels, height, width)")
    if labels is not None and labels.shape != (len(images),):
        raise UserError(f"{name} holds {len(images)} images and {labels.size} labels; give one label an image, or none")
    return images[:count], None if labels is None else labels[:count]


def show(arguments, content: dict, table) -> None:
    """Print `content` as JSON, or what table(content) prints."""
    if arguments.json:
        json.dump(content, sys.stdout, indent=2)
        print()
    else:
        table(content)


def print_table(title: str, header: tuple, rows: list) -> None:
    """A table; with rich where it is installed, plain columns elsewhere (a board has no rich)."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for row in [header, *rows]:
            print("  ".join(str(cell) for cell in row))
        return
    console = Console()  # 80 columns wide, or COLUMNS, where there is no terminal
    texts = [[str(cell) for cell in row] for row in [header, *rows]]
    words, whole = ([max(len(part) for row in texts for part in (row[i].split(between) or [""])) for i in range(len(header))]
                    for between in (None, "\n"))
    for i, chosen in enumerate(_side_by_side(words, console.width)):
        table = Table(title=None if i else title, title_justify="left")
        for column, wide in zip(chosen, _widths(words, whole, chosen, console.width)):
            table.add_column(texts[0][column], justify="right" if column else "left", overflow="fold", width=wide)
        for row in texts[1:]:
            table.add_row(*(row[column] for column in chosen))
        console.print(table)


def _side_by_side(words: list, width: int) -> list:
    """The columns of each table that one is split into, so that no word need be cut where lines have `width` characters.
    The first column comes again in each.

    words : characters of each column's longest word.

    >>> _side_by_side([4, 5, 6], 22)
    [[0, 1], [0, 2]]
    """
    tables = [[0]]
    for column in range(1, len(words)):
        if len(tables[-1]) > 1 and _width(words, [*tables[-1], column]) > width:
            tables.append([0])
        tables[-1].append(column)
    return tables


def _widths(words: list, whole: list, columns: list, width: int) -> list:
    """Characters for each column: those of its longest word at least, and what is left to those that need least to hold a
    cell in one line. None, for all, where not even the words fit."""
    left, wide = width - _width(words, columns), {column: words[column] for column in columns}
    if left < 0:
        return [None] * len(columns)
    for column in sorted(columns, key=lambda column: whole[column] - words[column]):
        more = min(left, whole[column] - words[column])
        wide[column], left = wide[column] + more, left - more
    return list(wide.values())


def _width(words: list, columns: list) -> int:
    """Characters of a table's line, its borders included."""
    return 1 + sum(3 + words[column] for column in columns)


def say(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(title: str, total: int | None, quiet: bool):
    """Yields update(done) or update(done, total)."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, total=total: bar.update(task, completed=done, total=total)


def resources_of(config: EngineConfig, quiet: bool):
    """Synthesize an engine (cached), with progress."""
    from esbhw.synthesis import synthesize

    with progress_bar(f"synthesize {config.name}", None, quiet) as update:
        return synthesize(config, progress=update)
