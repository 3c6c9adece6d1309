"""A first layer with few channels takes kernel columns and rows as channels, until the array's rows are full.

One image channel would use one row of the array in 16. The driver therefore lays the input out so that a window's columns,
and so many of its rows as fit, are channels; the convolution shrinks to (kernel_y / rows, 1). Integers are the same.
Where the layer makes several pixels at once (packing.py), a word holds the columns of all their windows.
A first linear layer reads the whole image as channels, however many they are: it has no other window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from esbflow.compiler.lower import Layer
from esbflow.engine_config import AXI_BEAT_BITS

GROWTH_LIMIT = 32
"""The folded input may be this many times larger than the image: it is written and read once."""
WIDE_LIMIT = 1.25
"""The same, where it has more channels than four rows of the array."""


@dataclass(frozen=True)
class Fold:
    """How the driver unfolds windows: channel (c*rows + iy)*kx + ix of folded row j and column x.

    That is pixel (first_row + j*row_step + iy*dilation_y, x*stride_x - padding_x + ix*dilation_x) of channel c.
    """

    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    rows: int
    first_row: int
    row_step: int

    def to_meta(self) -> dict:
        """As the program's file has it."""
        return {"kernel": list(self.kernel), "stride": list(self.stride), "padding": list(self.padding),
                "dilation": list(self.dilation), "rows": self.rows, "first_row": self.first_row, "row_step": self.row_step}


class FoldedInput(NamedTuple):
    """What the engine reads in place of a layer's input: the Fold, or None, and the layer that reads it."""

    fold: Fold | None
    layer: Layer


def fold_input(layer: Layer, rows: int, cols: int | None = None, wide: tuple = (), digit_bits: int = 4,
               unfolder: Callable | None = None, channels_last: bool = False) -> FoldedInput:
    """(Fold or None, the layer that reads the folded input). `rows`, `cols` (by default as many) and
    `digit_bits` are the engine's.

    wide : forms of the layer that make several pixels at once, from words of one pixel; the fold is of one of them.
    unfolder : (Fold or None, the layer that reads it) -> cycles in which the load unit makes the input from raw pixels, or
        None if it cannot; without it the host makes the input.
    channels_last : the order of channels within a word is (kernel row, column, channel).

    Chooses what takes the fewest cycles, of passes or of the load, whichever is longer; and of equals the smallest input.
    """
    if layer.groups != 1 or layer.residual is not None or len(layer.sources) > 1 or (not wide and layer.kernel == (1, 1)):
        return FoldedInput(None, layer)
    plain = -(-layer.in_shape[0] // rows) * layer.in_shape[1] * layer.in_shape[2]

    def cost(form, passes, words):
        out_groups = -(-form.conv_shape[0] // (cols or rows))
        compute = passes * out_groups * form.conv_shape[1] * form.conv_shape[2]
        return max(compute, words * rows * digit_bits // AXI_BEAT_BITS), compute, words

    def offer(price, fold, form):
        cycles = unfolder(fold, form) if unfolder else 0
        if cycles is not None:
            options.append(((max(price[0], cycles), *price[1:]), fold, form))

    options: list = []
    for form in wide or (layer,):
        (ky, kx), channels = form.kernel, form.in_shape[0]
        offer(cost(form, ky * kx * -(-channels // rows), plain), None, form)
        for count, hop in ([(ky, ky)] if form.stacked else [(n, hop) for n in range(1, ky + 1) for hop in range(1, n + 1)]):
            fold, folded = _folded(form, count, hop, channels_last)
            groups = -(-folded.in_shape[0] // rows)
            words = groups * folded.in_shape[1] * folded.in_shape[2]
            # What the host's CPU writes: many channels only where they take little more memory than the image, at large
            # strides.
            if words <= plain * (GROWTH_LIMIT if form.stacked or folded.in_shape[0] <= 4 * rows else WIDE_LIMIT):
                offer(cost(form, groups * folded.kernel[0], words), fold, folded)
    return FoldedInput(*min(options, key=lambda option: option[0])[1:]) if options else FoldedInput(None, layer)


def _folded(layer: Layer, rows: int, hop: int, channels_last: bool = False) -> tuple:
    """`rows` kernel rows as channels, and all columns; kernel rows from one tap to the next: `hop`, at most `rows`.

    What a tap has of kernel rows that belong to the next one is zero, as is what lies beyond the kernel. A hop of the
    stride needs no other rows of the input than the stride does.
    """
    (ky, kx), sy, py, dy = layer.kernel, layer.stride[0], layer.padding[0], layer.dilation[0]
    out, channels, height = layer.weight.shape[0], layer.in_shape[0], layer.in_shape[1]
    out_height, out_width = layer.conv_shape[1], layer.conv_shape[2] // layer.phases
    taps = -(-(ky - rows) // hop) + 1
    # Columns alone leave the map's rows as they are. Of several rows, only those are stored that a tap can begin with.
    step = 1 if rows == 1 else sy if taps == 1 else math.gcd(sy, hop * dy)
    if rows > 1:
        height = ((out_height - 1) * sy + (taps - 1) * hop * dy) // step + 1
    weight = np.zeros((out, channels, rows, kx, taps), dtype=layer.weight.dtype)
    for tap in range(taps):
        end = min(ky, tap * hop + (rows if tap == taps - 1 else hop))
        weight[:, :, :end - tap * hop, :, tap] = layer.weight[:, :, tap * hop:end]
    if channels_last:
        weight = weight.transpose(0, 2, 3, 1, 4)
    shape = (channels * rows * kx, height, out_width)
    fold = Fold(layer.kernel, layer.stride, layer.padding, layer.dilation, rows, 0 if rows == 1 else -py, step)
    return fold, replace(
        layer, weight=weight.reshape(out, -1, taps, 1), in_shape=shape, source_channels=shape[:1], stride=(sy // step, 1),
        padding=(py if rows == 1 else 0, 0), dilation=(hop * dy // step if taps > 1 else 1, 1))
