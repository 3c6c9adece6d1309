"""Packing and folding: the memory order by hand, and round trips."""

import numpy as np
import pytest

from esbflow.runtime.layout import encode_images, fold_windows, pack, unpack


def test_memory_order_by_hand():
    # 2 images, 5 channels in groups of 4, 1 row of 2 pixels in a pitch of 4; value 0xDL: digits D and L
    values = np.zeros((2, 5, 1, 2), np.int16)
    values[0, :4, 0, 0] = [0x11, 0x22, 0x33, 0x44 - 0x100]
    values[1, 4, 0, 1] = 0x7A
    memory = pack(values, rows=4, digits=2, pitch=4)
    words = memory.view("<u2").reshape(2, 2, 2, 1, 4)  # group, digit, image, row, column
    assert words[0, 0, 0, 0].tolist() == [0x4321, 0, 0, 0]
    assert words[0, 1, 0, 0].tolist() == [0x4321, 0, 0, 0]
    assert words[1, 0, 1, 0].tolist() == [0, 0xA, 0, 0] and words[1, 1, 1, 0].tolist() == [0, 7, 0, 0]
    assert np.count_nonzero(words) == 4


@pytest.mark.parametrize("rows, pitch", [(4, 8), (8, 8), (16, 8), (64, 7), (128, 7)])
@pytest.mark.parametrize("digits, signed", [(1, False), (1, True), (2, True), (2, False), (4, True), (8, True), (8, False)])
def test_unpack_undoes_pack(rows, pitch, digits, signed):
    bits = 4 * digits
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    values = np.random.default_rng(rows * digits).integers(low, high, (3, 21, 5, 7))
    memory = pack(values, rows, digits, pitch)
    result = unpack(memory, values.shape[1:], 3, rows, digits, pitch, signed)
    assert (result == values).all() and memory.size == -(-21 // rows) * digits * 3 * 5 * pitch * rows // 2
    assert (pack(result, rows, digits, pitch) == memory).all()


def test_the_table_is_applied_to_each_channel():
    table = np.stack([np.arange(256) - 128, 127 - np.arange(256)])
    images = np.random.default_rng(2).integers(0, 256, (4, 2, 3, 3), dtype=np.uint8)
    codes = encode_images(images, table)
    assert (codes[:, 0] == images[:, 0] - 128.0).all() and (codes[:, 1] == 127.0 - images[:, 1]).all()


def folded_slowly(codes, w, height, width):
    kx, sx, px, (dy, dx) = w["kernel"][1], w["stride"][1], w["padding"][1], w["dilation"]
    n, channels, in_height, in_width = codes.shape
    taps = w["rows"] * kx
    result = np.zeros((n, channels * taps, height, width), codes.dtype)
    for c in range(channels):
        for tap in range(taps):
            iy, ix = divmod(tap, kx)
            for y in range(height):
                for x in range(width):
                    row = w["first_row"] + y * w["row_step"] + iy * dy
                    column = x * sx + ix * dx - px
                    if 0 <= row < in_height and 0 <= column < in_width:
                        result[:, c * taps + tap, y, x] = codes[:, c, row, column]
    return result


@pytest.mark.parametrize("rows, first_row, row_step", [(1, 0, 1), (2, -1, 1), (2, 0, 2), (3, -3, 2)])
@pytest.mark.parametrize("kernel, stride, padding, dilation", [
    ((3, 3), (1, 1), (1, 1), (1, 1)), ((7, 7), (2, 2), (3, 3), (1, 1)), ((3, 5), (2, 1), (0, 4), (1, 2)),
    ((1, 3), (1, 3), (0, 9), (1, 1)), ((2, 2), (2, 2), (0, 0), (2, 1))])
def test_fold_equals_its_definition(rows, first_row, row_step, kernel, stride, padding, dilation):
    window = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "rows": rows,
              "first_row": first_row, "row_step": row_step}
    codes = np.random.default_rng(3).integers(-128, 128, (2, 3, 10, 12)).astype(np.int8)
    height = 10 // row_step + 1
    width = (12 + 2 * padding[1] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    folded = fold_windows(codes, {"fold": window, "height": height, "width": width})
    assert (folded == folded_slowly(codes, window, height, width)).all()


def test_no_fold_changes_nothing():
    codes = np.zeros((1, 3, 4, 4), np.int8)
    assert fold_windows(codes, {"fold": None}) is codes
