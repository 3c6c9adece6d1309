"""Networks that end in a ReLU: their output is unsigned, and at most what the ReLU lets through."""

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.numbers import Unsigned
from esbflow.quant.export import export
from esbflow.quant.recipe import Recipe
from tests.compiler.machine import Machine
from tests.sw.exported_models import both, calibrated, images_for

SHAPE = (3, 9, 8)


class Ends(nn.Module):
    """Two convolutions, the second perhaps with a residual, and a last operation."""

    def __init__(self, last, residual=False):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last, self.residual = last, residual

    def forward(self, x):
        x = self.first(x).relu()
        y = self.second(x)
        return self.last(y + x if self.residual else y)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("last", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0.0, 0.125)], ids=str)
def test_graph_and_engine_compute_what_torch_does(last, residual):
    torch.manual_seed(0)
    model = calibrated(Ends(last, residual), Recipe(weights="s4", activations="u4", residual_activations=None), SHAPE)
    images = images_for(SHAPE, 2, 1)
    graph = export(model, "ends", SHAPE)
    integers = execute(graph, images)
    with torch.no_grad():
        fake = model(torch.from_numpy(images).float() / 255).numpy()
    assert isinstance(graph.output.format, Unsigned) and graph.output.format.bits > 8
    # One of the stored values is nearly between two levels, and moves what reads it by a level times a weight.
    assert (fake == 0).any() and (fake > 0).any() and abs(integers * graph.output.scale - fake).max() < 0.06 * fake.max()
    assert np.median(abs(integers * graph.output.scale - fake)) < 0.001 * fake.max()
    if type(last) is nn.Hardtanh:
        assert (integers == graph.output.format.max).any() and fake.max() == 0.125
    assert np.array_equal(*both(model, SHAPE))
    program = compile_graph(graph, ENGINES["small8x16"], batch=2)
    assert np.array_equal(Machine(program).run(images), integers)
