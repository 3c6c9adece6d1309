"""Random torch models of maps and of sequences: the integer graph is the frozen module and the engine's program on every value, and near to what torch
computes."""

import numpy as np
import pytest
import torch

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.maps import as_maps, map_shape
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.compiler.machine import Machine
from tests.sw.exported_models import distance, images_for, randomise_norms
from tests.sw.random_models import RandomModel
from tests.sw.random_sequences import RandomSequenceModel

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
FINE = Recipe(weights="s8", activations="u8")
LOW = Recipe(weights="esb4.1", activations="u4", residual_activations="u8", mean=(0.4,), std=(0.3,))


@pytest.mark.parametrize("kind, seed", [(RandomModel, seed) for seed in range(24)]
                         + [(RandomSequenceModel, seed) for seed in range(16)])
def test_all_ways_from_torch_to_the_engine_agree(kind, seed):
    model, recipe = kind(seed), (FINE, LOW)[seed % 2]
    images = images_for(model.shape, 12, seed)
    real_images = (torch.from_numpy(images).float() / 255 - recipe.mean[0]) / recipe.std[0]
    randomise_norms(model, images, seed).eval()
    with torch.no_grad():
        real = model(real_images).numpy()
        quantized = calibrate(quantize(model, recipe, model.shape if seed % 4 < 2 else None), images, recipe.mean, recipe.std)
        fake = quantized.eval()(real_images).numpy()
    graph = export(quantized, "random", model.shape)
    assert graph.input.shape == map_shape(model.shape)
    integers = execute(graph, images)
    found, step = integers.reshape(fake.shape) * graph.output.scale, graph.output.scale
    # Constants of 12 bits and ties move a tensor by a step here and there; an operator misread moves it by half of itself.
    assert distance(found, fake, step) < (0.08 if recipe is FINE else 0.15)
    if recipe is FINE:
        assert distance(found, real, step) < 0.12
    assert np.array_equal(IntegerModule(graph)(torch.from_numpy(images)).numpy(), integers)
    program = compile_graph(graph, ENGINES["base16x16" if seed % 3 else "small8x16"], 2)
    assert np.array_equal(Machine(program).run(as_maps(images[:2], graph.input.shape)), integers[:2])
