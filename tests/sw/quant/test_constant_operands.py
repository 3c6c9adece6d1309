"""Products and sums with constants become gain and offset of the engine layer that they belong to."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.quant.affine import Affine
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.sw.exported_models import both, images_for

FINE = Recipe(weights="s8", activations="u8", residual_activations=None)
SHAPE = (3, 8, 7)


class Scaled(nn.Module):
    """A scaled residual, LayerScale, constants before and after layers, one of them the network's last operation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(i, 6, 3, padding=1) for i in (3, 6, 6))
        self.last, self.heat = nn.Linear(6, 4), nn.Parameter(torch.tensor(2.0))
        self.gamma = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(1, 6, 1, 1))

    def forward(self, x):
        x = F.relu(self.first(x) * 0.5 + self.shift)
        x = F.relu(self.second(x) * self.gamma + x)
        y = torch.mul(self.third(x), 0.17)
        y = F.relu(y.add(x))
        y = (1 - y).relu().div(1.5)
        return -self.last(y.mean((2, 3))) / self.heat


def calibrated_pair():
    torch.manual_seed(0)
    model, images = Scaled().eval(), images_for(SHAPE, 8, 1)
    with torch.no_grad():
        expected = model(torch.from_numpy(images).float() / 255)
    return model, expected, calibrate(quantize(model, FINE), images).eval(), images


def test_the_graph_computes_what_torch_does():
    _, expected, quantized, images = calibrated_pair()
    with torch.no_grad():
        fake = quantized(torch.from_numpy(images).float() / 255)
    assert (fake - expected).abs().max() < 0.05 * expected.abs().max()
    graph = export(quantized, "scaled", SHAPE)
    real = execute(graph, images)[:, :, 0, 0] * graph.output.scale
    assert abs(real - fake.numpy()).max() < 0.03 * abs(fake).max()
    integers, module = both(quantized, SHAPE)
    assert np.array_equal(integers, module)


def test_constants_cost_no_layer_where_a_layer_can_take_them_in():
    _, _, quantized, _ = calibrated_pair()
    kinds = [type(node).__name__ for node in export(quantized, "scaled", SHAPE).nodes]
    # 1 - y and the division behind its ReLU change stored tensors; all others go with the layer before.
    assert kinds == ["Input", "Conv2d", "Conv2d", "Conv2d", "Requantize", "Requantize", "AvgPool2d", "Linear"]


def test_parameters_go_on_training_and_are_saved():
    model, _, quantized, images = calibrated_pair()
    quantized.train()(torch.from_numpy(images).float() / 255).square().sum().backward()
    assert model.gamma.grad.abs().min() > 0 and model.heat.grad.abs() > 0
    assert {id(p) for p in quantized.parameters()} >= {id(p) for p in (model.gamma, model.heat)}
    with torch.no_grad():
        model.gamma.mul_(3)
    _, _, again, _ = calibrated_pair()
    again.load_state_dict(quantized.state_dict())
    assert np.array_equal(*(execute(export(m, "net", SHAPE), images) for m in (quantized, again)))


class Wrapped(nn.Module):
    def __init__(self, call, constant=None):
        super().__init__()
        self.conv, self.call, self.constant = nn.Conv2d(1, 4, 3), call, constant

    def forward(self, x):
        return self.call(self, x)


@pytest.mark.parametrize("call, value", [
    (lambda net, x: net.conv(x) * 3, 3.0), (lambda net, x: 3 * net.conv(x), 3.0), (lambda net, x: net.conv(x) / 4, 0.25),
    (lambda net, x: torch.div(net.conv(x), 4), 0.25), (lambda net, x: net.conv(x).mul(other=2.0), 2.0),
    (lambda net, x: -net.conv(x), -1.0), (lambda net, x: torch.negative(net.conv(x)), -1.0)])
def test_factors(call, value):
    check(call, np.full(4, value), np.zeros(4))


@pytest.mark.parametrize("call, factor, value", [
    (lambda net, x: net.conv(x) + 3, 1, 3.0), (lambda net, x: 2.5 + net.conv(x), 1, 2.5), (lambda net, x: net.conv(x).add(1), 1, 1.0),
    (lambda net, x: net.conv(x) - 3, 1, -3.0), (lambda net, x: 3 - net.conv(x), -1, 3.0)])
def test_shifts(call, factor, value):
    check(call, np.full(4, factor), np.full(4, value))


def check(call, factor, shift):
    quantized = quantize(Wrapped(call))
    (module,) = [module for module in quantized.modules() if isinstance(module, Affine)]
    assert all(np.array_equal(a, b) for a, b in zip(module.coefficients(4, 4, "here"), (factor, shift), strict=True))
    x = torch.randn(2, 4, 3, 3)
    assert torch.allclose(module(x), x * float(factor[0]) + float(shift[0]), atol=1e-6)


def test_sizes_are_no_constants_of_tensors():
    quantized = quantize(Wrapped(lambda net, x: net.conv(x).view(x.shape[0], 4 * (x.shape[2] - 2) * (x.shape[3] - 2))))
    assert not any(isinstance(module, Affine) for module in quantized.modules())


@pytest.mark.parametrize("call, message", [
    (lambda net, x: net.conv((x - 0.5) * 2), "sub: it changes the input; take it out of the model and give mean and std to the "
                                             "recipe"),
    (lambda net, x: net.conv(x) / net.conv(x), "truediv: operator truediv has no integer form; .*"),
    (lambda net, x: torch.add(net.conv(x), 1, alpha=2), "add: only the plain sum of two tensors, or of a tensor and a constant, "
                                                        "has an integer form; leave alpha and out away")])
def test_what_is_no_gain_and_offset_is_refused(call, message):
    with pytest.raises(GraphError, match=f"^{message}$"):
        quantize(Wrapped(call))


@pytest.mark.parametrize("constant, message", [
    (torch.ones(4, 6, 6), r"its constant of shape \(4, 6, 6\) is neither one number nor one for each of 4 channels; fold it .*"),
    (torch.ones(6), r"its constant of shape \(6,\) is neither one number nor one for each of 4 channels; .*"),
    (torch.zeros(1), "it divides by zero")])
def test_constants_without_an_integer_form_are_refused(constant, message):
    model = Wrapped(lambda net, x: net.conv(x) / net.constant, nn.Parameter(constant))
    images = images_for((1, 8, 8))
    with pytest.raises(GraphError, match=rf"^\w+: {message}$"):
        export(calibrate(quantize(model), images), "net", (1, 8, 8))


def test_the_constants_are_read_as_modules_alone():
    assert not [node for node in quantize(Scaled()).graph.nodes if node.op == "get_attr"]
