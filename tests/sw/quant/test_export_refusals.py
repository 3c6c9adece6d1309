"""What cannot be exported is refused by name."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.networks.digits import DigitsNet
from esbflow.networks.lenet5 import LeNet5
from esbflow.quant.export import export
from esbflow.quant.integer_module import integer_module
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.sw.exported_models import calibrated, images_for


def test_a_model_that_saw_no_data_is_refused():
    with pytest.raises(ValueError, match=r"^activation conv1 has seen no data, so it has no scale: train or calibrate the "
                                         r"model first$"):
        export(quantize(LeNet5()), "net", LeNet5.shape)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["conv2.weight", "fc1.bias", "quantizers.relu2.step"])
def test_a_model_that_is_not_finite_is_refused_by_name(bad, name, capfd):
    model = calibrated(DigitsNet(), Recipe(), DigitsNet.shape)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = bad
    with pytest.raises(ValueError, match=rf"^{name} holds NaN or infinity; training has diverged, or the checkpoint is "
                                         r"broken$"):
        export(model, "net", DigitsNet.shape)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 9, 40), (1, 1, 1)])
def test_a_shape_that_the_network_does_not_take_is_refused(shape, capfd):
    model = calibrated(DigitsNet(), Recipe(), DigitsNet.shape)
    start = f"the network does not take images of shape {shape}: "
    with pytest.raises(GraphError, match=f"^{re.escape(start)}"):
        export(model, "net", shape)
    assert capfd.readouterr() == ("", ""), "one sentence, no traceback of torch's"


def test_only_quantized_models_and_given_shapes_are_exported():
    with pytest.raises(GraphError, match=r"^only a model that quantize\(\) made can be exported$"):
        export(LeNet5(), "net", LeNet5.shape)
    with pytest.raises(GraphError, match=r"^export needs the shape \(channels, height, width\) of the input images$"):
        export(quantize(LeNet5()), "net")


class Ends(nn.Module):
    """conv - relu - `call`."""

    def __init__(self, call, channels=2):
        super().__init__()
        self.conv, self.call, self.last = nn.Conv2d(1, channels, 1), call, nn.Conv2d(channels, 2, 1)
        nn.init.constant_(self.conv.bias, 1.0)

    def forward(self, x):
        return self.call(self, F.relu(self.conv(x)))


@pytest.mark.parametrize("call, message", [
    (lambda net, x: (net.last(x), 1.0), r"the network returns output_1 that is no tensor which a layer computes; "
     "return tensors alone, or compute it on the host"),
    (lambda net, x: net.last(F.max_pool2d(x, 2, dilation=2)),
     r"\w+: a dilated max pool has no integer form; use dilation 1"),
    (lambda net, x: net.last(F.avg_pool2d(x, 4, ceil_mode=True)),
     r"\w+: its windows reach over maps of 6x6 \(ceil_mode\), where an average of fewer pixels has no integer form; use "
     r"ceil_mode=False"),
    (lambda net, x: net.last(F.avg_pool2d(x, 2, padding=1, count_include_pad=False)),
     r"\w+: average pooling with padding needs count_include_pad=True"),
    (lambda net, x: net.last(F.avg_pool2d(x, 2, divisor_override=3)),
     r"\w+: average pooling with divisor_override has no integer form; leave it out"),
    (lambda net, x: net.last(F.adaptive_avg_pool2d(x, 4)),
     r"\w+: adaptive pooling from 6x6 to 4x4 has no integer form; one size must divide the other"),
    (lambda net, x: net.last(x.view(-1, 2, 3, 12)),
     r"view: a change of shape from \(2, 6, 6\) to \(2, 3, 12\) has no integer form; only flatten has, and its inverse for maps of one "
     r"pixel"),
    (lambda net, x: net.last(torch.cat([x, x], dim=2)),
     r"cat: only a concatenation of channels has an integer form; use dim=1"),
    (lambda net, x: net.last(x + x.mean((2, 3), keepdim=True)),
     r"\w+: a sum of tensors of different shapes has no integer form"),
])
def test_what_has_no_integer_form_is_refused_by_name(call, message):
    with pytest.raises(GraphError, match=f"^{message}$"):
        export(calibrated(Ends(call), Recipe(), (1, 6, 6)), "net", (1, 6, 6))


def test_a_batch_norm_without_statistics_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.ReLU(), nn.Conv2d(2, 2, 1))
    model = quantize(net)
    model(torch.rand(4, 1, 6, 6))
    with pytest.raises(GraphError, match=r"^\w+: a batch norm without running statistics has no integer form; use "
                                         r"track_running_stats=True$"):
        export(model, "net", (1, 6, 6))


@pytest.mark.parametrize("kernel, stride, padding, ceil_mode", [(3, 2, 1, False), (2, 2, 0, True), (3, 3, 1, True), (3, 2, 0, True)])
def test_max_pools_with_padding_and_ceil_mode_export_exactly(kernel, stride, padding, ceil_mode):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode), nn.Conv2d(4, 2, 1))
    model = calibrated(net, Recipe(), (1, 9, 8))
    images = images_for((1, 9, 8))
    graph = export(model, "net", (1, 9, 8))
    values = execute(graph, images, keep=True)
    stored, pooled = (values[node.name] for node in graph.nodes[1:3])
    expected = F.max_pool2d(torch.from_numpy(stored.astype(np.float64)), kernel, stride, padding, ceil_mode=ceil_mode)
    assert (stored < 0).any() and np.array_equal(pooled, expected.numpy())
    assert np.array_equal(integer_module(model, (1, 9, 8))(torch.from_numpy(images)).numpy(), values[graph.output.name])


@pytest.mark.parametrize("options, padding", [
    (dict(kernel_size=3, padding="same"), (1, 1)), (dict(kernel_size=(1, 5), padding="same", dilation=(3, 2)), (0, 4)),
    (dict(kernel_size=2, padding="same", dilation=2), (1, 1)), (dict(kernel_size=(3, 2), padding="valid", stride=2), (0, 0))])
def test_padding_in_words_is_turned_into_numbers(options, padding):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, **options))
    images = np.random.default_rng(0).integers(0, 256, (6, 2, 9, 7), dtype=np.uint8)
    quantized = calibrate(quantize(model, Recipe(first_weights="s8", last_weights="s8")), images).eval()
    graph = export(quantized, "words", (2, 9, 7))
    assert [node.padding for node in graph.nodes if hasattr(node, "dilation")] == [padding]
    x = torch.from_numpy(images).float() / 255
    assert execute(graph, images).shape == tuple(model(x).shape)
    with torch.no_grad():
        assert torch.allclose(quantized(x), model(x), atol=0.05)
