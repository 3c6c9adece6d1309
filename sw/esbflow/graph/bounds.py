"""Exact bounds of every accumulator and requantizer sum, from the weights; so that overflow is refused, not met."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.numbers import Format


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


class SumRange(NamedTuple):
    """The smallest and the largest sum of each channel, int64 (channels,) or float64 of real sums."""

    low: np.ndarray
    high: np.ndarray


def accumulator_range(graph: ir.Graph, node: ir.Node) -> SumRange:
    """(low, high) int64 (channels,) of the node's accumulator; a zero of the padding counts too."""
    return sum_range(*factors(vars(node), node.shape[0]), graph[node.inputs[0]].format)


def factors(fields: dict, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative) int64 (channels,): the sums of the integers of either sign that an accumulator multiplies by,
    from a node's `weight`, or the `kernel` of an average pool; one without either adds a single value."""
    if "weight" in fields:
        rows = fields["weight"].reshape(channels, -1)
        return np.maximum(rows, 0).sum(axis=1), np.minimum(rows, 0).sum(axis=1)
    taps = fields["kernel"][0] * fields["kernel"][1] if "kernel" in fields else 1
    return np.full(channels, taps, np.int64), np.zeros(channels, np.int64)


def sum_range(positive: np.ndarray, negative: np.ndarray, form: Format) -> SumRange:
    """(low, high) int64 (channels,) of sums with such `factors` of values of a format, or of zeros around a map."""
    smallest, largest = min(0, form.min), max(0, form.max)
    return SumRange(positive * smallest + negative * largest, positive * largest + negative * smallest)


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
