"""Pictures in folders, one a class, as ImageNet is usually kept; and CIFAR-10's canonical archive."""

import hashlib
import io
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from esbflow.errors import reason
from esbflow.training import data
from esbflow.training.data import DataUnavailable, LabelledImages

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
CIFAR10_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_FOLDER = "cifar-10-batches-bin"
CIFAR10_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")


def load_folder(folder: str | Path, count: int | None = None, size: int = 224) -> LabelledImages:
    """Pictures of FOLDER/CLASS/*: (uint8 (n, 3, size, size), int64 (n,)).

    The class is the folder's name where all names are numbers, else its place among the names in order, which for
    WordNet ids is ImageNet's numbering. Pictures come in rounds, the first of every class, then the second, so that the
    first `count` are of many classes. A picture of another size is scaled until its short side is size * 256/224, and
    its middle is taken.

    Raises
    ------
    DataUnavailable
        if there are no pictures, one is damaged, or pillow is not installed.
    """
    try:
        from PIL import Image  # here: pillow comes with the train extra
    except ImportError:
        raise DataUnavailable("pictures need pillow; install esbflow[train]") from None
    chosen = list_folder(folder)[:count]
    images = np.empty((len(chosen), 3, size, size), np.uint8)
    for i, (path, _) in enumerate(chosen):
        try:
            with Image.open(path) as picture:
                images[i] = np.asarray(_cut(picture.convert("RGB"), size)).transpose(2, 0, 1)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataUnavailable(f"{path} is no picture, or damaged ({reason(error)}); remove it and try again") from None
    return LabelledImages(images, np.array([label for _, label in chosen], np.int64))


def list_folder(folder: str | Path) -> list:
    """[(path, class), ...] in the order in which `load_folder` reads them."""
    folder = Path(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    numbered = all(name.isdecimal() for name in names)
    found = []
    for place, name in enumerate(names):
        pictures = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES)
        found += [(turn, int(name) if numbered else place, path) for turn, path in enumerate(pictures)]
    if not found:
        raise DataUnavailable(f"{folder} holds no pictures in folders, one folder a class ({', '.join(SUFFIXES)})")
    return [(path, label) for _, label, path in sorted(found)]


def _cut(picture, size: int):
    """The middle size x size of a picture whose short side is size * 256/224, as ImageNet networks are evaluated."""
    if picture.size == (size, size):
        return picture
    side = round(size * 256 / 224)
    scale = side / min(picture.size)
    width, height = (max(side, round(length * scale)) for length in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.resize((width, height)).crop((left, top, left + size, top + size))


def imagenet_folder(split: str, count: int | None = None) -> LabelledImages:
    """ImageNet, or a few of its pictures: ESBFLOW_DATA/imagenet/train and val; to test, ESBFLOW_DATA/photos does too.

    Raises
    ------
    DataUnavailable
        if none of them is there.
    """
    base = data.data_folder()
    places = [] if base is None else [base / "imagenet" / ("train" if split == "train" else "val")]
    if base is not None and split == "test":
        places.append(base / "photos")
    for place in places:
        if place.is_dir():
            return load_folder(place, count)
    raise DataUnavailable("ImageNet's pictures are not at hand and cannot be downloaded without an account; set "
                          "ESBFLOW_DATA to a folder that holds imagenet/train and imagenet/val, each with one folder a "
                          "class")


def cifar10_folder() -> Path:
    """The folder with CIFAR-10's binary batches: under ESBFLOW_DATA, kept from an earlier download, or downloaded now.

    Raises
    ------
    DataUnavailable
        if it is neither there nor to be downloaded, or the archive is damaged.
    """
    kept = data.cache_folder() / CIFAR10_FOLDER
    for folder in (data.data_folder() and data.data_folder() / CIFAR10_FOLDER, kept):
        if folder and folder.is_dir():
            return folder
    try:
        with urllib.request.urlopen(CIFAR10_SOURCE, timeout=20) as response:
            content = data.read_with_progress(response, "CIFAR-10")
    except (urllib.error.URLError, OSError) as error:
        base = data.data_folder()
        raise DataUnavailable(
            f"CIFAR-10 is not under {base / CIFAR10_FOLDER if base else 'ESBFLOW_DATA (not set)'} and cannot be downloaded "
            f"({error}); set ESBFLOW_DATA to a folder that holds {CIFAR10_FOLDER}") from None
    if hashlib.md5(content).hexdigest() != CIFAR10_MD5:
        raise DataUnavailable(f"{CIFAR10_SOURCE} is damaged: its MD5 sum is not {CIFAR10_MD5}; try again")
    return _unpack(content, kept)


def _unpack(content: bytes, folder: Path) -> Path:
    """The six batches of the archive, in a folder that appears when it is whole."""
    temporary = folder.with_name(folder.name + ".part")
    temporary.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for name in CIFAR10_FILES:
                (temporary / name).write_bytes(archive.extractfile(f"{CIFAR10_FOLDER}/{name}").read())
    except (tarfile.TarError, AttributeError, KeyError, EOFError, zlib.error) as error:  # AttributeError: no plain file
        reason = str(error).split("\n")[0]
        raise DataUnavailable(f"{CIFAR10_SOURCE} is damaged ({reason}); try again") from None
    return temporary.replace(folder)
