"""Requantizers of engines whose lanes shift, `requantizer="shift"`: m becomes 1 or -1, n 0 or a power of two.

With m = +-2**i and n = +-2**j, the level of (acc*m + r*n + b) / 2**s is that of (+-acc + +-r * 2**(j-i) + b') / 2**(s-i),
where b' is b / 2**i, rounded down once half a step has been added: both sums round down to the same integer. What would
shift to the right of acc's lowest bit moves into the weights: they are multiplied by a power of two, and exact for that.

Average pools and requantizations have weights of one, so that these can be any m: a mean of 49 pixels needs no power of two.
It takes a pass for each digit of m.
"""

from dataclasses import replace

import numpy as np

from esbflow.compiler.digits import most_digits
from esbflow.compiler.errors import CompileError
from esbflow.compiler.lower import Layer
from esbflow.engine_config import EngineConfig
from esbflow.graph.bounds import factors, sum_range
from esbflow.graph.ir import Requantizer
from esbflow.numbers import ESB


def shift_requantizer(config: EngineConfig, layer: Layer) -> Layer:
    """The same layer, bit for bit, as the lanes of `config` take it.

    A channel that has the same level for all inputs, as a dead one has, becomes that level: its factors do not matter.

    Raises
    ------
    CompileError
        if m or n is no power of two, or a sum or its weights are too large for the engine; it names the layer.
    """
    if config.requantizer != "shift":
        return layer
    constants, weight = layer.requantizer, layer.weight
    m, n, s, b = (np.array(values, dtype=np.int64) for values in (constants.m, constants.n, constants.s, constants.b))
    low, high = (layer.rounded_format.round_shift(total, s) for total in _ends(layer, weight, m, n, b))
    fixed = low == high
    m, n, s, b = np.where(fixed, 0, m), np.where(fixed, 0, n), np.where(fixed, 0, s), np.where(fixed, low, b)
    if layer.op in ("AvgPool2d", "Requantize"):
        power = np.where(m == 0, 1, m & -m)
        weight, m = _times(weight, np.abs(m) // power), np.sign(m) * power
    for name, given in (("m", m), ("n", n)):
        size = np.abs(given)
        wrong = np.flatnonzero(size & (size - 1))
        if wrong.size:
            channel = wrong[0]
            raise CompileError(
                f"layer {layer.name}: engine {config.name} requantizes by shifts and {name} of channel {channel} is "
                f"{given[channel]}, no power of two; train with power-of-two scales (Recipe(power_of_two=True)), or use an "
                "engine with requantizer = multiply")
    esb = isinstance(layer.rounded_format, ESB)
    # What m, n and 2**s may be divided by. A doubled level of ESB keeps its bit below the point.
    by = np.where(esb, np.maximum(s - 1, 0), s)
    by = np.minimum(by, np.where(m == 0, by, _exponents(m)))
    by = np.minimum(by, np.where(n == 0, by, _exponents(n)))
    half, shorter = _half(s, esb), s - by
    factor = np.where(m == 0, 0, np.int64(1) << np.where(m == 0, 0, _exponents(m) - by))
    shift = np.where(n == 0, 0, _exponents(n) - by)
    weight = _times(weight, factor)
    widest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    most = most_digits(config.weight_min, config.weight_max, config.radix_bits)
    if np.any((factor > 1) & (widest >> most * config.radix_bits > 0)):
        channel = int((widest * (factor > 1)).argmax())
        raise CompileError(
            f"layer {layer.name}: engine {config.name} shifts sums to the right only, and those of channel {channel} are "
            f"multiplied by {factor[channel]}; use a coarser output scale (Recipe(power_of_two=True) chooses one for the "
            "last layer), or an engine with requantizer = multiply")
    m, n, b = np.where(m < 0, -1, 1), np.sign(n) << shift, (b + half >> by) - _half(shorter, esb)
    ends = np.abs(_ends(layer, weight, m, n, b)).max(axis=0) + _half(shorter, esb)
    if np.any(ends >> config.requantize_width - 1):
        channel = int(ends.argmax())
        raise CompileError(
            f"layer {layer.name}: the sum of channel {channel} reaches {ends[channel]} and the lanes of engine "
            f"{config.name} have {config.requantize_width} bits; use a larger scale for its weights, or an engine with "
            "requantizer = multiply")
    return replace(layer, weight=weight, requantizer=Requantizer(m=m, n=n, s=shorter, b=b))


def _ends(layer: Layer, weight: np.ndarray, m, n, b) -> np.ndarray:
    """int64 (2, channels): the smallest and the largest acc*m + r*n + b."""
    sums = np.sort(np.array(sum_range(*factors({"weight": weight}, len(weight)), layer.in_format)) * m, axis=0)
    form = layer.residual_format
    if form is not None:
        sums = sums + np.sort(np.array([[form.min], [form.max]]) * n, axis=0)
    return sums + b


def _times(weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def _half(s: np.ndarray, esb: bool) -> np.ndarray:
    """Half a step of a linear format."""
    return np.where((s > 0) & (not esb), np.int64(1) << np.maximum(s - 1, 0), 0)


def _exponents(values: np.ndarray) -> np.ndarray:
    """The k of each 2**k or -2**k; 0 of 0."""
    return np.frexp(np.maximum(np.abs(values), 1).astype(np.float64))[1].astype(np.int64) - 1
