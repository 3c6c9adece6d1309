"""Activations of one bit, -1 and +1, are stored as levels of ESB(2,0), which the engine has: -1, 0 and +1.

Which integers are made stays as it is, so what reads them does too, and zeros that pad a map are zeros. Only what makes
them must never round to 0. A sum t = acc*m + b is at least zero where acc is at least -floor(b / m), for m > 0, and

    2*acc + 2*floor(b / m) + 1

is an odd number of the same sign; for m < 0 it is -2*acc + 2*floor(b / |m|) + 1. The engine clamps it to -1 or +1. A sum
with a residual has no such threshold: whether it is at least zero is stored in one unsigned bit, clamp(t + 1), and a layer
of its own makes 2*bit - 1 of it.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from esbflow.graph import ir
from esbflow.numbers import ESB, Binary, Unsigned

TERNARY = ESB(2, 0)


def store_bipolar(graph: ir.Graph) -> ir.Graph:
    """The graph with formats and requantizers that the engine has for tensors of format `bin`; every integer that such a
    tensor holds stays the same. The graph itself where it has none."""
    if not any(isinstance(node.format, Binary) for node in graph.nodes):
        return graph
    return replace(graph, nodes=[part for node in graph.nodes for part in _stored(graph, node)])


def _stored(graph: ir.Graph, node: Any) -> tuple:
    if not isinstance(node.format, Binary):
        return (node,)
    constants = getattr(node, "requantizer", None)
    if constants is None:
        return (replace(node, format=TERNARY),)
    if not constants.n.any():
        return (replace(node, format=TERNARY, requantizer=_sign(constants)),)
    name = graph.unused(f"{node.name}_bit")
    bit = replace(node, name=name, format=Unsigned(1), requantizer=_is_positive(constants))
    return bit, ir.Requantize(node.name, (name,), node.shape, TERNARY, node.scale,
                              requantizer=_two_less_one(node.shape[0]))


def _sign(q: ir.Requantizer) -> ir.Requantizer:
    threshold = np.where(q.m == 0, q.b, q.b // np.maximum(np.abs(q.m), 1))
    limit = ir.B_LIMIT // 2  # beyond what sums reach, so that it only keeps b in its width
    return replace(q, m=2 * np.sign(q.m), b=2 * np.clip(threshold, -limit, limit) + 1, s=np.zeros_like(q.s))


def _is_positive(q: ir.Requantizer) -> ir.Requantizer:
    return replace(q, b=np.minimum(q.b + 1, ir.B_LIMIT), s=np.zeros_like(q.s))


def _two_less_one(channels: int) -> ir.Requantizer:
    q = ir.Requantizer.pass_through(channels)
    return replace(q, m=2 * q.m, b=-q.m)
