"""Quantization from a few images: each step brings the network nearer to the real one."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph.execute import execute
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize, real_layers
from esbflow.quant.recipe import Recipe
from esbflow.training.equalize import equalize
from esbflow.training.loop import Schedule, calibrate, train
from esbflow.training.post_training import PostTraining, activation_scale, post_train


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.linear(torch.flatten(self.pool(x), 1))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 240)
    images = (random.integers(0, 60, (240, 1, 8, 8)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    return train(Net(), images, labels, Schedule(epochs=4, batch=20, rate=0.05)).eval(), images


def distance(model, real, images):
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        return float((model(x) - real(x)).square().mean())


RECIPE = Recipe(weights="esb2.0", first_weights="esb3.1", last_weights="s8", activations="u3")


@pytest.mark.parametrize("change", [dict(biases=True), dict(batch_norms=True, biases=True), dict(rounding="outputs")])
def test_each_correction_brings_it_nearer(trained, change):
    real, images = trained
    nothing = dict(rounding="nearest", batch_norms=False, biases=False)
    plain, better = (post_train(real, RECIPE, images[:120], PostTraining(**how)) for how in (nothing, nothing | change))
    before, after = (distance(model, real, images[120:]) for model in (plain, better))
    assert after < before
    assert better.linear.bias is None or "biases" in change, "a layer without a bias gets one only to be corrected"


def test_the_whole_leaves_the_model_alone_and_exports(trained):
    real, images = trained
    kept = {name: value.clone() for name, value in real.state_dict().items()}
    said = []
    quantized = post_train(real, RECIPE, images[:100], PostTraining(equalize=True), report=said.append)
    assert all(torch.equal(value, kept[name]) for name, value in real.state_dict().items())
    assert said == ["equalize 2 pairs of layers", "calibrate on 100 images", "round and correct layer by layer"]
    assert not quantized.training
    plain = calibrate(quantize(copy.deepcopy(real), RECIPE).eval(), images[:100])
    assert distance(quantized, real, images) < 0.5 * distance(plain, real, images)
    outputs = execute(export(quantized, shape=(1, 8, 8)), images)
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        same = outputs.reshape(len(images), -1).argmax(1) == quantized(x).numpy().argmax(1)
    assert same.mean() > 0.97


def test_rounded_weights_are_levels_that_the_quantizer_keeps(trained):
    real, images = trained
    model = post_train(real, RECIPE, images[:60])
    nearest = post_train(real, RECIPE, images[:60], PostTraining(rounding="nearest"))
    for name in ("conv1", "conv2", "linear"):
        layer = model.get_submodule(name)
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), layer.weight, rtol=1e-4, atol=1e-6)
        assert not torch.equal(layer.weight, nearest.get_submodule(name).weight)


def test_methods_whose_scale_would_move_keep_their_weights(trained):
    real, images = trained
    recipe = Recipe(weights="vecq:2", first_weights="ul2q:2", last_weights="lqnets:2", activations="u4")
    model = post_train(real, recipe, images[:60])
    assert all(torch.equal(model.get_submodule(name).weight, real.get_submodule(name).weight)
               for name in ("conv1", "conv2", "linear"))


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("norm", [True, False])
def test_equalization_changes_no_output_and_evens_the_ranges(groups, norm):
    torch.manual_seed(0)
    middle = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), middle,
                          nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 5)).eval()
    with torch.no_grad():
        model[0].weight *= torch.logspace(-2, 1, 8).reshape(8, 1, 1, 1)
        x = torch.randn(4, 3, 8, 8)
        traced = real_layers(copy.deepcopy(model))
        assert equalize(traced) == 2
        torch.testing.assert_close(traced(x), model(x), rtol=1e-3, atol=1e-5)
        columns = traced.get_submodule("7").weight.reshape(5, 16, 9).abs().amax((0, 2))
        made = traced.get_submodule("3").weight.abs().flatten(1).amax(1)
    torch.testing.assert_close(columns, made, rtol=0.05, atol=1e-6)


def test_what_a_relu6_or_a_second_reader_stands_between_is_not_equalized():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))

        def forward(self, x):
            x = torch.relu(self.a(x))
            return self.b(x) + self.c(x)

    assert equalize(real_layers(Branches())) == 0
    assert equalize(real_layers(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1)))) == 0


def quantizer_with(step, form=Unsigned(4)):
    quantizer = ActivationQuantizer(form)
    with torch.no_grad():
        quantizer.step.fill_(step)
        quantizer.seen.fill_(True)
    return quantizer


def test_the_scale_of_least_error_is_found():
    values = torch.arange(16).float() * 0.5  # exactly on levels of scale one half
    for step in (1.0, 0.01, 100.0):
        assert float(activation_scale(values, quantizer_with(step), "error")) == pytest.approx(0.5, abs=1e-6)


def test_a_percentile_of_magnitudes_is_the_largest_level():
    values = torch.arange(1, 1001).float()
    assert float(activation_scale(values, quantizer_with(1.0), 99.0)) == pytest.approx(990 / 15)
    assert float(activation_scale(-values, quantizer_with(1.0, Signed(8)), 100)) == pytest.approx(1000 / 127)
    assert float(activation_scale(torch.zeros(9), quantizer_with(3.0), 99.0)) == 3
    assert float(activation_scale(torch.tensor([0.0] * 99 + [6.0]), quantizer_with(1.0), 50.0)) == pytest.approx(0.4)


@pytest.mark.parametrize("wrong, said", [
    (dict(rounding="best"), "rounding must be one of outputs, nearest, not 'best'"),
    (dict(ranges="max"), "ranges must be error or a percentile above 0 and up to 100, not 'max'"),
    (dict(ranges=0), "ranges must be error or a percentile above 0 and up to 100, not 0"),
    (dict(tune=-1), "tune must be 0 or a number of passes over the images, not -1"),
])
def test_unknown_choices_are_refused(wrong, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        PostTraining(**wrong)


def test_no_images_are_refused(trained):
    with pytest.raises(ValueError, match="there are no images to calibrate on"):
        post_train(trained[0], RECIPE, np.zeros((0, 1, 8, 8), np.uint8))


def test_layers_that_only_calls_are_left_of_are_corrected_like_any_other(trained):
    class Calls(nn.Module):
        """The same network, of calls on its own parameters, for one size of images."""

        def __init__(self, net):
            super().__init__()
            self.net, self.weight = net, net.linear.weight

        def forward(self, x):
            net = self.net
            x = F.pad(x, [x.shape[2] // 8] * 4) if x.shape[3] > 4 else x
            x = F.conv2d(x, net.conv1.weight)
            x = torch.relu(F.batch_norm(x, net.bn1.running_mean, net.bn1.running_var, net.bn1.weight, net.bn1.bias, False))
            x = torch.relu(F.conv2d(x, net.conv2.weight, net.conv2.bias, padding=1))
            return F.linear(torch.flatten(net.pool(x), 1), self.weight)

    real, images = trained
    expected = post_train(real, RECIPE, images[:120])
    found = post_train(Calls(copy.deepcopy(real)), RECIPE, images[:120], shape=(1, 8, 8))
    x = torch.from_numpy(images[120:]).float() / 255
    with torch.no_grad():
        assert torch.equal(found(x), expected(x))
    graphs = [execute(export(model, "net", (1, 8, 8)), images[120:]) for model in (found, expected)]
    np.testing.assert_array_equal(*graphs)


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.__class__(**{**RECIPE.__dict__, "activations": "pact:3", "weights": "vecq:2"})])
def test_tuning_brings_it_nearer_and_is_the_same_each_time(trained, recipe):
    real, images = trained
    said = []
    plain, tuned, again = (post_train(real, recipe, images[:120], PostTraining(tune=tune), said.append) for tune in (0, 40, 40))
    assert distance(tuned, real, images[120:]) < 0.7 * distance(plain, real, images[120:])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6)
               for a, b in zip(tuned.state_dict().values(), again.state_dict().values()))
    assert torch.equal(tuned.bn1.running_mean, plain.bn1.running_mean) and not tuned.training
    assert sum(text.startswith("tuned 40 of 40 times: error 0.") for text in said) == 2
    outputs = execute(export(tuned, shape=(1, 8, 8)), images)
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        same = outputs.reshape(len(images), -1).argmax(1) == tuned(x).numpy().argmax(1)
    assert same.mean() > 0.97
