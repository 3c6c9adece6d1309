"""What learned bits cost: the engine's cycles for a second pass, layer by layer."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.networks.registry import NETWORKS
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training import api
from esbflow.training.bit_costs import pass_cycles
from esbflow.training.loop import Schedule, calibrate


class Branches(nn.Module):
    """The layer that is called first is closed last: its sum waits for the branch."""

    def __init__(self):
        super().__init__()
        self.trunk, self.short = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 24, 1)
        self.long1, self.long2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        x = torch.relu(self.trunk(x))
        short = self.short(x)
        x = torch.relu(self.long2(torch.relu(self.long1(x))) + short)
        return self.head(x.mean((2, 3)))


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def total(model, recipe, images, config) -> int:
    low = calibrate(quantize(copy.deepcopy(model).eval(), recipe), images).eval()
    return count_cycles(compile_graph(export(low, "x", images.shape[1:]), config)).total


def test_a_layers_cost_is_what_eight_bits_for_it_alone_take():
    torch.manual_seed(0)
    model, images, config = Branches().eval(), pictures(8, 1, 12, 12), ENGINES["tiny4x4"]
    costs = pass_cycles(model, Recipe(), images, config)
    assert set(costs) == {"trunk", "short", "long1", "long2", "head"}
    four = Recipe(weights="s4", first_weights="s4", last_weights="s4")
    base = total(model, four, images, config)
    for layer, cost in costs.items():
        alone = total(model, replace(four, overrides=((layer, "s8"),)), images, config) - base
        assert cost == pytest.approx(alone, rel=0.05, abs=40), layer  # what overlaps the next layer is counted there
    assert costs["long2"] > 2.5 * costs["long1"] > 5 * costs["head"], "three times the output channels"


def test_the_model_and_overrides_are_left_as_they_are():
    model, images = Branches(), pictures(8, 1, 12, 12)
    before = copy.deepcopy(model.state_dict())
    recipe = Recipe(overrides=(("long1", "twn"),))
    assert pass_cycles(model, recipe, images, ENGINES["tiny4x4"]) == pass_cycles(model, Recipe(), images, ENGINES["tiny4x4"])
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["lenet5", "digits"])
def test_every_layer_with_weights_has_a_cost(name):
    network = NETWORKS[name]
    model = network()
    weighted = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    costs = pass_cycles(model, Recipe(), pictures(4, *network.shape), ENGINES["base16x16"])
    assert list(costs) == weighted and all(cost > 0 for cost in costs.values())


def test_training_by_a_recipe_weighs_the_bits(tmp_path, monkeypatch):
    seen = {}
    carry_out = Schedule.carry_out

    def spy(self, model, *arguments, **options):
        seen.update({name: m.weight_quantizer.cost for name, m in model.named_modules() if hasattr(m, "weight_quantizer")})
        return carry_out(self, model, *arguments, **options)

    recipe = api.named("digits").changed(weights="srq:8,learn", first_weights="srq:8,learn", last_weights="srq:8,learn")
    monkeypatch.setattr(Schedule, "carry_out", spy)
    api.train_network(recipe, tmp_path, epochs=1, train_images=64, progress=False, engine="tiny4x4")
    assert np.mean(list(seen.values())) == pytest.approx(1) and len(set(seen.values())) == len(seen)
    by_tiny = dict(seen)
    api.train_network(recipe, tmp_path, epochs=1, train_images=64, progress=False)
    assert seen != by_tiny, "another engine, other costs"

    def refused(*_):
        raise api.CompileError("no")

    monkeypatch.setattr(api, "pass_cycles", refused)
    api.train_network(recipe, tmp_path, epochs=1, train_images=64, progress=False)
    assert set(seen.values()) == {1.0}, "a network that the compiler does not take learns its bits all the same"
