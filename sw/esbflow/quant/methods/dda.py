"""Scales that minimise the expected squared error on Gaussian or Laplacian data (distribution difference aligner).

Source: Gong et al., "Elastic Significant Bit Quantization and Acceleration for Deep Neural Networks", IEEE TPDS 33(11),
2022, section on DDA. The constants are recomputed here instead of copied: two published ones are local minima and one
belongs to another format. `scale` is the real value of one integer step, for data of unit standard deviation.
"""

import functools
import math

import numpy as np

from esbflow.errors import BadValue
from esbflow.numbers import Format

DISTRIBUTIONS = ("gaussian", "laplace")
_GRID = 400


def _positive_levels(form: Format) -> np.ndarray:
    """Levels of the positive half; the sets in use are symmetric but for a lone extra negative level."""
    levels = form.levels
    return levels[levels >= 0].astype(np.float64)


def _moments(edges: np.ndarray, distribution: str) -> tuple:
    """Integrals of 1, x, x*x times the density from 0 to each edge."""
    finite = np.where(np.isinf(edges), 0.0, edges)
    if distribution == "gaussian":
        density = np.where(np.isinf(edges), 0.0, np.exp(-finite ** 2 / 2) / math.sqrt(2 * math.pi))
        mass = np.array([0.5 * math.erf(x / math.sqrt(2)) for x in edges])
        return mass, density[0] - density, mass - finite * density
    rate = math.sqrt(2)
    tail = np.where(np.isinf(edges), 0.0, np.exp(-rate * finite) / 2)
    mass = 0.5 - tail
    first = 1 / (2 * rate) - tail * (finite + 1 / rate)
    second = 1 / rate ** 2 - tail * (finite ** 2 + 2 * finite / rate + 2 / rate ** 2)
    return mass, first, second


def expected_error(levels: np.ndarray, scale: float, distribution: str = "gaussian") -> float:
    """Mean squared error of rounding unit-variance data to +-scale*levels (levels >= 0, increasing)."""
    points = scale * levels
    edges = np.concatenate([[0.0], (points[1:] + points[:-1]) / 2, [np.inf]])
    mass, first, second = (np.diff(m) for m in _moments(edges, distribution))
    return float(2 * np.sum(second - 2 * points * first + points ** 2 * mass))


@functools.cache
def optimal_scale(form: Format, distribution: str = "gaussian") -> float:
    """The scale of least expected error for data of mean zero and unit standard deviation.

    A grid first, because some sets have several local minima, then golden sections.

    Raises
    ------
    ValueError
        for an unknown distribution, naming the known ones.

    >>> from esbflow.numbers import ESB
    >>> round(2 * optimal_scale(ESB(4, 1)), 6)  # alpha = scale * 2**k
    0.487079
    """
    if distribution not in DISTRIBUTIONS:
        raise BadValue(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, not {distribution!r}")
    levels = _positive_levels(form)
    top = levels[-1]
    grid = np.exp(np.linspace(math.log(0.3 / top), math.log(14.0 / top), _GRID))
    errors = [expected_error(levels, scale, distribution) for scale in grid]
    best = int(np.argmin(errors))
    low, high = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if expected_error(levels, left, distribution) < expected_error(levels, right, distribution):
            high = right
        else:
            low = left
    return (low + high) / 2


@functools.cache
def rectified_scale(form: Format) -> float:
    """The best scale of an unsigned format for max(0, z), z of unit standard deviation, per root mean square of it.

    A half-normal's best unsigned scale is the best scale of the symmetric set with the same positive levels; the
    root mean square of max(0, z) is 1/sqrt(2).
    """
    return math.sqrt(2) * optimal_scale(form)
