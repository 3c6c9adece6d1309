"""The reference executor: what every other part must equal, value for value. NumPy only."""

from collections.abc import Callable
from typing import Any

import numpy as np

from esbflow.graph import host, ir
from esbflow.graph.errors import GraphError
from esbflow.maps import as_maps

CHUNK_BYTES = 128 << 20
"""Images are run in chunks whose unfolded windows take about this much memory."""


def execute(graph: ir.Graph, images: np.ndarray, keep: bool = False) -> Any:
    """Run uint8 images (n, c, h, w) through the graph; sequences (n, c, length) are images one pixel high, and rows
    (n, features) images of one pixel.

    Returns the output, int64 (n, c, h, w), or {name: output} of several. With `keep`: every tensor by node name.

    Raises
    ------
    GraphError
        if the images' type or shape is not the graph's.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise GraphError(f"images must be uint8, not {images.dtype}; the graph's input table does the normalisation")
    images = as_maps(images, graph.input.shape, GraphError)
    if keep:
        return _run(graph, images)
    largest = max(_unfolded_bytes(graph, node) for node in graph.nodes)
    step = max(1, CHUNK_BYTES // max(1, largest))
    chunks = [_results(graph, _run(graph, images[i:i + step])) for i in range(0, len(images), step)]
    outputs = {name: np.concatenate([chunk[name] for chunk in chunks]) if chunks else np.zeros((0, *node.shape), np.int64)
               for name, node in graph.results.items()}
    return outputs if graph.outputs else outputs[graph.output.name]


def _results(graph: ir.Graph, values: dict) -> dict:
    return {name: values[node.name] for name, node in graph.results.items()}


def _unfolded_bytes(graph: ir.Graph, node: ir.Node) -> int:
    taps = 1
    if isinstance(node, ir.Conv2d):
        taps = int(np.prod(node.weight.shape[1:])) * node.groups
        return 8 * taps * node.shape[1] * node.shape[2]
    return 8 * int(np.prod(node.shape))


def _run(graph: ir.Graph, images: np.ndarray) -> dict:
    values: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        values[node.name] = compute(graph, node, images, *(values[name] for name in node.inputs))
    return values


def compute(graph: ir.Graph, node: ir.Node, images: np.ndarray, *inputs: np.ndarray) -> np.ndarray:
    """int64 (n, c, h, w): the integers of one node, from those of its inputs."""
    if isinstance(node, host.Host):
        return host.run(node, graph, *inputs)
    return EXECUTORS[type(node)](node, images, *inputs)


def requantize(node, acc: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
    """level nearest to (acc*m + r*n + b) / 2**s, per channel on axis 1; rounded once, ties toward plus infinity."""
    q = node.requantizer
    m, n, b, s = (np.asarray(v, dtype=np.int64).reshape(1, -1, 1, 1) for v in (q.m, q.n, q.b, q.s))
    total = acc * m + b
    if residual is not None:
        total = total + residual * n
    return node.format.round_shift(total, np.broadcast_to(s, total.shape))


def _windows(x: np.ndarray, kernel, stride, dilation, out) -> np.ndarray:
    """View (n, c, kernel_y, kernel_x, out_y, out_x) of a padded map."""
    sn, sc, sy, sx = x.strides
    return np.lib.stride_tricks.as_strided(
        x, (x.shape[0], x.shape[1], *kernel, *out),
        (sn, sc, sy * dilation[0], sx * dilation[1], sy * stride[0], sx * stride[1]), writeable=False)


def exact_type(weight: np.ndarray, x: np.ndarray) -> type:
    """In which products of weights (out, ...) and values x are summed exactly, in any order: float32 where no sum of
    magnitudes reaches 2**24, float64 below 2**53, int64 beyond."""
    largest = int(np.abs(weight).reshape(len(weight), -1).sum(axis=1).max(initial=0)) * max(1, int(np.abs(x).max(initial=0)))
    return np.float32 if largest < 2 ** 24 else np.float64 if largest < 2 ** 53 else np.int64


def convolve(x: np.ndarray, weight: np.ndarray, stride, padding, dilation, groups, out: tuple | None = None) -> np.ndarray:
    """Exact integer convolution, int64 (n, out, h, w). `out` (h, w) says how many zeros follow the last row and column;
    without it as many as `padding` puts before the first.

    Products are summed by matrix multiplication in the shortest type that is exact (see `exact_type`).
    """
    n, _channels, height, width = x.shape
    out_channels, per_group, ky, kx = weight.shape
    reach = ((ky - 1) * dilation[0] + 1, (kx - 1) * dilation[1] + 1)
    if out is None:
        out = ((height + 2 * padding[0] - reach[0]) // stride[0] + 1, (width + 2 * padding[1] - reach[1]) // stride[1] + 1)
    behind = ir.zeros_behind((height, width), out, reach, stride, padding)
    kind = exact_type(weight, x)
    padded: np.ndarray = np.pad(x.astype(kind), ((0, 0), (0, 0), (padding[0], behind[0]), (padding[1], behind[1])))
    windows = _windows(padded, (ky, kx), stride, dilation, out)
    result = np.empty((n, out_channels, *out), dtype=np.int64)
    per_out = out_channels // groups
    for g in range(groups):
        columns = windows[:, g * per_group:(g + 1) * per_group].reshape(n, per_group * ky * kx, out[0] * out[1])
        rows: np.ndarray = weight[g * per_out:(g + 1) * per_out].reshape(per_out, -1).astype(kind)
        result[:, g * per_out:(g + 1) * per_out] = (rows @ columns).reshape(n, per_out, *out)
    return result


def _input(node, images):
    return np.stack([node.table[c][images[:, c]] for c in range(node.shape[0])], axis=1).astype(np.int64)


def _conv(node, images, x, residual=None):
    acc = convolve(x, node.weight, node.stride, node.padding, node.dilation, node.groups, node.shape[1:])
    return requantize(node, acc, residual)


def _linear(node, images, x):
    flat = x.reshape(len(x), -1)
    kind = exact_type(node.weight, flat)
    acc = (flat.astype(kind) @ node.weight.T.astype(kind)).astype(np.int64)
    return requantize(node, acc[:, :, None, None])


def _max_pool(node, images, x):
    (py, px), (below, right) = node.padding, node.behind(x.shape[1:])
    lowest = np.iinfo(np.int64).min
    padded = np.pad(x, ((0, 0), (0, 0), (py, below), (px, right)), constant_values=lowest)
    return _windows(padded, node.kernel, node.stride, (1, 1), node.shape[1:]).max(axis=(2, 3))


def _avg_pool(node, images, x):
    py, px = node.padding
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
    return requantize(node, _windows(padded, node.kernel, node.stride, (1, 1), node.shape[1:]).sum(axis=(2, 3)))


def _lookup(node, images, x):
    return node.table[x & ir.LOOKUP_ENTRIES - 1]


def _upsample(node, images, x):
    return x.repeat(node.factor[0], axis=2).repeat(node.factor[1], axis=3)


EXECUTORS: dict[type, Callable] = {
    ir.Input: _input, ir.Conv2d: _conv, ir.Linear: _linear, ir.MaxPool2d: _max_pool, ir.AvgPool2d: _avg_pool,
    ir.Add: lambda node, images, x, r: requantize(node, x, r),
    ir.Requantize: lambda node, images, x: requantize(node, x),
    ir.Concat: lambda node, images, *xs: np.concatenate(xs, axis=1),
    ir.Upsample: _upsample, ir.Lookup: _lookup,
}
