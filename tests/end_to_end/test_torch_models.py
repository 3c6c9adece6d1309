"""From torch to the RTL: random models with fresh seeds, every value and every cycle.

8 models in each run, 2 of them of sequences; `ESBFLOW_LAYER_FACTOR=5 pytest tests/end_to_end/test_torch_models.py` runs 40.
"""

import os

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.sw.exported_models import images_for, randomise_norms
from tests.sw.random_models import RandomModel
from tests.sw.random_sequences import RandomSequenceModel

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
FACTOR = int(os.environ.get("ESBFLOW_LAYER_FACTOR", "1"))
RECIPES = (Recipe(), Recipe(weights="s8", activations="u8"),
           Recipe(weights="esb2.0", activations="u2", residual_activations="u8", first_weights="esb4.1"))


@pytest.mark.parametrize("number", range(8 * FACTOR))
def test_rtl_equals_graph_and_cycle_model(bench, seed, number):
    draw = int(np.random.default_rng((seed, 3000 + number)).integers(1 << 30))
    model = (RandomModel if number % 4 else RandomSequenceModel)(draw, steps=14)
    name = ("base16x16", "small8x16")[number % 2]
    images = images_for(model.shape, 8, draw)
    randomise_norms(model, images, draw)
    graph = export(calibrate(quantize(model, RECIPES[number % 3]), images), "random", model.shape)
    program = compile_graph(graph, ENGINES[name], batch=2)
    _, engine = bench(name)
    engine.load(program)
    result = engine.run(images[:4])
    where = f"seed {seed}, number {number}: {model.names}"
    assert np.array_equal(result.outputs, execute(graph, images[:4])), where
    assert result.cycles == result.runs * count_cycles(program).total, where
