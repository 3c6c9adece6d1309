"""A quantized network beside the real one: what each step of a correction is shown."""

import copy

import pytest
import torch
from torch import nn

from esbflow.quant.quantize import quantize, real_layers
from esbflow.quant.recipe import Recipe
from esbflow.training import lockstep


class Shared(nn.Module):
    """One convolution used twice, a branch around it, and a ReLU that is used twice as well."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.relu = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.relu(x + self.again(self.again(x)))
        return self.last(x.mean((2, 3)))


@pytest.fixture
def pair():
    torch.manual_seed(1)
    real = Shared().eval()
    return quantize(real, Recipe(weights="esb4.1", activations="u4"), shape=(2, 5, 5)).eval(), real_layers(copy.deepcopy(real)).eval()


def visited(model, real, images, change=lambda name, module: None):
    seen = []

    def visit(name, module, inputs, wanted):
        seen.append((name, inputs.clone(), None if wanted is None else tuple(part.clone() for part in wanted)))
        change(name, module)

    lockstep.walk(model, real, images, visit)
    return seen


def test_each_call_comes_in_order_with_the_real_networks_input_and_output(pair):
    model, real = pair
    images = torch.rand(3, 2, 5, 5)
    seen = visited(model, real, images)
    layers = [name for name, _, wanted in seen if wanted is not None and name in ("first", "again", "last")]
    assert layers == ["first", "again", "again", "last"]
    found = next(wanted for name, _, wanted in seen if name == "first")
    torch.testing.assert_close(found[0], images)
    torch.testing.assert_close(found[1], real.get_submodule("first")(images))
    assert any(wanted is None for _, _, wanted in seen), "the real network has no quantizers"


def test_what_a_visit_changes_is_what_later_layers_are_fed(pair):
    model, real = pair
    images = torch.rand(3, 2, 5, 5)

    def silence(name, module):
        if name == "first":
            module.weight.zero_()
            module.bias.zero_()

    after = {name: inputs for name, inputs, _ in visited(model, real, images, silence)}
    assert not after["again"].sub(after["again"].flatten()[0]).any(), "a silent first layer leaves one value"


def test_parts_of_a_batch_give_what_the_whole_gives(monkeypatch):
    layer, images = nn.Conv2d(2, 3, 3), torch.rand(7, 2, 6, 6)
    calls = []

    def call(target, args, kwargs):
        calls.append(len(args[0]))
        return layer(*args)

    monkeypatch.setattr(lockstep, "BATCH", 3)
    torch.testing.assert_close(lockstep.in_parts(call, "layer", (images,), {}), layer(images))
    assert calls == [3, 3, 1]
