"""Pass 0: a first layer with few channels takes its kernel columns (or its whole window) as channels.

One image channel would use one row of the array in 16. The driver therefore lays the input out so that the window's
values are channels; the convolution shrinks to (kernel_y, 1) or (1, 1) and the rows are full. Integers are the same.
A first linear layer reads the whole image as channels, however many they are: it has no other window.
"""

from dataclasses import dataclass, replace

import numpy as np

from esbflow.compiler.lower import Layer

GROWTH_LIMIT = 32
"""The folded input may be this many times larger than the image: it is written and read once."""
WIDE_LIMIT = 1.25
"""The same, where it has more channels than four rows of the array."""


@dataclass(frozen=True)
class Fold:
    """How the driver unfolds windows: channel ((c*ky + iy)*kx + ix) with rows, (c*kx + ix) with columns only."""

    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    rows: bool

    def to_meta(self) -> dict:
        return {"kernel": list(self.kernel), "stride": list(self.stride), "padding": list(self.padding),
                "dilation": list(self.dilation), "rows": self.rows, "columns": True}


def fold_input(layer: Layer, rows: int) -> tuple:
    """(Fold or None, the layer that reads the folded input). `rows` is the array's.

    Chooses what needs the fewest passes, and of equals the smallest input.
    """
    ky, kx = layer.kernel
    channels, height, width = layer.in_shape
    _, out_height, out_width = layer.conv_shape
    if layer.groups != 1 or layer.residual is not None or len(layer.sources) > 1 or kx * ky == 1:
        return None, layer

    def groups(n):
        return -(-n // rows)

    options = [(ky * kx * groups(channels), groups(channels) * height * width, None)]
    columns = groups(channels * kx) * height * out_width
    window = groups(channels * kx * ky) * out_height * out_width
    plain = options[0][1]
    # What the host's CPU writes: many channels only where they take little more memory than the image, at large strides.
    if not layer.stacked and columns <= plain * (GROWTH_LIMIT if channels * kx <= 4 * rows else WIDE_LIMIT):
        options.append((ky * groups(channels * kx), columns, False))
    if window <= plain * (GROWTH_LIMIT if layer.stacked or channels * kx * ky <= 4 * rows else WIDE_LIMIT):
        options.append((groups(channels * kx * ky), window, True))
    _, _, fold_rows = min(options, key=lambda option: option[:2])
    if fold_rows is None:
        return None, layer
    fold = Fold(layer.kernel, layer.stride, layer.padding, layer.dilation, fold_rows)
    out = layer.weight.shape[0]
    if fold_rows:
        weight = layer.weight.reshape(out, channels * ky * kx, 1, 1)
        shape = (channels * ky * kx, out_height, out_width)
        return fold, replace(layer, weight=weight, in_shape=shape, source_channels=shape[:1], stride=(1, 1), padding=(0, 0),
                             dilation=(1, 1))
    weight = np.ascontiguousarray(layer.weight.transpose(0, 1, 3, 2)).reshape(out, channels * kx, ky, 1)
    shape = (channels * kx, height, out_width)
    return fold, replace(layer, weight=weight, in_shape=shape, source_channels=shape[:1], stride=(layer.stride[0], 1),
                         padding=(layer.padding[0], 0), dilation=(layer.dilation[0], 1))
