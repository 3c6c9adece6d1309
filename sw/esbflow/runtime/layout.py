"""Between images or integers and the engine's memory: digits, `rows` channels a word, whole beats a row.

The order is (channel group, digit, image, row, column); of digits of 4 bits channel i of a group lies in bits 4i..4i+3 of a
word, low bytes first. See docs/engine.md.
"""

from typing import NamedTuple

import numpy as np

from esbflow.engine_config import EngineConfig


def encode_images(images: np.ndarray, table: np.ndarray) -> np.ndarray:
    """uint8 (n, c, h, w) -> the table's codes, int16 (n, c, h, w)."""
    table = table.astype(np.int16)
    return np.stack([table[c][images[:, c]] for c in range(images.shape[1])], axis=1)


def fold_windows(codes: np.ndarray, meta: dict) -> np.ndarray:
    """Lay columns and rows of windows out as channels, as meta["fold"] says; (n, c, h, w) -> (n, c', h', w')."""
    fold = meta["fold"]
    if fold is None:
        return codes
    n, c, height, width = codes.shape
    kx, sx, px, (dy, dx) = fold["kernel"][1], fold["stride"][1], fold["padding"][1], fold["dilation"]
    rows, first, step = fold["rows"], fold["first_row"], fold["row_step"]
    out_height, out_width = meta["height"], meta["width"]
    bottom = max(0, first + (out_height - 1) * step + (rows - 1) * dy + 1 - height)
    right = max(0, (out_width - 1) * sx + (kx - 1) * dx + 1 - width - px)
    padded = np.pad(codes, ((0, 0), (0, 0), (-first, bottom), (px, right)))
    views = [padded[:, :, iy * dy:iy * dy + (out_height - 1) * step + 1:step,
                    ix * dx:ix * dx + (out_width - 1) * sx + 1:sx] for iy in range(rows) for ix in range(kx)]
    # Channel c*taps + tap.
    return np.stack(views, axis=2).reshape(n, c * len(views), out_height, out_width)


def pack(values: np.ndarray, rows: int, digits: int, pitch: int, digit_bits: int = 4,
         space: tuple | None = None) -> np.ndarray:
    """Integers (n, c, h, w) -> bytes of the region, in digits of 2 or 4 bits. Channels and columns that fill up are zero.

    space : (rows that an image has in memory, the map's first of them); by default the map's rows alone. Others are zero.

    >>> pack(np.array([1, -2]).reshape(1, 2, 1, 1), rows=4, digits=1, pitch=8)[:2]
    array([225,   0], dtype=uint8)
    """
    n, c, height, width = values.shape
    groups, (in_memory, first) = -(-c // rows), space or (height, 0)
    per_byte = 8 // digit_bits
    data = np.zeros((groups, digits, n, in_memory, pitch, rows // per_byte), dtype=np.uint8)
    own = data[:, :, :, first:first + height, :width]
    for d in range(digits):
        # Channels share bytes before they are moved behind the columns: that way half as many bytes move.
        plane = (values >> (digit_bits * d)).astype(np.uint8) & np.uint8((1 << digit_bits) - 1)
        joined = plane[:, ::per_byte].copy()
        for k in range(1, per_byte):
            part = plane[:, k::per_byte]
            joined[:, :part.shape[1]] |= part << np.uint8(digit_bits * k)
        for g in range(groups):
            block = np.moveaxis(joined[:, g * rows // per_byte:(g + 1) * rows // per_byte], 1, -1)
            own[g, d, ..., :block.shape[-1]] = block
    return data.reshape(-1)


def pack_digits(values: np.ndarray, digit_bits: int) -> np.ndarray:
    """Unsigned digits (..., n), uint8 -> bytes (..., n * digit_bits / 8), the first digit lowest."""
    per_byte = 8 // digit_bits
    packed = values[..., 0::per_byte].copy()
    for k in range(1, per_byte):
        packed |= values[..., k::per_byte] << digit_bits * k
    return packed


def unpack_digits(data: np.ndarray, digit_bits: int) -> np.ndarray:
    """Bytes (..., n), uint8 -> unsigned digits (..., n * 8 / digit_bits), int64; the inverse of `pack_digits`."""
    digits = [data >> digit_bits * k & ((1 << digit_bits) - 1) for k in range(8 // digit_bits)]
    return np.stack(digits, axis=-1).reshape(*data.shape[:-1], -1).astype(np.int64)


class MapRows(NamedTuple):
    """Rows that an image has in memory, and which of them is the map's first."""

    rows: int
    first: int


def space_of(meta: dict) -> MapRows | None:
    """What `pack` and `unpack` call so, of a program's input or output; files from before stripes do not have it.

    >>> space_of({"pitch": 8, "rows": 12, "first_row": 1})
    MapRows(rows=12, first=1)
    """
    return MapRows(meta["rows"], meta["first_row"]) if "rows" in meta else None


def unpack_output(parts: list, meta: dict, images: int, config: EngineConfig) -> np.ndarray:
    """One output of a program, int64 (images, c, h, w), from the bytes of a region; `meta` as `outputs_of` has it.

    parts : the region of each part of memory, uint8, which has `images` / len(parts) of the images each.
    """
    planes = -(-meta["shape"][0] // config.rows) * meta["digits"]
    data = np.stack([np.asarray(part)[meta["offset"]:meta["offset"] + meta["bytes"]].reshape(planes, -1) for part in parts],
                    axis=1)  # of each plane all images
    return unpack(data.reshape(-1), tuple(meta["shape"]), images, config.rows, meta["digits"], meta["pitch"], meta["signed"],
                  config.digit_bits, space_of(meta))


def unpack(data: np.ndarray, shape: tuple, images: int, rows: int, digits: int, pitch: int, signed: bool,
           digit_bits: int = 4, space: tuple | None = None) -> np.ndarray:
    """Bytes of a region -> integers int64 (images, c, h, w); the inverse of `pack`."""
    channels, height, width = shape
    groups = -(-channels // rows)
    in_memory, first = space or (height, 0)
    words = data.reshape(groups, digits, images, in_memory, pitch, rows * digit_bits // 8)
    words = words[:, :, :, first:first + height, :width]
    found = unpack_digits(words, digit_bits)
    values = np.sum([found[:, d] << (digit_bits * d) for d in range(digits)], axis=0)
    if signed:
        half = 1 << (digit_bits * digits - 1)
        values = (values ^ half) - half
    # (group, image, row, column, channel) -> (image, channel, row, column)
    return values.transpose(1, 0, 4, 2, 3).reshape(images, groups * rows, height, width)[:, :channels]
