"""Weights on a scale that the requantizer's short multiplier can express exactly.

A layer with a residual shares one shift between m and n. The residual's n is about 2**s, so with 12 bits s is 10 or 11,
and m is what is left: a few units with 8-bit weights, where rounding it would change the layer's gain by half. The scale
of the weights is free, though. Choosing it so that m is an integer moves the error into the rounding of the weights,
where it is as small as that of any other scale.
"""

from typing import NamedTuple

import numpy as np

from esbflow.graph import ir
from esbflow.numbers import Format


class SnappedWeights(NamedTuple):
    """Integers, a multiplier of each channel, and the real value of one new weight step in old ones."""

    weight: np.ndarray
    m: np.ndarray
    step: np.ndarray


def snap_weights(weight: np.ndarray, form: Format, wanted: np.ndarray) -> SnappedWeights:
    """Integers and multipliers whose products are nearest to weight * wanted, channel by channel.

    Parameters
    ----------
    weight : int64 (out, ...), levels of `form`.
    wanted : float64 (out,), the real multiplier m of each channel. |wanted| below 2047.5.

    Returns
    -------
    int64 weight of the same shape, in levels of `form`; int64 m (out,); float64 (out,), the real value of one new
    weight step in old ones. Of the two integers about `wanted` the one with the smaller squared error is taken, the
    larger in magnitude of equals. A channel whose `wanted` is an integer stays as it is.

    >>> snap_weights(np.array([[100, -50, 7]]), Format.parse("s8"), np.array([1.5]))
    SnappedWeights(weight=array([[ 75, -37,   5]]), m=array([2]), step=array([1.33333333]))
    """
    rows, size = weight.reshape(len(weight), -1).astype(np.int64), np.abs(wanted)
    low, high = np.minimum(np.floor(size), ir.M_LIMIT), np.minimum(np.ceil(size), ir.M_LIMIT)
    (levels, error), (levels_high, error_high) = _fit(rows, form, size, low), _fit(rows, form, size, high)
    up = error_high <= error
    levels, m = np.where(up[:, None], levels_high, levels), np.where(up, high, low)
    used = (m > 0) & levels.any(axis=1)  # the step of a channel that has become zero says nothing
    step = np.where(used, m, 1) / np.where(used, size, 1)
    return SnappedWeights(levels.reshape(weight.shape), (m * np.where(wanted < 0, -1, 1)).astype(np.int64), step)


def _fit(rows: np.ndarray, form: Format, size: np.ndarray, m: np.ndarray) -> tuple:
    """(levels, squared error) of levels * m against rows * size; m = 0 keeps the levels and loses the channel."""
    wanted = rows * size[:, None]
    levels = np.where(m[:, None] > 0, form.nearest(wanted / np.maximum(m, 1)[:, None]), rows)
    return levels, np.square(levels * m[:, None] - wanted).sum(axis=1)
