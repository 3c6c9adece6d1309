"""Images in the engine's memory: as raw pixels, for programs whose first layer's map the load unit makes (docs/engine.md),
or as that map, which the host makes else.
"""

import numpy as np

from esbflow.engine_facts import LEVEL_ROWS, STEP_COUNT, STEP_SHIFT
from esbflow.runtime.layout import encode_images, fold_windows, pack, space_of

BEAT_BYTES = 16


def write_lines(array: np.ndarray, images: np.ndarray, raw: dict) -> None:
    """Copy uint8 images to the beginning of an input region: each row of a channel, or each row with its channels side by
    side, becomes a line of raw["pitch"] bytes.

    images : (n, c, h, w), or (n, h, w, c) with raw["channels_last"]. What fills up lines is left as it is.
    """
    n = len(images)
    rows = images.reshape(n, -1, images.shape[2] * images.shape[3]) if raw["channels_last"] else images.reshape(
        n, -1, images.shape[3])
    lines = array[:n * rows.shape[1] * raw["pitch"]].reshape(n, rows.shape[1], raw["pitch"])
    lines[:, :, :rows.shape[2]] = rows


def table_rows(table: np.ndarray, raw: dict) -> np.ndarray:
    """The bytes that stand behind the images, uint8: for each table a beat for each four of its entries, and a step of
    UNFOLD beside it.

    table : int64 (channels, 256), levels of at most 8 bits.
    """
    beats = np.zeros((raw["tables"], STEP_COUNT, BEAT_BYTES), dtype=np.uint8)
    beats[:, :, :256 // LEVEL_ROWS] = (table[:raw["tables"]] & 255).astype(np.uint8).reshape(raw["tables"], LEVEL_ROWS, -1)
    steps = np.zeros(STEP_COUNT, dtype="<u8")
    steps[:len(raw["steps"])] = raw["steps"]
    beats[:, :, STEP_SHIFT // 8:] = steps.view(np.uint8).reshape(STEP_COUNT, -1)
    return beats.reshape(-1)


def folded_input(program, images: np.ndarray) -> np.ndarray:
    """What the host makes of uint8 images (n, c, h, w), or (n, h, w, c) as the program says, for one whose load unit does
    not: the bytes of the first layer's map."""
    config, meta = program.config, program.meta["input"]
    if meta.get("channels_last"):
        images = np.moveaxis(images, 3, 1)
    codes = fold_windows(encode_images(images, program.table), meta)
    return pack(codes, config.rows, meta["digits"], meta["pitch"], config.digit_bits, space_of(meta))
