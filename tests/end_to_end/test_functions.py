"""From torch to the RTL with functions of single values: a block of MobileNetV3, and random models with fresh seeds."""

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate, normalise
from tests.end_to_end.conftest import engine_of
from tests.sw.exported_models import images_for, randomise_norms
from tests.sw.random_models import WithFunctions

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")


class Block(nn.Module):
    """Inverted residuals with hard-swish and without squeeze-and-excitation (Howard et al., MobileNetV3, 2019), a stem and a head."""

    shape = (3, 24, 24)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.expand, self.depth = (nn.Sequential(layer, nn.BatchNorm2d(48), nn.Hardswish()) for layer in (
            nn.Conv2d(16, 48, 1, bias=False), nn.Conv2d(48, 48, 5, 1, 2, groups=48, bias=False)))
        self.project = nn.Sequential(nn.Conv2d(48, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Sequential(nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.Hardswish(), nn.AdaptiveAvgPool2d(1),
                                  nn.Flatten(), nn.Linear(24, 32), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(32, 10))

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.project(self.depth(self.expand(x))) + x)


def equals_rtl(bench, name, graph, images, batch):
    program = compile_graph(graph, engine_of(name), batch=batch)
    _, engine = bench(name)
    engine.load(program)
    result = engine.run(images)
    assert np.array_equal(result.outputs, execute(graph, images))
    assert result.cycles == result.runs * count_cycles(program).total
    return program


@pytest.mark.parametrize("recipe", [Recipe(weights="s8", activations="u8"), Recipe(weights="s4", signed_activations="s4")],
                         ids=["8 bits", "4 bits"])
def test_a_block_of_mobilenet_v3_runs_as_torch_computes_it(bench, recipe):
    torch.manual_seed(7)
    model, images = Block(), images_for(Block.shape, 8, 7)
    randomise_norms(model, images, 7)
    quantized = calibrate(quantize(model, recipe), images).eval()
    graph = export(quantized, "block", Block.shape)
    assert sum(isinstance(node, ir.Lookup) for node in graph.nodes) == 5
    program = equals_rtl(bench, "lookup8x16", graph, images[:4], 2)
    # No table is a layer of its own.
    assert "Lookup" not in {layer["op"] for layer in program.meta["layers"]}
    with torch.no_grad():
        fake = quantized(normalise(images, recipe.mean, recipe.std)).numpy()
    found = execute(graph, images)[:, :, 0, 0] * graph.output.scale
    assert np.sqrt(np.square(found - fake).mean()) < 0.05 * np.sqrt(np.square(fake).mean())


@pytest.mark.parametrize("number", range(4))
def test_random_models_with_functions_equal_graph_and_cycle_model(bench, seed, number):
    draw = int(np.random.default_rng((seed, 4000 + number)).integers(1 << 30))
    model = WithFunctions(draw, steps=12)
    images = images_for(model.shape, 8, draw)
    randomise_norms(model, images, draw)
    graph = export(calibrate(quantize(model, (Recipe(), Recipe(weights="s8", activations="u8"))[number % 2]), images), "random",
                   model.shape)
    equals_rtl(bench, "lookup8x16", graph, images[:4], 2)
