"""Is an input table a rounded straight line, as that of (pixel / 255 - mean) / std is?"""

import numpy as np

from esbflow.numbers import Format

_STEPS = 200


def fit_line(table: np.ndarray, form: Format):
    """(slope, offset), float64 (c,), with level = nearest(slope * pixel + offset) for all 256 pixels; None if there is none.

    Rounding of float32 is not considered: of all lines the one that stays farthest from the points where levels change is
    returned.

    >>> fit_line(np.arange(256)[None] // 2 - 64, Format.parse("s8"))
    (array([0.5]), array([-64.25]))
    """
    lines = [_fit(row, form) for row in table]
    if any(line is None for line in lines):
        return None
    slope, offset = np.array(lines).T
    return slope, offset


def _fit(row: np.ndarray, form: Format):
    levels = form.levels
    place = np.searchsorted(levels, row)
    middles = (levels[1:] + levels[:-1]) / 2
    far = float(levels[-1] - levels[0] + 1)
    low = np.concatenate([[levels[0] - far], middles])[place]
    high = np.concatenate([middles, [levels[-1] + far]])[place]
    pixels = np.arange(256)

    def room(slope):
        return (high - slope * pixels).min() - (low - slope * pixels).max()

    # room is concave in the slope.
    left, right = -far, far
    for _ in range(_STEPS):
        third = (right - left) / 3
        if room(left + third) < room(right - third):
            left += third
        else:
            right -= third
    slope = round((left + right) / 2, 12)
    if room(slope) <= 0:
        return None
    return slope, ((high - slope * pixels).min() + (low - slope * pixels).max()) / 2
