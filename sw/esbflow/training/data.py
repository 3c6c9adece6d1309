"""Image data sets in their usual layouts: from ESBFLOW_DATA, or by canonical download with checksums."""

import gzip
import hashlib
import os
import struct
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esbflow.errors import BadValue, UserError, reason
from esbflow.files import write_whole
from esbflow.suggest import no_such

MNIST_FILES = {
    ("train", "images"): ("train-images-idx3-ubyte", "6bbc9ace898e44ae57da46a324031adb"),
    ("train", "labels"): ("train-labels-idx1-ubyte", "a25bea736e30d166cdddb491f175f624"),
    ("test", "images"): ("t10k-images-idx3-ubyte", "2646ac647ad5339dbf082846283269ea"),
    ("test", "labels"): ("t10k-labels-idx1-ubyte", "27ae3e4e09519cfbb04c329615203637"),
}
"""File names and MD5 sums of the unpacked files."""
MNIST_SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
"""The mirror that torchvision uses."""
DATA_SETS = ("mnist", "digits", "cifar10", "imagenet-folder")
CIFAR_RECORD = 1 + 3 * 32 * 32


class DataUnavailable(UserError, RuntimeError):
    """A data set is not at hand; the text says where it was looked for and what to do."""


class LabelledImages(NamedTuple):
    """Images (n, c, h, w), and what they show: labels (n,), or masks (n, 1, h, w)."""

    images: np.ndarray
    labels: np.ndarray


def load_images(data: str, split: str, count: int | None = None) -> LabelledImages:
    """The first `count` images of a data set: (uint8 (n, c, h, w), int64 (n,)).

    Parameters
    ----------
    data : "mnist", "cifar10", "digits" (scikit-learn's 8x8 digits, 1,437 to train and 360 to test), or "imagenet-folder"
        (`folders.imagenet_folder`).
    split : "train" or "test".

    Raises
    ------
    ValueError
        for an unknown data set or split, or a count below 1.
    DataUnavailable
        if the files are neither under ESBFLOW_DATA nor to be downloaded.
    """
    if data not in DATA_SETS:
        raise BadValue(no_such("data set", data, DATA_SETS))
    if split not in ("train", "test"):
        raise BadValue(f"split must be train or test, not {split!r}")
    if count is not None and count < 1:
        raise BadValue(f"the number of images must be at least 1, not {count}")
    if data == "imagenet-folder":
        from esbflow.training.folders import imagenet_folder  # here: it uses this module

        return imagenet_folder(split, count)
    images, labels = {"mnist": _mnist, "digits": _digits, "cifar10": _cifar10}[data](split)
    return LabelledImages(images[:count], labels[:count])


def data_folder() -> Path | None:
    """The folder that ESBFLOW_DATA names, if it is set."""
    folder = os.environ.get("ESBFLOW_DATA")
    return Path(folder) if folder else None


def cache_folder() -> Path:
    """Where downloads are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "esbflow"


# -- MNIST ------------------------------------------------------------------------------------------------------
def _mnist(split: str) -> tuple:
    images = _read_idx(_mnist_file(split, "images"))
    labels = _read_idx(_mnist_file(split, "labels"))
    return images[:, None], labels.astype(np.int64)


def _mnist_file(split: str, what: str) -> bytes:
    name, digest = MNIST_FILES[split, what]
    folders = [folder / "MNIST" / "raw" for folder in (data_folder(), cache_folder()) if folder]
    for folder in folders:
        for path in (folder / name, folder / (name + ".gz")):
            if path.exists():
                return _checked(_unpacked(path.read_bytes(), path), digest, path)
    return _download(name, digest, cache_folder() / "MNIST" / "raw")


def _unpacked(content: bytes, path) -> bytes:
    if not str(path).endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataUnavailable(f"{path} is damaged ({reason(error)}); remove it and try again") from None


def _checked(content: bytes, digest: str, path) -> bytes:
    if hashlib.md5(content).hexdigest() != digest:
        raise DataUnavailable(f"{path} is damaged: its MD5 sum is not {digest}; remove it and try again")
    return content


def _download(name: str, digest: str, folder: Path) -> bytes:
    url = MNIST_SOURCE + name + ".gz"
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            content = read_with_progress(response, name)
    except (urllib.error.URLError, OSError) as error:
        where = data_folder()
        raise DataUnavailable(
            f"MNIST is not under {where / 'MNIST' / 'raw' if where else 'ESBFLOW_DATA (not set)'} and cannot be downloaded "
            f"({error}); set ESBFLOW_DATA to a folder that holds MNIST/raw") from None
    content = _checked(_unpacked(content, name + ".gz"), digest, url)
    write_whole(folder / name, content)
    return content


def read_with_progress(response, name: str) -> bytes:
    """What a URL's response holds, with a progress bar of that name."""
    from rich.progress import Progress  # here: boards have no rich

    total = int(response.headers.get("Content-Length") or 0) or None
    parts = []
    with Progress(transient=True) as progress:
        task = progress.add_task(f"download {name}", total=total)
        while part := response.read(1 << 16):
            parts.append(part)
            progress.update(task, advance=len(part))
    return b"".join(parts)


def _read_idx(content: bytes) -> np.ndarray:
    """An idx file: two zero bytes, type, number of axes, big-endian sizes, data."""
    _, kind, axes = struct.unpack(">HBB", content[:4].ljust(4, b"\0"))
    sizes = struct.unpack(f">{axes}I", content[4:4 + 4 * axes].ljust(4 * axes, b"\0"))
    if kind != 8 or len(content) != 4 + 4 * axes + int(np.prod(sizes)):
        raise DataUnavailable("an idx file is damaged: its size does not fit its header; remove it and try again")
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes).reshape(sizes)


# -- the others --------------------------------------------------------------------------------------------------
def _digits(split: str) -> tuple:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataUnavailable("the 8x8 digits come with scikit-learn; install esbflow[train]") from None
    bunch = load_digits()
    images = np.minimum(bunch.images * 16, 255).astype(np.uint8)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[:1437] if split == "train" else order[1437:]
    return images[chosen], bunch.target[chosen].astype(np.int64)


def _cifar10(split: str) -> tuple:
    from esbflow.training.folders import cifar10_folder  # here: it uses this module

    folder = cifar10_folder()
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    records = []
    for name in names:
        path = folder / name
        content = np.fromfile(path, dtype=np.uint8) if path.exists() else np.zeros(0, np.uint8)
        if content.size != 10_000 * CIFAR_RECORD:
            raise DataUnavailable(f"{path} is missing or damaged: it should have {10_000 * CIFAR_RECORD} bytes")
        records.append(content.reshape(-1, CIFAR_RECORD))
    records = np.concatenate(records)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
