"""Tensors that the graph stores, and the nodes that hand their integers on as they are."""

from dataclasses import dataclass

import numpy as np

from esbflow.graph import ir
from esbflow.numbers import Format, Signed, Unsigned


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that the graph stores. `shape` is (c, h, w), `scale` the real size of one step."""

    name: str
    shape: tuple
    form: Format
    scale: float

    @property
    def largest(self) -> int:
        """The largest magnitude of its integers."""
        return max(-self.form.min, self.form.max)


def selection(name: str, source: Stored, weight: np.ndarray, shape: tuple, **fields) -> ir.Conv2d:
    """The node that makes channels of a tensor by 1x1 weights of zeros and ones, int64 (out, in, 1, 1): integers, format and
    scale stay what they are."""
    return ir.Conv2d(name=name, inputs=(source.name,), shape=shape, format=source.form, scale=source.scale, weight=weight,
                     weight_format=Signed(2), weight_scale=np.ones(len(weight)),
                     requantizer=ir.Requantizer.pass_through(len(weight)), **fields)


def rectangle(taken: np.ndarray, height: int, width: int) -> tuple | None:
    """((top, left), (step down, step right)) of the pixels `taken`, int (rows, columns) of numbers counted along the rows of
    a map; None if they are no rectangle, perhaps with pixels left out in even steps.

    >>> rectangle(np.array([[6, 8], [16, 18]]), 4, 5)
    ((1, 1), (2, 2))
    """
    if not taken.size:
        return None
    (top, left), (down, right) = (divmod(int(pixel), width) for pixel in (taken[0, 0], taken[-1, -1]))
    steps = tuple(max(1, reach // max(1, count - 1)) for reach, count in zip((down - top, right - left), taken.shape))
    map_ = np.arange(height * width).reshape(height, width)
    same = np.array_equal(taken, map_[top::steps[0], left::steps[1]][:taken.shape[0], :taken.shape[1]])
    return ((top, left), steps) if same else None


def crop(name: str, source: Stored, shape: tuple, corner: tuple, steps: tuple) -> ir.Conv2d:
    """The node that takes a rectangle of a map's pixels, `shape` (c, h, w): a convolution whose window has a one at the
    place of its corner and zeros elsewhere."""
    kernel = (size - (count - 1) * step for size, count, step in zip(source.shape[1:], shape[1:], steps))
    weight = np.zeros((shape[0], 1, *kernel), np.int64)
    weight[:, :, corner[0], corner[1]] = 1
    return selection(name, source, weight, shape, stride=steps, groups=shape[0])


def positive_part(name: str, source: Stored) -> ir.Requantize:
    """The node that makes zeros of a tensor's negative integers and keeps the others, in as few bits as those need."""
    return ir.Requantize(name=name, inputs=(source.name,), shape=source.shape, scale=source.scale,
                         format=Unsigned(max(1, source.form.max.bit_length())),
                         requantizer=ir.Requantizer.pass_through(source.shape[0]))


def maximum(name: str, source: Stored, shape: tuple, kernel: tuple, stride: tuple, padding: tuple) -> ir.MaxPool2d:
    """The node that pools maxima, of output `shape` (c, h, w)."""
    return ir.MaxPool2d(name=name, inputs=(source.name,), shape=shape, format=source.form, scale=source.scale, kernel=kernel,
                        stride=stride, padding=padding)


def repetition(name: str, source: Stored, factor: tuple) -> ir.Upsample:
    """The node that repeats every pixel `factor` (y, x) times."""
    channels, height, width = source.shape
    return ir.Upsample(name=name, inputs=(source.name,), shape=(channels, height * factor[0], width * factor[1]),
                       format=source.form, scale=source.scale, factor=factor)
