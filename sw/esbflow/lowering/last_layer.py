"""How a network's last layer is stored, and how far its integers can be from the real numbers.

All channels share one scale, so that the largest integer is the largest real value. It is a power of two below (or above)
the largest gain: then the channels of that gain are exact, and of one with a smaller gain the step is as fine as m allows.
"""

from typing import Any

import numpy as np

from esbflow.graph import ir
from esbflow.graph.bounds import factors, sum_range
from esbflow.lowering.engine_layer import OFFSET_LIMIT, OpenLayer
from esbflow.lowering.nodes import StoredAs
from esbflow.numbers import Format, Signed, Unsigned

WIDTHS = (16, 32)
"""Bits that the engine stores a last layer's integers in."""

FINEST = 10
"""log2 of the steps in the largest gain: m, which is that number times 2**s, reaches 2047."""

_MARGIN = 0.999
"""Of a format's largest level: what rounding m to 12 bits leaves of it."""


def last_format(layer: OpenLayer, bits: int | None = None, finest: int = FINEST) -> StoredAs:
    """(format, scale) of a network's last layer: its largest gain times the smallest power of two with which no channel
    saturates, whatever the input, and m and b fit.

    bits : 16 or 32; None takes 16 where they hold the finest step that m allows, else 32.
        A layer that is clipped at zero has an unsigned format. Where it is clipped above too, that is the largest level, of
        as many bits as m and b have room for.
    finest : log2 of the steps wanted in the largest gain; 0 where requantizers shift, which cannot make a sum larger.

    >>> from esbflow.lowering.nodes import Stored
    >>> layer = OpenLayer.copy_of(Stored("x", (1, 1, 1), Unsigned(8), 1.0))
    >>> [tuple(last_format(layer, bits)) for bits in (None, 16)]  # sums of 0..255: at most 2**7 steps each in 16 bits
    [(Signed(bits=32), 0.0009765625), (Signed(bits=16), 0.0078125)]
    """
    rectified = layer.low == 0
    steepest = max(float(np.abs(gain).max()) for gain in _gains(layer))
    shift = float(np.abs(layer.offset).max()) / (OFFSET_LIMIT * _MARGIN)
    if rectified and layer.high < np.inf:
        least = max(steepest / ir.M_LIMIT, shift)
        forms: list[Format] = [Unsigned(fewer) for fewer in range(bits or WIDTHS[-1], 0, -1)]
        form = next((form for form in forms if least * form.max <= layer.high), forms[-1])
        return StoredAs(form, layer.high / form.max)
    low, high = _ends(layer)
    reach = float(max(0.0, high.max(), 0.0 if rectified else -low.min()))
    for width in (bits,) if bits else WIDTHS:
        form = Unsigned(width) if rectified else Signed(width)
        least = max(reach / (form.max * _MARGIN), shift)
        if 0 < steepest and least * 2 ** finest <= steepest:
            return StoredAs(form, steepest / 2 ** finest)
    if steepest == 0:
        return StoredAs(form, least or 1.0 / form.max)
    return StoredAs(form, float(np.ldexp(steepest, int(np.ceil(np.log2(least / steepest))))))


def rounding_error(layer: OpenLayer, node: ir.Node) -> dict:
    """How far `node`, which `layer` was closed to, can be from it: the largest |integer * scale - y| over all integers that
    the layer can read.

    Rounding to a step is half of one. Rounding m, n, b and weights is an error of each coefficient, whose sum over the
    channel's inputs is largest where each input has the end of its range that its sign asks for.

    Returns
    -------
    `largest`, real, over the channels; `share`, the largest over the channels of the error in parts of the largest |y| that
    the channel itself can have. Where a ReLU clips y both are of clipped values, which are no further apart.
    """
    low, high = _ends(layer, node)
    error = np.maximum(high, -low) + node.scale / 2
    reach = np.abs(np.clip(_ends(layer), node.format.min * node.scale, node.format.max * node.scale)).max(axis=0)
    share = np.divide(error, reach, out=np.zeros_like(error), where=reach > 0)
    return {"largest": float(error.max()), "share": float(share.max())}


def _gains(layer: OpenLayer) -> list:
    return [layer.live_gain] if layer.residual is None else [layer.live_gain, layer.residual_gain]


def _ends(layer: OpenLayer, node: Any = None) -> np.ndarray:
    """float64 (2, c): the smallest and the largest y; with `node` those of what the node has beyond it."""
    channels, gain, residual, offset = len(layer.gain), layer.live_gain, layer.residual_gain, layer.offset
    fields = dict(layer.fields)
    if "weight" in fields:
        fields["weight"] = _times(fields["weight"], gain)
    if node is not None:
        unit = np.ldexp(node.scale, -node.requantizer.s)
        gain, offset = node.requantizer.m * unit - gain, node.requantizer.b * unit - offset
        if "weight" in fields:
            fields["weight"] = _times(node.weight, node.requantizer.m * unit) - fields["weight"]
        if residual is not None:
            residual = node.requantizer.n * unit - residual
    ends = np.array(sum_range(*factors(fields, channels), layer.source.form))
    if "weight" not in fields:
        ends = _span(gain, ends)
    if layer.residual is not None and residual is not None:
        form = layer.residual.form
        ends = ends + _span(residual, np.array([[form.min], [form.max]]))
    return ends + offset


def _times(weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def _span(factor: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The ends (2, c) of factor (c,) times what lies between `ends`."""
    return np.sort(factor * ends, axis=0)
