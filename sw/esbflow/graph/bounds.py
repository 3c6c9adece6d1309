"""Exact bounds of every accumulator and requantizer sum, from the weights; so that overflow is refused, not met."""

from dataclasses import dataclass

import numpy as np

from esbflow.graph import ir
from esbflow.graph.errors import GraphError

SUM_BITS = 42
"""Bits of the engine's exact sum acc*m + r*n + b with 28-bit accumulators; every executor here is exact beyond that."""


@dataclass(frozen=True)
class Bound:
    """What a node's accumulator can reach, over all inputs of its formats."""

    low: int
    high: int
    sum_low: int
    sum_high: int

    @property
    def bits(self) -> int:
        """Two's-complement bits of the accumulator.

        >>> Bound(-8, 7, 0, 0).bits
        4
        """
        return max(int(self.high).bit_length(), int(~self.low).bit_length() if self.low < 0 else 0) + 1

    @property
    def sum_bits(self) -> int:
        return max(int(self.sum_high).bit_length(),
                   int(~self.sum_low).bit_length() if self.sum_low < 0 else 0) + 1


def accumulator_range(graph: ir.Graph, node: ir.Node) -> tuple:
    """(low, high) int64 (channels,) of the node's accumulator; a zero of the padding counts too."""
    source = graph[node.inputs[0]].format
    smallest, largest = min(0, source.min), max(0, source.max)
    if isinstance(node, (ir.Conv2d, ir.Linear)):
        rows = node.weight.reshape(node.weight.shape[0], -1)
        positive, negative = np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
        return positive * smallest + negative * largest, positive * largest + negative * smallest
    count = node.kernel[0] * node.kernel[1] if isinstance(node, ir.AvgPool2d) else 1
    channels = node.shape[0]
    return np.full(channels, count * smallest, np.int64), np.full(channels, count * largest, np.int64)


def bounds(graph: ir.Graph) -> dict:
    """{node name: Bound} of all nodes with a requantizer."""
    result = {}
    for node in graph.nodes:
        q = getattr(node, "requantizer", None)
        if q is None:
            continue
        low, high = accumulator_range(graph, node)
        ends = np.stack([low * q.m, high * q.m])
        total_low, total_high = ends.min(axis=0) + q.b, ends.max(axis=0) + q.b
        if len(node.inputs) > 1:
            other = graph[node.inputs[1]].format
            ends = np.stack([other.min * q.n, other.max * q.n])
            total_low, total_high = total_low + ends.min(axis=0), total_high + ends.max(axis=0)
        result[node.name] = Bound(int(low.min()), int(high.max()), int(total_low.min()), int(total_high.max()))
    return result


def check(graph: ir.Graph, accumulator_width: int) -> dict:
    """`bounds`, refused if an accumulator needs more than `accumulator_width` bits.

    Raises
    ------
    GraphError
        naming the layer, the bits it needs and the bits there are.
    """
    found = bounds(graph)
    for name, bound in found.items():
        if bound.bits > accumulator_width:
            raise GraphError(f"layer {name}: its accumulator needs {bound.bits} bits and the engine has "
                             f"{accumulator_width}; use fewer weight or activation bits, or a wider engine")
    return found
