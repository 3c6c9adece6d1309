"""Graphs and the programs compiled from them, as tests need them."""

import numpy as np

from esbflow.compiler.bipolar import store_bipolar
from esbflow.compiler.compilation import Compilation
from esbflow.compiler.errors import CompileError
from esbflow.compiler.lower import lower
from esbflow.compiler.packing import alike
from esbflow.compiler.passes import run
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.random import random_graph, random_weights
from esbflow.graph.validate import validate
from esbflow.numbers import Signed, Unsigned
from tests.sw.graph_nodes import constants, input_node

BOUNDS = {"tiny4x4": {"channels": 10, "size": 10}, "small8x16": {"channels": 24, "size": 12},
          "base16x16": {"channels": 40, "size": 14}, "large64x64": {"channels": 80, "size": 10}}

_SMALL = dict(accumulator_depth=256, activation_beats=256, residual_beats=256)
NARROW = {config.name: config for config in (
    EngineConfig("narrow8x16", rows=8, cols=16, weight_min=-2, weight_max=1, digit_bits=2, **_SMALL),
    EngineConfig("narrow-table8x16", rows=8, cols=16, array="table", table_groups=2, weight_min=-2, weight_max=1, digit_bits=2,
                 channel_unit=8, **_SMALL),
    EngineConfig("ternary4x8", rows=4, cols=8, array="table", weight_min=-1, weight_max=1, digit_bits=2, **_SMALL),
    EngineConfig("mixed8x8", rows=8, cols=8, weight_min=-7, weight_max=7, digit_bits=2, channel_unit=4, **_SMALL),
    EngineConfig("w3-8x16", rows=8, cols=16, array="table", weight_min=-4, weight_max=3, **_SMALL),
)}
"""Engines whose digits of activations or weights are narrower than 4 bits."""
TALL = {config.name: config for config in (
    EngineConfig("tall16x8", rows=16, cols=8, weight_path_beats=2, weight_ports=2, channel_unit=4, slices=2, stripes=True,
                 function_table=True, batch_tiles=True, **_SMALL),
    EngineConfig("tall16x4-w2", rows=16, cols=4, array="table", table_groups=2, weight_min=-2, weight_max=1, digit_bits=2,
                 requantizer="shift", requantize_lanes=2, channel_unit=4, map_beats=64, batch_tiles=True,
                 **_SMALL),
)}
"""Engines with more rows than columns: two and four accumulators a pixel, with most of what an engine can have."""
TESTED = {**{name: ENGINES[name] for name in BOUNDS}, **NARROW, **TALL}
BOUNDS |= {name: {"channels": 12, "size": 7} for name in NARROW}
BOUNDS |= {name: {"channels": 24, "size": 9, "powers": config.requantizer == "shift"} for name, config in TALL.items()}


def one_conv(weight, in_shape, form=None, more=(0, 0), **fields):
    """A graph of one convolution, with `more` windows than even padding gives."""
    weight = np.asarray(weight, dtype=np.int64)
    fields = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **fields}
    out = tuple((size + 2 * p - (k - 1) * d - 1) // s + 1 + extra for size, k, s, p, d, extra in zip(
        in_shape[1:], weight.shape[2:], fields["stride"], fields["padding"], fields["dilation"], more, strict=True))
    return validate(ir.Graph("one", [
        input_node(in_shape),
        ir.Conv2d("conv", ("input",), (len(weight), *out), form or Signed(32), 1.0, weight=weight,
                  weight_format=Signed(8), weight_scale=np.ones(len(weight)), requantizer=constants(len(weight)),
                  **fields)]))


def four_bit_input(shape):
    """An input of one digit."""
    return ir.Input("input", (), shape, Unsigned(4), 1.0, table=np.tile(np.arange(256) >> 4, (shape[0], 1)))


def shortcut(random, stride=(4, 4), size=(60, 22), channels=40):
    """A convolution 1x1 with a stride, to which the output of one of 3x3 with that stride is added."""
    c, made = (int(random.integers(1, channels + 1)) for _ in range(2))
    out = tuple((pixels - 1) // step + 1 for pixels, step in zip(size, stride, strict=True))
    graph = ir.Graph("shortcut", [four_bit_input((c, *size))])
    for name, kernel in (("three", 3), ("one", 1)):
        weight = random_weights(random, (made, c, kernel, kernel), "s4")
        added = name == "one"
        graph.nodes.append(ir.Conv2d(
            name, ("input", "three") if added else ("input",), (made, *out), Signed(8) if added else Signed(4), 1.0,
            weight=weight, weight_format=Signed(8), weight_scale=np.ones(made), stride=stride, padding=(kernel // 2,) * 2,
            requantizer=constants(made, m=1, s=5, n=int(random.integers(-3, 4)) * 16 * added)))
    return validate(graph)


def compiled(random, config, **bounds):
    """A random graph that fits the engine, and its program."""
    while True:
        graph = random_graph(random, **bounds)
        try:
            return graph, compile_graph(graph, config, int(random.integers(1, 4)), fold=bool(random.integers(2)))
        except CompileError:
            continue


NARROW_KINDS = ("conv", "conv", "conv", "max", "residual", "requantize", "linear", "add")
"""What reads or makes maps with several pixels in a word, and some that cannot."""


def way(random, config):
    """Whether slices work on stripes of one image: yes, no, or what the compiler finds faster."""
    return random.choice((True, True, False, None)) if config.stripes else None


def packed(random, config):
    """A random graph of few channels, a packing of its maps, and the program that has it; slower than without, mostly."""
    while True:
        graph = random_graph(random, channels=5, size=24, kinds=NARROW_KINDS, layers=int(random.integers(2, 5)))
        inner, pixels = {node.name for node in graph.nodes[1:-1]}, {}
        for group in alike(lower(store_bipolar(graph))):
            if group <= inner:
                pixels.update(dict.fromkeys(sorted(group), int(random.choice((1, 2, 2, 4, 8)))))
        batch, fold = int(random.integers(1, 4)), bool(random.integers(2))
        while any(count > 1 for count in pixels.values()):
            try:
                return graph, pixels, compile_graph(graph, config, batch, fold, pixels, way(random, config))
            except CompileError:
                del pixels[random.choice(sorted(pixels))]


def plans_of(graph, config, batch=1, fold=True):
    """The layers as they come to emission."""
    return run(Compilation(graph, config, batch, fold, None if fold else {})).plans
