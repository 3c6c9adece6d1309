"""Padding that differs from side to side, from torch to the integer graph: as a module, a function, or by the word "same"."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.sw.exported_models import both, calibrated, images_for

FINE = Recipe(weights="s8", activations="u8", residual_activations=None)


class Branches(nn.Module):
    """A tensor that a padded convolution, a padded pool and a sum read."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3, padding="same"), nn.Conv2d(6, 6, 4), nn.Conv2d(6, 6, 3)
        self.last = nn.Conv2d(6, 4, (2, 4), padding="same")

    def forward(self, x):
        x = F.relu(self.first(x))
        y = F.relu(self.second(F.pad(x, (1, 2, 2, 1))) + x)
        pooled = F.max_pool2d(F.pad(y, (1, 1, 1, 1), "constant", 0.0), 3, 1)
        return self.last(F.relu(self.third(F.pad(pooled, (2, 0)))))


def stem():
    """As Keras' ResNet begins and MobileNet goes on: zeros of their own before valid convolutions and a pool."""
    return nn.Sequential(nn.ZeroPad2d(3), nn.Conv2d(3, 8, 7, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.ZeroPad2d(1),
                         nn.MaxPool2d(3, 2), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, stride=2, groups=8), nn.ReLU(),
                         nn.ConstantPad2d((1, 0, 0, 1), 0.0), nn.Conv2d(8, 5, 2))


def same():
    return nn.Sequential(nn.Conv2d(3, 8, 2, padding="same"), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 4, 4, padding="same", dilation=(1, 3)))


def tiny_yolo():
    """Max pools that keep the size of their map, as YOLO-tiny has one, with kernels and strides of all kinds."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1),
                         nn.ZeroPad2d((1, 2, 0, 3)), nn.MaxPool2d(4, 1), nn.ZeroPad2d((0, 2, 2, 1)), nn.MaxPool2d(3, (2, 1)),
                         nn.Conv2d(4, 5, 1))


NETWORKS = {"stem": (stem, (3, 19, 22)), "same": (same, (3, 9, 8)), "branches": (Branches, (3, 8, 7)),
            "tiny_yolo": (tiny_yolo, (3, 8, 9))}


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch copies the padded input
@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_torch_does(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    quantized = calibrated(model, FINE, shape)
    images = images_for(shape, 6, 1)
    graph = export(quantized, name, shape)
    with torch.no_grad():
        fake = quantized(torch.from_numpy(images).float() / 255).numpy()
    real = execute(graph, images) * graph.output.scale
    assert real.shape == fake.shape and abs(real - fake).max() < 0.03 * abs(fake).max()
    integers, module = both(quantized, shape)
    assert np.array_equal(integers, module)
    assert not any(isinstance(node, ir.Requantize) for node in graph.nodes)  # zeros cost no layer


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", NETWORKS)
def test_padded_layers_are_those_of_the_real_network(name):
    """Quantized to 8 bits, a network gives nearly what it gave before: nothing moved by a pixel."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, images = make().eval(), images_for(shape, 6, 1)
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        expected = model(x)
        found = calibrate(quantize(model, FINE), images)(x)
    assert found.shape == expected.shape and (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_what_multiplies_reads_the_narrow_tensor_through_a_pad():
    quantized = quantize(Branches(), Recipe(activations="u4", residual_activations="u8"))
    narrow = [name for name in quantized.quantizers if name.endswith("_low")]
    assert narrow == ["relu_low"] and str(quantized.quantizers["relu"].form) == "u8"
    (pad,) = [node for node in quantized.graph.nodes if "relu_low" in str(node.target)]
    assert [user.target for user in pad.users] == [F.pad]


class Padding(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.last = nn.Conv2d(1, 4, 3), function, nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.function(self, self.first(x))


@pytest.mark.parametrize("function, reason", [
    (lambda net, x: net.last(F.pad(x, (1, 1, 1, 1), mode="reflect")), "padding by reflect has no integer form; pad with zeros"),
    (lambda net, x: net.last(F.pad(x, (1, 1), value=2.0)), "padding by 2.0 has no integer form; pad with zeros"),
    (lambda net, x: net.last(F.pad(x, (-1, 1))), r"padding \(-1, 1\) has no integer form; only zeros around height and width "
                                                 "have"),
    (lambda net, x: net.last(F.pad(x, (0, 0, 1, 0, 1, 0))), r"padding \(0, 0, 1, 0, 1, 0\) has no integer form; .*"),
    (lambda net, x: net.last(F.pad(x, (1, 1)).relu()), "relu cannot take over its zeros; only convolutions and max pools can"),
    (lambda net, x: net.last(F.max_pool2d(F.pad(x, (1, 1)), 2)), "its zeros stand beside values below zero, .* put a ReLU "
                                                                 "before it, or use the pool's own padding")])
def test_padding_without_an_integer_form_is_refused(function, reason):
    with pytest.raises(GraphError, match=rf"^pad: {reason}$"):
        quantize(Padding(function))


@pytest.mark.parametrize("layers, reason", [
    ([nn.ZeroPad2d((0, 5, 0, 0)), nn.Conv2d(1, 4, 3)], "1: zeros behind its map add windows of nothing but zeros"),
    ([nn.ReLU(), nn.ZeroPad2d((0, 0, 0, 3)), nn.MaxPool2d(2, 1)], "2: zeros behind its map add windows of nothing but zeros"),
    ([nn.ReLU(), nn.ZeroPad2d((2, 0, 0, 0)), nn.MaxPool2d(2, 1)], "2: zeros before its map fill whole windows"),
])
def test_windows_of_nothing_but_zeros_are_refused(layers, reason):
    model = calibrated(nn.Sequential(*layers, nn.Conv2d(4 if len(layers) == 2 else 1, 4, 1)), FINE, (1, 6, 6))
    with pytest.raises(GraphError, match=rf"^{reason}; pad by less than the kernel$"):
        export(model, "net", (1, 6, 6))
