"""Every method on its way to the integer graph, with every value compared."""

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import Schedule, calibrate, train
from tests.sw.quantizers import ACTIVATIONS, WEIGHTS


class Small(nn.Module):
    """Convolutions with batch norms, a shortcut, a pool, a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12)
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.linear(torch.flatten(self.pool(x), 1))


def exported(recipe, seed=0):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (64, 3, 9, 9), dtype=np.uint8)
    labels = random.integers(0, 4, 64)
    torch.manual_seed(seed)
    model = quantize(Small(), recipe)
    train(model, images, labels, Schedule(epochs=2, batch=16, rate=0.02))
    return model.eval(), export(model, shape=(3, 9, 9)), images


@pytest.mark.parametrize("text", WEIGHTS)
def test_every_method_reaches_the_integer_graph(text):
    if text == "vecq:10":
        pytest.skip("integers of 11 bits take three digits; the compiler's tests have such")
    model, graph, images = exported(Recipe(weights=text, activations="u4"))
    outputs = execute(graph, images)
    assert np.array_equal(outputs, IntegerModule(graph)(torch.from_numpy(images)).numpy())
    with torch.no_grad():
        real = model(torch.from_numpy(images).float() / 255).numpy()
    integer = outputs.reshape(real.shape) * graph.output.scale
    # Training-time arithmetic and the graph agree up to what a step of an activation is worth.
    assert np.corrcoef(real.ravel(), integer.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("text", ACTIVATIONS)
def test_every_activation_method_reaches_the_integer_graph(text):
    model, graph, images = exported(Recipe(weights="esb4.1", activations=text))
    outputs = execute(graph, images)
    assert np.array_equal(outputs, IntegerModule(graph)(torch.from_numpy(images)).numpy())
    with torch.no_grad():
        real = model(torch.from_numpy(images).float() / 255).numpy()
    assert np.corrcoef(real.ravel(), outputs.ravel())[0, 1] > (0.9 if "lqnets:2" in text else 0.97)


def test_an_excluded_layer_trains_but_has_no_integer_form():
    model = quantize(Small(), Recipe(exclude=("conv2",)))
    images = np.zeros((4, 3, 9, 9), np.uint8) + np.arange(9, dtype=np.uint8)
    calibrate(model, images)
    assert type(model.conv2) is nn.Conv2d and model(torch.zeros(1, 3, 9, 9)).shape == (1, 4)
    with pytest.raises(Exception, match=r"conv2.*no weight quantizer.*exclude list"):
        export(model, shape=(3, 9, 9))


def test_layers_and_activations_are_overridden_by_pattern():
    recipe = Recipe(weights="esb4.1", overrides=(("conv[23]", "twn"), ("linear", "s8")), activation_overrides=(("relu_1", "u2"),))
    model = quantize(Small(), recipe)
    assert [str(getattr(model, name).weight_quantizer.form) for name in ("conv1", "conv2", "conv3", "linear")] == [
        "s8", "esb2.0", "esb2.0", "s8"]
    assert [str(q.form) for q in model.quantizers.values() if str(q.form) != "s8"] == ["u8", "u4", "u2", "u4", "u8"]
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_residual_activations_are_stored_finer_than_what_multiplies():
    _model, graph, images = exported(Recipe(weights="esb2.0", activations="u2", residual_activations="u8"))
    formats = {node.name: str(node.format) for node in graph.nodes}
    assert formats["conv1"] == "u8" and formats["conv1_low"] == "u2" and formats["conv2"] == "u2"
    assert graph["conv2"].inputs == ("conv1_low", "conv1")
    assert np.array_equal(execute(graph, images), IntegerModule(graph)(torch.from_numpy(images)).numpy())
