"""Layers of model libraries: classes derived from torch's, and what only a functional call is left of when traced."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.functional import replace_functional_layers
from esbflow.quant.layers import QuantConv2d, QuantLinear
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.quant.trace import trace
from esbflow.training.loop import calibrate
from tests.compiler.machine import Machine
from tests.sw.exported_models import both, calibrated, images_for

SHAPE = (2, 9, 8)


class PaddedConv(nn.Conv2d):
    """Pads below and right by itself, as model libraries do for TensorFlow's weights."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, groups=self.groups)


class NormAct(nn.BatchNorm2d):
    """A norm with its activation, written as model libraries write it."""

    def __init__(self, channels, momentum=0.1, **options):
        super().__init__(channels, momentum=momentum, **options)
        self.act = nn.ReLU()

    def forward(self, x):
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                                     self.momentum, self.eps))


class OwnParameters(nn.Module):
    """Parameters and a buffer of the model itself."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = PaddedConv(2, 6, 3, stride=2, bias=False), NormAct(6)
        self.register_buffer("blur", torch.tensor([1., 2, 1]).outer(torch.tensor([1., 2, 1])).expand(6, 1, 3, 3) / 16)
        self.weight, self.bias = nn.Parameter(torch.randn(5, 6) / 3), nn.Parameter(torch.randn(5))

    def forward(self, x):
        x = F.relu(F.conv2d(self.norm(self.first(x)), self.blur, padding=1, groups=6))
        return F.linear(input=x.mean((2, 3)), weight=self.weight, bias=self.bias)


@pytest.mark.parametrize("training", [True, False])
def test_the_modules_compute_what_the_calls_did_and_keep_parameters_and_statistics(training):
    torch.manual_seed(0)
    model, images = OwnParameters().train(training), torch.randn(4, *SHAPE)
    traced = trace(model)
    replace_functional_layers(traced)
    traced.recompile()
    expected, parameters = model(images), dict(model.named_parameters())
    mean, var = model.norm.running_mean.clone(), model.norm.running_var.clone()
    if training:  # a trace shares buffers with its model, which has moved them
        model.norm.reset_running_stats()
    assert torch.allclose(traced(images), expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(traced.norm.norm.running_mean, mean) and torch.allclose(traced.norm.norm.running_var, var)
    assert traced.first.weight is parameters["first.weight"] and traced.linear.weight is parameters["weight"]
    assert not traced.conv.weight.requires_grad and traced.linear.weight.requires_grad
    assert all(any(isinstance(m, cls) for m in traced.modules()) for cls in (nn.Conv2d, nn.Linear, nn.BatchNorm2d))
    assert not [node for node in traced.graph.nodes if node.op == "get_attr"]
    state = {"first.weight", "norm.norm.weight", "conv.weight", "linear.weight", "linear.bias"}
    assert state <= set(traced.state_dict()), sorted(traced.state_dict())


def test_own_parameters_export_exactly():
    torch.manual_seed(1)
    model = calibrated(OwnParameters(), Recipe(), SHAPE)
    graph, converted = both(model, SHAPE)
    np.testing.assert_array_equal(graph, converted)
    nodes = export(model, "net", SHAPE).nodes
    assert [type(node) for node in nodes] == [ir.Input, ir.Conv2d, ir.Conv2d, ir.AvgPool2d, ir.Linear]
    assert [type(model.get_submodule(name)) for name in ("first", "conv", "linear")] == [QuantConv2d, QuantConv2d, QuantLinear]


def test_calls_that_nothing_reads_are_left_out():
    class Aside(OwnParameters):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Parameter(torch.zeros(3, 2, 1, 1)), nn.Parameter(torch.zeros(4, 5))

        def forward(self, x):
            F.conv2d(F.conv2d(x, self.before), self.before[:, :1])
            y = super().forward(x)
            F.linear(y, self.after)
            return y

    layers = [node.target for node in quantize(Aside()).graph.nodes if node.op == "call_module"]
    assert [name for name in layers if not name.startswith("quantizers.")] == ["first", "norm.norm", "norm.act", "conv", "linear"]


def test_a_norm_that_averages_all_batches_and_has_no_gamma():
    """momentum=None is computed anew in each pass, and still a plain module's option."""
    class Cumulative(NormAct):
        def forward(self, x):
            self.num_batches_tracked.add_(1)
            return F.batch_norm(x, self.running_mean, self.running_var, None, None, self.training,
                                1.0 / self.num_batches_tracked, self.eps)

    model = quantize(nn.Sequential(nn.Conv2d(2, 4, 1), Cumulative(4, momentum=None, affine=False)).train())
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.momentum is None and norm.weight is None and norm.bias is None and norm.track_running_stats


def test_a_norm_that_never_uses_its_statistics_is_refused():
    class Batch(nn.BatchNorm2d):
        def forward(self, x):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=True)

    model = quantize(nn.Sequential(nn.Conv2d(2, 4, 1), Batch(4), nn.Conv2d(4, 2, 1)).eval())
    calibrate(model, images_for(SHAPE), (0.0,), (1.0,))
    with pytest.raises(GraphError, match=r"^\w+: a batch norm without running statistics has no integer form; .*$"):
        export(model, "net", SHAPE)


def test_a_class_that_computes_as_torch_does_is_that_layer():
    class Same(nn.Conv2d):
        def __init__(self, a, b, kernel):
            super().__init__(a, b, kernel, padding=kernel // 2, bias=False)

    class Standardised(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight - weight.mean(), bias)

    model = quantize(nn.Sequential(Same(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    assert isinstance(model.get_submodule("0"), QuantConv2d)
    with pytest.raises(GraphError, match=r"^0\.weight: mean computes with it in each pass, which has no integer form; compute it "
                                         r"once, before quantize\(\), or run it on the host after the network$"):
        quantize(nn.Sequential(Standardised(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)))


class Drops(nn.Module):
    """Dropouts, identities and the drop of a branch, wherever libraries put them."""

    def __init__(self, drop, end):
        super().__init__()
        self.conv1, self.norm1, self.conv2, self.norm2 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.drop, self.end, self.last = drop, end, nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = F.relu(self.drop(self.norm1(self.conv1(x))))
        x = F.relu(self.drop(self.drop(self.norm2(self.drop(self.conv2(x)))) + x))
        return self.end(self.last(x))


class StochasticDepth(nn.Module):
    """Known by its name."""

    def forward(self, x):
        return x * x.new_ones(len(x), 1, 1, 1) if self.training else x


@pytest.mark.parametrize("drop", [nn.Identity(), nn.Dropout(0.2), nn.Dropout2d(0.2), StochasticDepth()])
@pytest.mark.parametrize("end", [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Flatten(), nn.Dropout()])
def test_what_drops_in_training_parts_no_layer_and_ends_do_not_round(drop, end):
    model = calibrated(Drops(drop, end), Recipe(), SHAPE)
    graph, converted = both(model, SHAPE)
    np.testing.assert_array_equal(graph.reshape(converted.shape), converted)
    nodes = export(model, "net", SHAPE).nodes
    assert [type(node) for node in nodes][:4] == [ir.Input] + [ir.Conv2d] * 3 and len(nodes) == 4 + isinstance(end, nn.Sequential)
    assert nodes[-1].format.bits == 32


@pytest.mark.parametrize("where", ["norm2", "conv1", "conv2"])
def test_layers_that_are_zero_everywhere_export_as_zeros(where):
    """Residual branches start at a gamma of zero in many libraries; a dead layer must not stop an export either."""
    net = Drops(nn.Identity(), nn.Flatten())
    with torch.no_grad():
        for parameter in net.get_submodule(where).parameters():
            parameter.zero_()
        if where == "conv1":
            net.norm1.bias.zero_()
    model = calibrate(quantize(net), images_for(SHAPE), (0.0,), (1.0,)).eval()
    graph, converted = both(model, SHAPE)
    np.testing.assert_array_equal(graph.reshape(converted.shape), converted)
    network = export(model, "net", SHAPE)
    assert all(np.isfinite(node.scale) and node.scale > 0 for node in network.nodes)
    engine = Machine(compile_graph(network, ENGINES["small8x16"], batch=2))
    assert np.array_equal(engine.run(images_for(SHAPE, 2, 1)), execute(network, images_for(SHAPE, 2, 1)))


def test_zeros_do_not_widen_the_scale_that_concatenated_tensors_share():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(8, 3, 1)
            nn.init.zeros_(self.b.weight), nn.init.zeros_(self.b.bias)

        def forward(self, x):
            return self.last(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1))

    model = calibrated(Two(), Recipe(), SHAPE)
    nodes = {node.name: node for node in export(model, "net", SHAPE).nodes}
    assert nodes["cat"].scale == pytest.approx(model.quantizers["relu"].real_scale())
