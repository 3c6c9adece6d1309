"""Checks that a graph is well formed, before anything runs or compiles it."""

import math
from typing import NamedTuple

import numpy as np

from esbflow.graph import host, ir
from esbflow.graph.errors import GraphError
from esbflow.numbers import Format


def validate(graph: ir.Graph) -> ir.Graph:
    """Returns the graph if it is well formed.

    Raises
    ------
    GraphError
        naming the first node that is not, and why.
    """
    if not graph.nodes or not isinstance(graph.nodes[0], ir.Input):
        raise GraphError(f"graph {graph.name}: its first node must be an Input")
    known: dict[str, ir.Node] = {}
    for node in graph.nodes:
        where = f"layer {node.name}"
        if node.name in known:
            raise GraphError(f"{where}: the name is used twice")
        for source in node.inputs:
            if source not in known:
                raise GraphError(f"{where}: its input {source!r} is not computed before it")
        if len(node.shape) != 3 or min(node.shape) < 1:
            raise GraphError(f"{where}: its shape must be three positive sizes, not {node.shape}")
        if not isinstance(node.format, Format):
            raise GraphError(f"{where}: its format must be a number format, not {node.format!r}")
        if not (math.isfinite(node.scale) and node.scale > 0):
            raise GraphError(f"{where}: its scale must be positive and finite, not {node.scale}")
        inputs = [known[source] for source in node.inputs]
        expected = (host.check if isinstance(node, host.Host) else _SHAPES[type(node)])(node, where, *inputs)
        if tuple(node.shape) not in expected:
            raise GraphError(f"{where}: its shape is {tuple(node.shape)}, its inputs give {expected[0]}")
        _check_requantizer(node, where)
        known[node.name] = node
    _check_outputs(graph, known)
    return graph


def _check_outputs(graph, known):
    if len(graph.outputs) == 1:
        raise GraphError(f"graph {graph.name}: a single output is its last layer, and has no name of its own")
    for output, name in graph.outputs.items():
        if name not in known or isinstance(known[name], ir.Input):
            raise GraphError(f"graph {graph.name}: its output {output!r} is {name!r}, which no layer computes")


def _check_requantizer(node, where):
    q = getattr(node, "requantizer", None)
    if q is None:
        if not isinstance(node, (ir.Input, ir.MaxPool2d, ir.Concat, ir.Upsample, ir.Lookup, host.Host)):
            raise GraphError(f"{where}: it has no requantizer")
        return
    limits = {"m": (-(1 << 11), (1 << 11) - 1), "n": (-(1 << 11), (1 << 11) - 1), "b": (-(1 << 39), (1 << 39) - 1),
              "s": (0, ir.S_MAX)}
    for name, (low, high) in limits.items():
        values = np.asarray(getattr(q, name))
        if values.shape != (node.shape[0],) or values.dtype.kind not in "iu":
            raise GraphError(f"{where}: requantizer {name} must be {node.shape[0]} integers")
        if values.min() < low or values.max() > high:
            raise GraphError(f"{where}: requantizer {name} must lie in {low}..{high}")


def _count(where, inputs, low, high):
    if not low <= len(inputs) <= high:
        raise GraphError(f"{where}: it has {len(inputs)} inputs")


def _input(node, where, *inputs):
    _count(where, inputs, 0, 0)
    if node.table.shape != (node.shape[0], 256):
        raise GraphError(f"{where}: its table must have shape ({node.shape[0]}, 256), not {node.table.shape}")
    if not node.format.contains(node.table).all():
        raise GraphError(f"{where}: its table holds values that are not levels of {node.format}")
    return [tuple(node.shape)]


def _conv(node, where, *inputs):
    _count(where, inputs, 1, 2)
    c, h, w = inputs[0].shape
    out, per_group, ky, kx = node.weight.shape
    if node.groups < 1 or c != per_group * node.groups or out % node.groups:
        raise GraphError(f"{where}: {c} input channels do not fit weights of {per_group} in {node.groups} groups")
    if min(node.stride) < 1 or min(node.dilation) < 1 or min(node.padding) < 0:
        raise GraphError(f"{where}: stride and dilation must be at least 1, padding at least 0")
    ranges = [window_counts(size, (k - 1) * d + 1, s, p)
              for size, k, s, p, d in zip((h, w), (ky, kx), node.stride, node.padding, node.dilation)]
    if node.shape[0] == out and all(low <= size <= high for size, (low, _, high) in zip(node.shape[1:], ranges)):
        shape = tuple(node.shape)
    else:
        shape = (out, *(even for _, even, _ in ranges))
    if len(inputs) == 2 and tuple(inputs[1].shape) != shape:
        raise GraphError(f"{where}: its residual has shape {tuple(inputs[1].shape)}, not {shape}")
    return [shape]


class WindowCounts(NamedTuple):
    """How many windows a node's shape may ask for along one axis."""

    fewest: int
    usual: int
    most: int


def window_counts(size: int, reach: int, stride: int, padding: int) -> WindowCounts:
    """How many windows of a convolution or max pool a node's shape may ask for, along one axis: (fewest, most usual, most).

    The fewest need no padding behind the map, the usual as much as before it; one of the most still begins in the map.
    """
    even = (size + 2 * padding - reach) // stride + 1
    return WindowCounts(max(1, (size + padding - reach) // stride + 1), even, max(even, (size + padding - 1) // stride + 1))


def _linear(node, where, *inputs):
    _count(where, inputs, 1, 1)
    if node.weight.shape[1] != int(np.prod(inputs[0].shape)):
        raise GraphError(f"{where}: its weights take {node.weight.shape[1]} values, its input has "
                         f"{int(np.prod(inputs[0].shape))}")
    return [(node.weight.shape[0], 1, 1)]


def _pool(node, where, *inputs):
    _count(where, inputs, 1, 1)
    c, h, w = inputs[0].shape
    ranges = []
    for axis, size in enumerate((h, w)):
        k, s, p = node.kernel[axis], node.stride[axis], node.padding[axis]
        if not (k >= 1 and s >= 1 and 0 <= p < k):
            raise GraphError(f"{where}: padding must be smaller than the kernel, and kernel and stride at least 1")
        ranges.append(window_counts(size, k, s, p))
    usual = (c, *(even for _, even, _ in ranges))
    asked = tuple(node.shape)
    if isinstance(node, ir.MaxPool2d) and asked[0] == c and all(
            low <= count <= high for count, (low, _, high) in zip(asked[1:], ranges)):
        return [asked]
    return [usual]


def _same(node, where, *inputs):
    _count(where, inputs, 1, 2)
    if any(tuple(other.shape) != tuple(inputs[0].shape) for other in inputs):
        raise GraphError(f"{where}: its inputs have different shapes")
    return [tuple(inputs[0].shape)]


def _concat(node, where, *inputs):
    _count(where, inputs, 1, 1 << 20)
    if len({(str(other.format), other.scale, tuple(other.shape[1:])) for other in inputs}) != 1:
        raise GraphError(f"{where}: all its inputs must share format, scale, height and width")
    return [(sum(other.shape[0] for other in inputs), *inputs[0].shape[1:])]


def _upsample(node, where, *inputs):
    _count(where, inputs, 1, 1)
    c, h, w = inputs[0].shape
    return [(c, h * node.factor[0], w * node.factor[1])]


def _lookup(node, where, *inputs):
    _count(where, inputs, 1, 1)
    if node.table.shape != (ir.LOOKUP_ENTRIES,):
        raise GraphError(f"{where}: its table must have shape ({ir.LOOKUP_ENTRIES},), not {node.table.shape}")
    for name, form in (("input", inputs[0].format), ("result", node.format)):
        if not _is_byte(form):
            raise GraphError(f"{where}: its {name} must have at most 8 bits, not the format {form}")
    if not node.format.contains(node.table).all():
        raise GraphError(f"{where}: its table holds values that are not levels of {node.format}")
    return [tuple(inputs[0].shape)]


def _is_byte(form: Format) -> bool:
    """Whether 8 bits hold all levels of a format, as a two's complement if it has signs."""
    low, high = (-128, 127) if form.signed else (0, 255)
    return low <= form.min and form.max <= high


_SHAPES = {ir.Input: _input, ir.Conv2d: _conv, ir.Linear: _linear, ir.MaxPool2d: _pool, ir.AvgPool2d: _pool,
           ir.Add: _same, ir.Requantize: _same, ir.Concat: _concat, ir.Upsample: _upsample,
           ir.Lookup: _lookup}
