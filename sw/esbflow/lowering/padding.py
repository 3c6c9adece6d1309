"""Zeros around a map: they go to the layer that reads them, where the engine pads by addresses."""

from dataclasses import dataclass
from typing import NamedTuple

from esbflow.graph.validate import window_counts

NONE = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Padded:
    """A tensor with zeros around it, (top, left, bottom, right) of them, which the layer that reads it takes over.

    Not a View with an index for zeros: what is done to each value by itself goes through any View, but through zeros only if
    it keeps them. An Add of 1 behind a Pad makes ones of them. And a layer needs these four numbers, not indices.
    """

    value: object
    pads: tuple


class Unpadded(NamedTuple):
    """A tensor without the zeros around it, and (top, left, bottom, right) of them."""

    value: object
    pads: tuple[int, int, int, int]


def unpadded(value) -> Unpadded:
    """(the tensor without its zeros, (top, left, bottom, right))."""
    return Unpadded(value.value, value.pads) if isinstance(value, Padded) else Unpadded(value, NONE)


def windows_fit(source: tuple, shape: tuple, reach: tuple, stride: tuple, padding: tuple, even: bool = False) -> bool:
    """Whether windows over a map of shape `source` (c, h, w) make one of `shape`, with less than one window of zeros behind;
    with `even`, with as many zeros behind it as before.

    reach : (y, x) pixels from a window's first to its last, both counted. padding : zeros before the first row and column.

    >>> [windows_fit((1, 5, 5), (1, size, size), (3, 3), (2, 2), (1, 1)) for size in (1, 2, 3, 4)]
    [False, True, True, False]
    """
    for size, count, *window in zip(source[1:], shape[1:], reach, stride, padding):
        least, same, most = window_counts(size, *window)
        if count != same if even else not least <= count <= most:
            return False
    return True
