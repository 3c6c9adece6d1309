"""Networks with parts that are joined and pixels that are repeated: RTL = integer graph, cycle model = RTL."""

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.networks.registry import network
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate

SHAPE = (3, 32, 32)


@pytest.mark.parametrize("name, concats", [("unet", 3), ("googlenet", 9), ("densenet121", 62)])
def test_rtl_runs_the_network(bench, name, concats):
    """Random weights, calibrated; small images, so that maps end at one pixel."""
    images = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    model = quantize(network(name)().eval(), Recipe(weights="esb4.1", activations="u4"), SHAPE)
    graph = export(calibrate(model, images), name, SHAPE)
    assert sum(type(node).__name__ == "Concat" for node in graph.nodes) == concats
    program = compile_graph(graph, ENGINES["base16x16"])
    assert "Concat" not in {layer["op"] for layer in program.meta["layers"]}, "read in parts"
    _, engine = bench("base16x16")
    engine.load(program)
    result = engine.run(images[:1])
    expected = execute(graph, images[:1])
    assert np.array_equal(result.outputs, expected) and len(np.unique(expected)) > 10
    assert result.cycles == count_cycles(program).total
