"""Tensors that the graph stores, and the nodes that hand their integers on as they are."""

from dataclasses import dataclass
from typing import NamedTuple

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


class StoredAs(NamedTuple):
    """How a tensor is stored: its format, and the real size of one step."""

    form: Format
    scale: float


def choice(order, channels: int) -> np.ndarray:
    """The weights of `selection`, int64 (out, channels, 1, 1): output o is channel order[o], or zeros where that is -1.

    >>> choice([1, -1], 2)[:, :, 0, 0].tolist()
    [[0, 1], [0, 0]]
    """
    return (np.asarray(order)[:, None] == np.arange(channels)).astype(np.int64)[:, :, None, None]


def selection(name: str, source: Stored, weight: np.ndarray, shape: tuple, **fields) -> ir.Conv2d:
    """The node that makes channels of a tensor by 1x1 weights of zeros and ones, int64 (out, in, 1, 1): integers, format and
    scale stay what they are."""
    return ir.Conv2d(name=name, inputs=(source.name,), shape=shape, format=source.form, scale=source.scale, weight=weight,
                     weight_format=Signed(2), weight_scale=np.ones(len(weight)),
                     requantizer=ir.Requantizer.pass_through(len(weight)), **fields)


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
