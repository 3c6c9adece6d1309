"""Quantization from a few images: each step brings the network nearer to the real one."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph.execute import execute
from esbflow.numbers import Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.convert import quantize
from esbflow.quant.export import export
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import Schedule, calibrate, train
from esbflow.training.post_training import best_scale, correct_batch_norms, correct_biases, post_train


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


def test_each_correction_brings_it_nearer(trained):
    real, images = trained
    plain = calibrate(quantize(copy.deepcopy(real), RECIPE).eval(), images[:120])
    before = distance(plain, real, images[120:])
    correct_batch_norms(plain, real, images[:120])
    middle = distance(plain, real, images[120:])
    correct_biases(plain, real, images[:120])
    after = distance(plain, real, images[120:])
    assert after < before and after < 0.7 * max(before, middle)
    assert plain.linear.bias is not None, "a layer without a bias gets one"


def test_the_whole_leaves_the_model_alone_and_exports(trained):
    real, images = trained
    kept = {name: value.clone() for name, value in real.state_dict().items()}
    said = []
    quantized = post_train(real, RECIPE, images[:100], report=said.append)
    assert all(torch.equal(value, kept[name]) for name, value in real.state_dict().items())
    assert len(said) == 4 and not quantized.training
    plain = calibrate(quantize(copy.deepcopy(real), RECIPE).eval(), images[:100])
    assert distance(quantized, real, images) < distance(plain, real, images)
    outputs = execute(export(quantized, shape=(1, 8, 8)), images)
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        same = outputs.reshape(len(images), -1).argmax(1) == quantized(x).numpy().argmax(1)
    assert same.mean() > 0.97


def test_the_scale_of_least_error_is_found():
    quantizer = ActivationQuantizer(Unsigned(4))
    with torch.no_grad():
        quantizer.step.fill_(1.0)
        quantizer.seen.fill_(True)
    values = torch.arange(16).float() * 0.5  # exactly on levels of scale one half
    assert float(best_scale(values, quantizer)) == pytest.approx(0.5, abs=1e-6)


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
