"""The conversion of torch models: where values are stored, and what is refused by name."""

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from esbflow.graph.errors import GraphError
from esbflow.networks.lenet5 import LeNet5
from esbflow.networks.resnet20 import ResNet20
from esbflow.quant.activation import ActivationQuantizer, InputQuantizer
from esbflow.quant.layers import QuantConv2d, QuantLinear, SelectChannels
from esbflow.quant.quantize import quantize


def steps(model):
    """What the model's fx graph calls, in order; a quantizer as its format."""
    modules = dict(model.named_modules())
    names = []
    for node in model.graph.nodes:
        if node.op == "call_module":
            module = modules[node.target]
            names.append(str(module.form) if isinstance(module, (ActivationQuantizer, InputQuantizer)) else node.target)
        elif node.op in ("call_function", "call_method"):
            names.append(getattr(node.target, "__name__", node.target))
    return names


def test_lenet_stores_its_input_and_what_follows_each_relu():
    model = quantize(LeNet5())
    assert steps(model) == ["u8", "conv1", "relu1", "u4", "pool1", "conv2", "relu2", "u4", "pool2", "flatten", "fc1",
                            "relu3", "u4", "fc2"]
    assert isinstance(model.conv1, QuantConv2d) and isinstance(model.fc1, QuantLinear)


class Block(nn.Module):
    def __init__(self, order="after"):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.order = order

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = y + x if self.order == "after" else x + y
        return self.conv1(F.relu(y))


@pytest.mark.parametrize("order", ["after", "before"])
def test_a_residual_block_is_one_layer_from_convolution_to_relu(order):
    assert steps(quantize(Block(order))) == ["u8", "conv1", "bn1", "relu", "u4", "conv2", "bn2", "add", "relu", "u4", "conv1"]


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.c(self.a(x) + self.b(x))


def test_of_two_convolutions_that_are_added_the_first_is_stored():
    assert steps(quantize(TwoBranches())) == ["u8", "a", "s8", "b", "add", "s8", "c"]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.conv(x)), 2)
        x = F.avg_pool2d(self.norm(x).relu(), 2)
        return self.fc(x.mean((2, 3)).flatten(1))


def test_functional_calls_and_methods_are_understood():
    found = steps(quantize(Functional()))
    assert found[4] == F.max_pool2d.__name__
    assert found[:4] + found[5:] == ["u8", "conv", "relu", "u4", "norm", "relu", "u4", "avg_pool2d", "u8", "mean", "u8",
                                     "flatten", "fc"]


def test_resnet_shortcuts_keep_their_integers():
    model = quantize(ResNet20())
    assert isinstance(model.layer2[0].shortcut if hasattr(model.layer2, "__getitem__")
                      else model.get_submodule("layer2.0.shortcut"), SelectChannels)
    names = steps(model)
    at = names.index("layer2.0.shortcut")
    assert names[at - 1] == "u4" and not names[at + 1].startswith(("s", "u"))
    assert names.count("u4") == 19 and names[-3:] == ["u8", "flatten", "linear"]


def test_quantizing_keeps_the_parameters_and_trains_them():
    model = LeNet5()
    low_bit = quantize(model)
    assert low_bit.conv1.weight is model.conv1.weight
    low_bit(torch.rand(4, 1, 28, 28)).sum().backward()
    missing = [name for name, p in low_bit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


class Wrapped(nn.Module):
    def __init__(self, *layers, call=None):
        super().__init__()
        self.conv, self.layers, self.call = nn.Conv2d(1, 2, 3), nn.Sequential(*layers), call

    def forward(self, x):
        x = self.layers(self.conv(x))
        return self.call(x) if self.call else x


GENERAL = ("use Conv2d, Linear, BatchNorm, ReLU, max or average pooling, addition or concatenation, or run it on the host "
           "after the network")
PADDING = "pad with zeros"


@pytest.mark.parametrize("model, name, fix", [
    (Wrapped(nn.RReLU()), "RReLU", "use LeakyReLU, which is what it is in evaluation"),
    (Wrapped(nn.LayerNorm(2)), "LayerNorm", "use BatchNorm2d"),
    (Wrapped(nn.GroupNorm(1, 2)), "GroupNorm", "use BatchNorm2d"),
    (Wrapped(call=lambda x: x / x.mean((2, 3), keepdim=True)), "truediv", GENERAL),
    (Wrapped(call=lambda x: x.permute(0, 2, 3, 1)), "permute", GENERAL), (Wrapped(nn.ReflectionPad2d(1)), "ReflectionPad2d", PADDING),
])
def test_an_operator_without_an_integer_form_is_refused_by_name(model, name, fix):
    with pytest.raises(GraphError, match=rf"^\w+: operator {name} has no integer form; {re.escape(fix)}$"):
        quantize(model)


@pytest.mark.parametrize("call", [lambda x: torch.add(x, x, out=x), lambda x: torch.sub(x, x, out=x),
                                  lambda x: torch.add(x, 1, alpha=2)])
def test_sums_with_more_arguments_are_refused_instead_of_made_plain(call):
    with pytest.raises(GraphError, match=r"^\w+: (only the plain sum of two tensors, or of a tensor and a constant, has an "
                                         r"integer form; leave alpha and out away|operator sub has no integer form; .*)$"):
        quantize(Wrapped(call=call))


def test_a_tensor_may_be_added_to_itself():
    assert steps(quantize(Wrapped(call=lambda x: x + x))) == ["u8", "conv", "s8", "add"]


@pytest.mark.parametrize("options, text", [
    (dict(padding=1, padding_mode="circular"), r"padding \(1, 1\), mode 'circular'"),
    (dict(padding=1, padding_mode="reflect"), r"padding \(1, 1\), mode 'reflect'"),
    (dict(padding="same", padding_mode="replicate"), r"padding 'same', mode 'replicate'")])
def test_padding_other_than_by_zeros_is_refused(options, text):
    with pytest.raises(GraphError, match=rf"^0: {text} has no integer form; pad with zeros$"):
        quantize(nn.Sequential(nn.Conv2d(1, 2, **{"kernel_size": 3, **options})))


class DependsOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def test_control_flow_that_depends_on_data_is_refused():
    with pytest.raises(GraphError, match=r"^DependsOnData: torch.fx cannot trace the forward pass \(.*\); remove control "
                                         r"flow that depends on data or, if it depends on sizes only, give quantize\(\) the "
                                         r"shape of the images$"):
        quantize(DependsOnData())


def test_a_model_without_layers_to_quantize_is_refused():
    with pytest.raises(GraphError, match=r"^the model has no convolution or Linear layer: there is nothing to quantize$"):
        quantize(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["conv2.weight", "fc1.bias"])
def test_a_parameter_that_is_not_finite_is_refused_by_name(bad, name):
    model = LeNet5()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = bad
    with pytest.raises(ValueError, match=rf"^{name} holds NaN or infinity; training has diverged, or the checkpoint is broken$"):
        quantize(model)


def test_a_statistic_that_is_not_finite_is_refused_by_name():
    model = ResNet20()
    model.bn1.running_var[2] = math.nan
    with pytest.raises(ValueError, match=r"^bn1.running_var holds NaN or infinity; "):
        quantize(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_is_refused(dtype):
    with pytest.raises(ValueError, match=rf"^conv1.weight is {str(dtype)[6:]}; quantize the model in float32 \(model.float\(\)\)$"):
        quantize(LeNet5().to(dtype))


def test_weights_that_are_computed_are_refused_until_they_are_plain():
    model = LeNet5()
    parametrizations.weight_norm(model.conv2)
    with pytest.raises(GraphError) as error:
        quantize(model)
    fix = "torch.nn.utils.parametrize.remove_parametrizations(model.get_submodule('conv2'), 'weight')"
    assert str(error.value) == f"conv2: its weight is computed in each pass; make it plain with {fix}"
    exec(fix, {"torch": torch, "model": model})
    assert isinstance(quantize(model).conv2, QuantConv2d)


def test_a_lazy_layer_without_values_is_refused():
    with pytest.raises(ValueError, match=r"^0.weight has no values yet; run the model once on images"):
        quantize(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()))


def test_select_channels_copies_pads_and_strides():
    layer = SelectChannels([-1, 1, 0, -1], in_channels=2, stride=2)
    x = torch.rand(2, 2, 4, 6)
    y = layer(x)
    zero = torch.zeros(2, 2, 3)
    assert torch.equal(y, torch.stack([zero, x[:, 1, ::2, ::2], x[:, 0, ::2, ::2], zero], dim=1))
    assert not list(layer.parameters())
