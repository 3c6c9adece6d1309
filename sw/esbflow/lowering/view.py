"""What the graph can make of a tensor by moving its values, read off an array of indices into it.

A model may have any chain of splits, slices, pads, views and transposes: a tensor of indices goes through it in place of
values, with -1 where a zero is.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, eq=False)
class View:
    """A tensor whose values a model has in other places than the graph, perhaps with zeros among them.

    `indices` (1, ...), in the model's axes, are places in `value` (c, h, w), flat; -1 is a zero. `by` is the node that
    sentences name.
    """

    value: object
    indices: np.ndarray
    by: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """What the model sees of one image."""
        return self.indices.shape[1:]

    @cached_property
    def has_zeros(self) -> bool:
        """Whether zeros stand among the values: only what makes zeros of zeros can be done to each value by itself."""
        return bool((self.indices < 0).any())

    @cached_property
    def pads(self) -> tuple[int, int, int, int] | None:
        """(top, left, bottom, right) zeros if this is the whole tensor in place with nothing but zeros around it, which the
        layer that reads it takes over: the engine pads by addresses. Else None.

        >>> View(np.zeros((1, 1, 2)), np.array([[[[-1, -1, -1], [-1, 0, 1]]]])).pads
        (1, 1, 0, 0)
        """
        channels, height, width = shape_of(self.value)
        if self.indices.ndim != 4 or self.shape[0] != channels:
            return None
        top, left = (int((self.indices[0, 0] >= 0).any(axis).argmax()) for axis in (1, 0))
        inside = self.indices[:, :, top:top + height, left:left + width]
        zeros = np.count_nonzero(self.indices < 0) == self.indices.size - inside.size
        whole = zeros and np.array_equal(inside, in_place(shape_of(self.value)))
        return (top, left, self.shape[1] - height - top, self.shape[2] - width - left) if whole else None


def shape_of(value) -> tuple[int, int, int]:
    """(c, h, w) of a tensor; of an open layer, what the last node after it makes."""
    return value.out_shape if hasattr(value, "out_shape") else value.shape


def in_place(shape: tuple) -> np.ndarray:
    """int64 (1, c, h, w): the indices of a tensor of `shape` that nothing has moved."""
    return np.arange(np.prod(shape)).reshape(1, *shape)


def padded(value, around: tuple) -> View:
    """A tensor with (top, left, bottom, right) zeros around it."""
    top, left, bottom, right = around
    amounts = (0, 0), (0, 0), (top, bottom), (left, right)
    return View(value, np.pad(in_place(shape_of(value)), amounts, constant_values=-1))


class Unpadded(NamedTuple):
    """A tensor without the zeros around it, and (top, left, bottom, right) of them."""

    value: object
    pads: tuple[int, int, int, int]


def unpadded(value) -> Unpadded:
    """(the tensor without its zeros, (top, left, bottom, right)); what is not just padded stays as it is."""
    if isinstance(value, View) and value.pads:
        return Unpadded(value.value, value.pads)
    return Unpadded(value, (0, 0, 0, 0))


class ChosenChannels(NamedTuple):
    """Numbers of whole channels, -1 for one of zeros, and how many times each pixel is there along (rows, columns)."""

    channels: np.ndarray
    times: tuple[int, int]


def channels_of(indices: np.ndarray, shape: tuple) -> ChosenChannels | None:
    """(channels, (rows, columns)) if `indices` (c, h, w) into a tensor of `shape` (c, h, w) are whole channels, with each
    pixel so many times; else None.

    >>> channels_of(np.arange(8).reshape(2, 2, 2)[::-1], (2, 2, 2))
    ChosenChannels(channels=array([1, 0]), times=(1, 1))
    """
    (channels, height, width), (rows, columns) = shape, indices.shape[1:]
    if not indices.size or rows % height or columns % width:
        return None
    factors = rows // height, columns // width
    order = indices[:, 0, 0] // (height * width)
    if order.max() >= channels:
        return None
    map_ = np.arange(channels * height * width).reshape(shape)
    expected = np.where(order[:, None, None] < 0, -1, map_[order]).repeat(factors[0], axis=1).repeat(factors[1], axis=2)
    return ChosenChannels(order, factors) if np.array_equal(expected, indices) else None


class Rectangle(NamedTuple):
    """Pixels of a map: (top, left), and the (down, right) steps from one to the next."""

    corner: tuple[int, int]
    steps: tuple[int, ...]


def pixels_of(indices: np.ndarray, shape: tuple) -> Rectangle | None:
    """What `rectangle` says of `indices` (c, h, w) into a tensor of `shape`, if they are the same pixels of all channels."""
    channels, height, width = shape
    if len(indices) != channels:
        return None
    offsets = np.arange(channels)[:, None, None] * height * width
    alike = (indices - offsets == indices[:1]).all() and (indices[0] < height * width).all()
    return rectangle(indices[0], height, width) if alike else None


def rectangle(taken: np.ndarray, height: int, width: int) -> Rectangle | None:
    """((top, left), (step down, step right)) of the pixels `taken`, int (rows, columns) of numbers counted along the rows of
    a map; None if they are no rectangle, perhaps with pixels left out in even steps.

    >>> rectangle(np.array([[6, 8], [16, 18]]), 4, 5)
    Rectangle(corner=(1, 1), steps=(2, 2))
    """
    if not taken.size:
        return None
    (top, left), (down, right) = (divmod(int(pixel), width) for pixel in (taken[0, 0], taken[-1, -1]))
    steps = tuple(max(1, reach // max(1, count - 1)) for reach, count in zip((down - top, right - left), taken.shape))
    map_ = np.arange(height * width).reshape(height, width)
    same = np.array_equal(taken, map_[top::steps[0], left::steps[1]][:taken.shape[0], :taken.shape[1]])
    return Rectangle((top, left), steps) if same else None
