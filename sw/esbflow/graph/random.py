"""Random integer graphs: nasty shapes, formats and operators, for tests that compare executors, RTL and driver."""

from dataclasses import replace

import numpy as np

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.validate import validate, window_counts
from esbflow.numbers import ESB, Binary, Format, Signed, Unsigned

KINDS = ("conv", "conv", "conv", "residual", "linear", "max", "average", "add", "requantize", "concat", "upsample")
CHANNEL_KINDS = ("depthwise", "depthwise", "max", "average", "conv", "residual", "add", "requantize", "concat", "upsample")
"""Mostly layers that keep each channel to itself."""
LOOKUP_KINDS = ("conv", "conv", "lookup", "lookup", "lookup", "max", "max", "average", "residual", "add", "requantize",
                "concat", "upsample", "linear")
"""Many functions of single values, and pools before and behind them."""
WEIGHTS = ("esb4.1", "s4", "s8", "half", "ternary", "s6", "zero", "esb3.0")
ACTIVATIONS = (Unsigned(4), Signed(4), Unsigned(8), Signed(8), Unsigned(2), ESB(4, 1), ESB(4, 2, signed=False),
               Unsigned(3), Signed(5), Binary())
OUTPUTS = (Signed(16), Signed(32), Unsigned(16), Unsigned(32), Unsigned(4), Unsigned(8), ESB(4, 1), Binary())
_MAGNITUDES = {"esb4.1": (0, 1, 2, 3, 4, 6, 8, 12), "half": (1, 3, 5, 7, 9, 11, 13, 15), "ternary": (0, 1), "zero": (0,),
               "esb3.0": (0, 1, 2, 4)}
_LIMITS = {"s4": (-8, 7), "s6": (-31, 31), "s8": (-128, 127)}


def random_weights(random: np.random.Generator, shape: tuple, kind: str) -> np.ndarray:
    """Integers of one of WEIGHTS."""
    if kind in _LIMITS:
        low, high = _LIMITS[kind]
        return random.integers(low, high + 1, shape)
    return random.choice(_MAGNITUDES[kind], shape) * random.choice((-1, 1), shape)


def random_images(random: np.random.Generator, graph: ir.Graph, count: int) -> np.ndarray:
    """uint8 images for a graph; now and then all zero or all 255."""
    images = random.integers(0, 256, (count, *graph.input.shape), dtype=np.uint8)
    if random.random() < 0.1:
        images[0] = random.choice((0, 255))
    return images


def random_graph(random: np.random.Generator, layers: int | None = None, channels: int = 24, size: int = 14,
                 kinds: tuple = KINDS, powers: bool = False) -> ir.Graph:
    """A valid graph of 1..4 (or `layers`) nodes after the input.

    `channels` and `size` bound the tensors. Requantizers are chosen so that outputs spread over their formats; with `powers`
    their factors are powers of two with a sign, and an n can be 0.
    """
    c, h, w = (int(random.integers(1, limit + 1)) for limit in (channels, size, size))
    form: Format = (Signed(8), Signed(8), Unsigned(4), Binary())[random.integers(4)]
    table = random.choice(form.levels, (c, 256))
    graph = ir.Graph("random", [ir.Input("input", (), (c, h, w), form, 1.0, table=table)])
    probe = random.integers(0, 256, (2, c, h, w), dtype=np.uint8)
    count = layers or int(random.integers(1, 5))
    while len(graph.nodes) <= count:
        last = len(graph.nodes) == count
        node = _node(random, graph, str(random.choice(kinds)), channels)
        if node is None:
            continue
        if not isinstance(node, (ir.MaxPool2d, ir.Concat, ir.Upsample, ir.Lookup)):
            form = (OUTPUTS if last else ACTIVATIONS)[random.integers(len(OUTPUTS if last else ACTIVATIONS))]
            node = _with_requantizer(random, graph, node, form, probe, powers)
        graph.nodes.append(node)
    return validate(graph)


def _source(random, graph) -> ir.Node:
    return graph.nodes[-1] if random.random() < 0.7 else graph.nodes[random.integers(len(graph.nodes))]


def _node(random, graph, kind, channels):
    source = _source(random, graph)
    name = f"{kind}{len(graph.nodes)}"
    c, h, w = source.shape
    if kind in ("conv", "residual", "depthwise"):
        return _conv(random, graph, name, source, kind == "residual", channels, kind == "depthwise")
    if kind == "linear":
        if c * h * w > 3000:
            return None
        out = int(random.integers(1, 40))
        weight = random_weights(random, (out, c * h * w), str(random.choice(WEIGHTS)))
        return ir.Linear(name, (source.name,), (out, 1, 1), Signed(32), 1.0, weight=weight, weight_format=Signed(8),
                         weight_scale=np.ones(out))
    if kind in ("max", "average"):
        return _pool(random, name, source, kind)
    if kind == "concat":
        alike = [node for node in graph.nodes if node.shape[1:] == (h, w) and node.format == source.format]
        parts = [alike[random.integers(len(alike))] for _ in range(random.integers(1, 4))] + [source]
        total = sum(part.shape[0] for part in parts)
        return ir.Concat(name, tuple(part.name for part in parts), (total, h, w), source.format, 1.0)
    if kind == "upsample":
        factor = tuple(int(f) for f in random.integers(1, 4, 2))
        shape = (c, h * factor[0], w * factor[1])
        return ir.Upsample(name, (source.name,), shape, source.format, 1.0, factor=factor) if max(shape[1:]) < 64 else None
    if kind == "lookup":
        form = ACTIVATIONS[random.integers(len(ACTIVATIONS))]
        table = random.choice(form.levels, ir.LOOKUP_ENTRIES)
        if random.random() < 0.4:  # rises with the levels of its input, from the least on
            table = np.roll(np.sort(table), 128 if source.format.signed else 0)
        return ir.Lookup(name, (source.name,), source.shape, form, 1.0, table=table)
    if kind == "add":
        others = [node.name for node in graph.nodes if node.shape == source.shape]
        return ir.Add(name, (source.name, str(random.choice(others))), source.shape, Signed(32), 1.0)
    return ir.Requantize(name, (source.name,), source.shape, Signed(32), 1.0)


def _conv(random, graph, name, source, with_residual, channels, depthwise=False):
    c, h, w = source.shape
    kernel, stride, padding, dilation = [1, 1], [1, 1], [0, 0], [1, 1]
    wide, strided, dilated, padded = random.random(4) < (0.3, 0.4, 0.3, 0.7)
    for axis, size in enumerate((h, w)):
        kernel[axis] = int(random.integers(1, 12 if wide else 4))
        dilation[axis] = int(random.integers(1, 3)) if dilated else 1
        stride[axis] = int(random.integers(1, 4)) if strided else 1
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        padding[axis] = int(random.integers(0, kernel[axis])) if padded else 0
        padding[axis] = max(padding[axis], -(-(reach - size) // 2) if reach > size else 0)
    divisors = [k for k in range(1, c + 1) if c % k == 0]
    groups = int(random.choice(divisors)) if random.random() < 0.3 else 1
    out = groups * int(random.integers(1, max(2, 2 * channels // groups)))
    out = min(out, groups * max(1, 48 // groups))
    if depthwise:
        groups = out = c
    shape = []
    for a, size in enumerate((h, w)):
        _, even, most = window_counts(size, (kernel[a] - 1) * dilation[a] + 1, stride[a], padding[a])
        shape.append(even + 1 if even < most and random.random() < 0.3 else even)
    shape = tuple(shape)  # now and then with a window more, and so more zeros behind the map
    inputs = (source.name,)
    if with_residual:
        candidates = [node for node in graph.nodes if node.shape == (out, *shape)]
        if not candidates:
            # Nothing has that shape: a 3x3 convolution that keeps the shape of some tensor.
            residual = graph.nodes[random.integers(len(graph.nodes))]
            if residual.shape[1:] != (h, w):
                residual = source
            kernel, stride, padding, dilation, groups = [3, 3], [1, 1], [1, 1], [1, 1], 1
            out, shape, candidates = residual.shape[0], (h, w), [residual]
        inputs += (candidates[random.integers(len(candidates))].name,)
    weight = random_weights(random, (out, c // groups, *kernel), str(random.choice(WEIGHTS)))
    return ir.Conv2d(name, inputs, (out, *shape), Signed(32), 1.0, weight=weight, weight_format=Signed(8),
                     weight_scale=np.ones(out), stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation),
                     groups=groups)


def _pool(random, name, source, kind):
    c, h, w = source.shape
    kernel = tuple(int(random.integers(1, min(4, size) + 1)) for size in (h, w))
    if kind == "average":
        if random.random() < 0.5:
            kernel = (h, w)
        stride = kernel if random.random() < 0.5 else (1, 1)
        shape = tuple((size - k) // s + 1 for size, k, s in zip((h, w), kernel, stride))
        return ir.AvgPool2d(name, (source.name,), (c, *shape), Signed(32), 1.0, kernel=kernel, stride=stride)
    stride = tuple(int(random.integers(1, 4)) for _ in range(2))
    padding = tuple(int(random.integers(0, k // 2 + 1)) for k in kernel)
    shape = []
    for size, k, s, p in zip((h, w), kernel, stride, padding):
        fewest, even, most = window_counts(size, k, s, p)
        shape.append(int(random.choice((fewest, even, even, most))))
    return ir.MaxPool2d(name, (source.name,), (c, *shape), source.format, 1.0, kernel=kernel, stride=stride,
                        padding=padding)


def _with_requantizer(random, graph, node, form, probe, powers):
    """Constants whose outputs reach about the ends of `form` on the probe images."""
    channels = node.shape[0]
    zero = np.zeros(channels, dtype=np.int64)
    added = len(node.inputs) > 1
    if powers:
        exponent = random.integers(0, 11, channels)
        m = random.choice((-1, 1), channels) << exponent
        n = random.choice((-1, 0, 1), channels) * added << np.clip(exponent + random.integers(-1, 11, channels), 0, 10)
    else:
        n = random.integers(-2047, 2048, channels) if added else zero
        m = random.integers(-2047, 2048, channels)
    constants = ir.Requantizer(m=m, n=n, b=random.integers(-10_000, 10_001, channels), s=zero)
    wide = replace(node, requantizer=constants)
    values = execute(ir.Graph("probe", [*graph.nodes, wide]), probe, keep=True)[node.name]
    reach = np.abs(values).max(axis=(0, 2, 3)) / max(1, form.max)
    shift = np.ceil(np.log2(np.maximum(reach, 1))).astype(np.int64) + random.integers(-1, 2)
    return replace(node, format=form, requantizer=replace(constants, s=np.clip(shift, 0, ir.S_MAX)))
