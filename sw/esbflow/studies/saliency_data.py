"""Pictures with masks of their salient objects, in two folders, as ECSSD and its relatives are kept."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from esbflow.errors import BadValue, reason
from esbflow.training import data
from esbflow.training.data import DataUnavailable
from esbflow.training.folders import SUFFIXES

PICTURES, MASKS = ("images", "Imgs", "Image"), ("masks", "ground_truth_mask", "GT", "Mask", "Imgs")
"""Names that the two folders have in ECSSD, DUTS, MSRA10K and their copies; both may be one folder."""
SIZE = 96
TEST_EVERY = 5


class Pictures(NamedTuple):
    """uint8 images (n, 3, size, size), and masks (n, 1, size, size) of what stands out in them, 0 or 255."""

    images: np.ndarray
    masks: np.ndarray


def load_saliency(split: str, count: int | None = None, size: int = SIZE) -> Pictures:
    """ECSSD, or what else stands in ESBFLOW_DATA/ecssd: (uint8 (n, 3, size, size), uint8 masks (n, 1, size, size)).

    Masks are 0 or 255. The data set was published to test with and has no split (Shi et al., TPAMI 2016): by the order of
    their names every fifth picture is tested on, the others are trained on.

    Raises
    ------
    ValueError
        for an unknown split, or a count below 1.
    DataUnavailable
        if the pictures are not there, one has no mask, or one is damaged.
    """
    if split not in ("train", "test"):
        raise BadValue(f"split must be train or test, not {split!r}")
    if count is not None and count < 1:
        raise BadValue(f"the number of pictures must be at least 1, not {count}")
    base = data.data_folder()
    if base is None or not (base / "ecssd").is_dir():
        raise DataUnavailable("ECSSD's pictures are not at hand; set ESBFLOW_DATA to a folder that holds ecssd/images and "
                              "ecssd/masks")
    pairs = list_pairs(base / "ecssd")
    chosen = [pair for i, pair in enumerate(pairs) if (i % TEST_EVERY == TEST_EVERY - 1) == (split == "test")][:count]
    if not chosen:
        raise DataUnavailable(f"{base / 'ecssd'} holds {len(pairs)} pictures, too few to have one to {split} with")
    return load_pairs(chosen, size)


def list_pairs(folder: str | Path) -> list:
    """[(picture, mask), ...] of a folder, by name; the two have the same name but for the suffix.

    Raises
    ------
    DataUnavailable
        if there are no pictures, or one has no mask, naming it.
    """
    folder = Path(folder)
    places = [next((folder / name for name in names if (folder / name).is_dir()), None) for names in (PICTURES, MASKS)]
    if None in places:
        raise DataUnavailable(f"{folder} needs two folders, images and masks, with pictures of the same names")
    masks = {path.stem: path for path in places[1].iterdir() if path.suffix.lower() == ".png"}
    pictures = sorted(path for path in places[0].iterdir() if path.suffix.lower() in SUFFIXES
                      and not (places[0] == places[1] and path.suffix.lower() == ".png"))
    if not pictures:
        raise DataUnavailable(f"{places[0]} holds no pictures ({', '.join(SUFFIXES)})")
    for path in pictures:
        if path.stem not in masks:
            raise DataUnavailable(f"{path} has no mask {places[1] / path.stem}.png")
    return [(path, masks[path.stem]) for path in pictures]


def load_pairs(pairs: list, size: int = SIZE) -> Pictures:
    """Read (picture, mask) files and scale them to size x size, whatever their shape, as saliency networks are fed.

    Raises
    ------
    DataUnavailable
        if a file is no picture, naming it, or pillow is not installed.
    """
    try:
        from PIL import Image  # here: pillow comes with the train extra
    except ImportError:
        raise DataUnavailable("pictures need pillow; install esbflow[train]") from None
    images, masks = np.empty((len(pairs), 3, size, size), np.uint8), np.empty((len(pairs), 1, size, size), np.uint8)
    for i, pair in enumerate(pairs):
        for path, mode in zip(pair, ("RGB", "L")):
            try:
                with Image.open(path) as file:
                    picture = file.convert(mode)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataUnavailable(f"{path} is no picture, or damaged ({reason(error)}); remove it and try "
                                      "again") from None
            if picture.size != (size, size):
                picture = picture.resize((size, size))
            if mode == "RGB":
                images[i] = np.asarray(picture).transpose(2, 0, 1)
            else:
                masks[i] = np.where(np.asarray(picture) >= 128, 255, 0)
    return Pictures(images, masks)
