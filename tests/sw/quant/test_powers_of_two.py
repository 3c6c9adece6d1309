"""Recipe(power_of_two=True): every factor of the integer graph is a power of two, with batch norms folded into weights."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.networks.lenet5 import LeNet5
from esbflow.numbers import ESB, Signed, Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.export import export
from esbflow.quant.methods.esb import ESBWeightQuantizer
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import Schedule, calibrate, evaluate, train
from esbflow.training.post_training import post_train
from tests.compiler.machine import Machine
from tests.sw.exported_models import Residual, both, calibrated, images_for, randomise_norms
from tests.sw.quantizers import gaussian

POWERS = Recipe(power_of_two=True, mean=(0.4,), std=(0.25,))


class Shortcuts(nn.Module):
    """A ResNet's blocks: an identity and a convolution to add, norms of both signs, a global mean of 35 pixels."""

    shape = (3, 10, 14)

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.down, self.side = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Conv2d(8, 12, 1, stride=2, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (8, 8, 12, 12))
        self.fc, self.norm, self.last = nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Linear(9, 5)

    def forward(self, x):
        x = F.relu(self.norms[0](self.stem(x)))
        x = F.relu(self.norms[1](self.first(x)) + x)
        x = F.relu(self.norms[2](self.down(x)) + self.norms[3](self.side(x)))
        return self.last(F.relu(self.norm(self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)))))


def is_power(values) -> bool:
    size = np.abs(np.asarray(values))
    return not (size & (size - 1)).any()


def check(graph, shape):
    """All factors are powers of two, but those of means and norms without a layer; the graph runs where lanes shift."""
    for node in graph.nodes:
        if getattr(node, "requantizer", None) is not None:
            exempt = isinstance(node, (ir.AvgPool2d, ir.Requantize))
            assert is_power(node.requantizer.n) and (exempt or is_power(node.requantizer.m)), node.name
    assert all(float(np.log2(node.scale)).is_integer() for node in graph.nodes[:-1])
    program = compile_graph(graph, replace(ENGINES["small8x16"], requantizer="shift"), 2)
    images = images_for(shape, 2, 9)
    assert np.array_equal(Machine(program).run(images), execute(graph, images))


@pytest.mark.parametrize("make", [Residual, LeNet5, Shortcuts])
@pytest.mark.parametrize("fields", [{}, dict(activations="uesb4.2", weights="esb5.2", activation_scale="ema"),
                                    dict(activations="pact:3", weights="pot:3", residual_activations="u8")])
def test_networks_export_to_powers_of_two_that_a_shifting_engine_computes(make, fields):
    torch.manual_seed(1)
    model, shape = make(), getattr(make, "shape", (1, 28, 28))
    randomise_norms(model, images_for(shape))
    model = calibrated(model, replace(POWERS, **fields), shape)
    graph, converted = both(model, shape)
    assert np.array_equal(graph, converted)
    check(export(model, "net", shape), shape)


def test_weights_are_those_of_the_norm_folded_in_before_they_are_quantized():
    torch.manual_seed(2)
    model = Shortcuts()
    randomise_norms(model, images_for(Shortcuts.shape))
    with torch.no_grad():
        model.norms[1].weight[::2] *= -1
    conv, norm = copy.deepcopy(model.first), copy.deepcopy(model.norms[1])
    quantized = quantize(model, POWERS).eval()
    levels, scale = quantized.get_submodule("first").weight_quantizer.integers(conv.weight)
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().abs().reshape(-1, 1, 1, 1)
    folded, power = ESBWeightQuantizer(ESB(4, 1), scale_mode="pow2").integers(conv.weight.detach() * gain)
    live = gain.flatten() > 0
    assert live.sum() == 7 and torch.equal(levels[live], folded[live])
    assert torch.allclose((scale * gain)[live], power[live])


def test_the_scale_follows_the_norm_that_copies_of_a_model_have():
    model = quantize(Shortcuts(), POWERS)
    other = copy.deepcopy(model).eval()
    quantizer = other.get_submodule("first").weight_quantizer
    before = quantizer.scale(other.get_submodule("first").weight)
    with torch.no_grad():
        model.get_submodule("norms.1").running_var.fill_(100)
        assert torch.equal(quantizer.scale(other.get_submodule("first").weight), before)
        other.get_submodule("norms.1").running_var.fill_(1.44)
    after = quantizer.scale(other.get_submodule("first").weight)
    assert not torch.equal(after, before)
    assert torch.allclose(torch.log2(after / 1.2) % 1, torch.zeros(()), atol=1e-4) or torch.allclose(
        (torch.log2(after / 1.2) + 0.5) % 1, torch.full((), 0.5), atol=1e-4)


def test_a_norm_without_a_gain_keeps_scales_finite():
    model = Shortcuts()
    with torch.no_grad():
        model.norms[1].weight.zero_()
    model = calibrated(model, POWERS, Shortcuts.shape)
    check(export(model, "net", Shortcuts.shape), Shortcuts.shape)


def test_training_keeps_powers_of_two_and_learns():
    torch.manual_seed(3)
    images, labels = images_for(Shortcuts.shape, 120), np.arange(120) % 2
    images[labels == 1] = images[labels == 1] // 3
    model = quantize(Shortcuts(), POWERS)
    train(model, images, labels, Schedule(epochs=6, batch=20, rate=0.05))
    assert evaluate(model, images, labels) > 90
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            assert float(np.log2(module.real_scale())).is_integer()
            assert module.step.grad is not None
    check(export(model, "net", Shortcuts.shape), Shortcuts.shape)


def test_quantization_without_training_keeps_powers_of_two():
    torch.manual_seed(4)
    model = Shortcuts()
    randomise_norms(model, images_for(Shortcuts.shape))
    check(export(post_train(model, POWERS, images_for(Shortcuts.shape, 40)), "net", Shortcuts.shape), Shortcuts.shape)


@pytest.mark.parametrize("form", [Unsigned(4), Signed(8), ESB(4, 2, signed=False)], ids=str)
def test_a_first_batch_chooses_the_power_of_two_of_less_error(form):
    for spread in (0.7, 1.0, 1.3):
        x = spread * gaussian(40, 100).clamp(min=form.min)
        quantizer = ActivationQuantizer(form, power_of_two=True)
        quantizer(x)
        scale = quantizer.real_scale()
        assert float(np.log2(scale)).is_integer()

        def error(step, x=x):
            return np.square(form.nearest(x.numpy() / step) * step - x.clamp(min=form.min).numpy()).sum()

        assert error(scale) <= min(error(scale / 2), error(scale * 2)) * 1.001


@pytest.mark.parametrize("mean, std, scale", [((0.0,), (1.0,), 2.0**-8), ((0.5,), (0.25,), 2.0**-6), ((0.1,), (0.9,), 2.0**-7)])
def test_the_input_has_the_finest_power_of_two_that_loses_no_more_than_its_last_code(mean, std, scale):
    recipe = Recipe(power_of_two=True, mean=mean, std=std)
    table, quantizer = recipe.input_table(1), recipe.input_quantizer()
    real = (np.arange(256) / 255 - mean[0]) / std[0]
    assert quantizer.real_scale() == scale
    assert np.abs(table[0] * scale - real).max() <= scale


@pytest.mark.parametrize("fields, message", [
    (dict(weights="vecq:2"), r"power_of_two: the method 'vecq:2' has scales of its own; use a format \(esb4.1, s8\)"),
    (dict(activations="lqnets:2"), r"power_of_two: the method 'lqnets:2' has levels of its own; use a format \(u4, uesb4.2\) or "
                                   r"pact:BITS"),
    (dict(scale_mode="learned"), r"power_of_two chooses the scales of weights; leave scale_mode 'learned' out"),
    (dict(per_channel=False), r"power_of_two needs a scale for each channel; leave per_channel out")])
def test_what_has_no_powers_of_two_is_refused(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Recipe(power_of_two=True, **fields)


def test_a_recipe_of_powers_of_two_reads_back():
    assert Recipe.from_json(POWERS.to_json()) == POWERS


def test_a_limited_relu_ends_at_a_power_of_two_within_the_limit():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    model = quantize(model, POWERS)
    with torch.no_grad():
        model.get_submodule("0").weight.mul_(100)
    calibrate(model, images_for((3, 10, 10)))
    quantizer = next(module for module in model.modules() if isinstance(module, ActivationQuantizer))
    assert quantizer.real_scale() == 0.25
    check(export(model, "net", (3, 10, 10)), (3, 10, 10))
