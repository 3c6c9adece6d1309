"""Leaky ReLUs, PReLUs and differences are weighted sums: one exact layer and one that adds."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.numbers import Unsigned
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.compiler.machine import Machine
from tests.sw.exported_models import both, distance, images_for

FINE = Recipe(weights="s8", activations="u8")
SHAPE = (3, 8, 7)


class Leaky(nn.Module):
    """All ways to write one, on maps and on rows, a slope for each channel, slopes below zero and above one."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.norm, self.leaky, self.by_channel = nn.BatchNorm2d(8), nn.LeakyReLU(0.1, inplace=True), nn.PReLU(8)
        self.by_channel.weight.data = torch.linspace(-0.5, 1.7, 8)
        self.last, self.single = nn.Linear(8, 5), nn.PReLU()

    def forward(self, x):
        x = self.leaky(self.norm(self.first(x)))
        y = self.by_channel(self.second(x))
        z = F.leaky_relu(self.third(y) - x)
        z = F.leaky_relu(torch.sub(z, y, alpha=0.5), negative_slope=0.3)
        z = F.prelu(torch.add(z, x, alpha=2), self.single.weight)
        return self.single(self.last(z.mean((2, 3))))


def pair():
    torch.manual_seed(0)
    model, images = Leaky().eval(), images_for(SHAPE, 8, 1)
    with torch.no_grad():
        expected = model(torch.from_numpy(images).float() / 255)
    return expected, calibrate(quantize(model, FINE), images).eval(), images


def test_the_graph_computes_what_torch_does():
    expected, quantized, images = pair()
    with torch.no_grad():
        fake = quantized(torch.from_numpy(images).float() / 255)
    assert (fake - expected).abs().max() < 0.05 * expected.abs().max()
    graph = export(quantized, "leaky", SHAPE)
    assert abs(execute(graph, images)[:, :, 0, 0] * graph.output.scale - fake.numpy()).max() < 0.03 * abs(fake).max()
    integers, module = both(quantized, SHAPE)
    assert np.array_equal(integers, module)


def test_each_costs_one_exact_layer_and_one_sum():
    _, quantized, images = pair()
    graph = export(quantized, "leaky", SHAPE)
    kinds = [type(node) for node in graph.nodes]
    # A difference is part of the convolution before it where there is one, else a sum of its own.
    assert kinds == [ir.Input, *(ir.Conv2d, ir.Requantize, ir.Add) * 3, *(ir.Add, ir.Requantize, ir.Add) * 2,
                     ir.AvgPool2d, ir.Linear, ir.Requantize, ir.Add]
    values = execute(graph, images, keep=True)
    for node in graph.nodes:
        if isinstance(node, ir.Requantize):
            before = graph[node.inputs[0]]
            assert (node.scale, node.format) == (before.scale, Unsigned(before.format.bits - 1))
            assert np.array_equal(values[node.name], values[before.name].clip(min=0)) and values[before.name].min() < 0


@pytest.mark.parametrize("engine", ["tiny4x4", "base16x16"])
def test_the_engine_computes_the_same(engine):
    _, quantized, images = pair()
    graph = export(quantized, "leaky", SHAPE)
    program = compile_graph(graph, ENGINES[engine], 2)
    assert np.array_equal(Machine(program).run(images[:2]), execute(graph, images[:2]))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_a_branch_that_is_zero_takes_a_sum_no_precision(gamma):
    """Darknet's block as libraries start it, with gamma zero, or with a ReLU that is dead, beside a tensor of small values."""
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.leaky, self.last = nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 1, bias=False)
            self.first.weight.data *= 1e-4
            self.first.bias.data *= 1e-4
            self.norm.weight.data.fill_(gamma)
            self.norm.bias.data.fill_(-100 * gamma)

        def forward(self, x):
            x = self.first(x)
            y = self.norm(self.conv(x))
            return self.last(x + (self.leaky(y) if gamma == 0 else F.relu(y)))

    torch.manual_seed(2)
    model, images = Block().eval(), images_for(SHAPE, 8)
    real_images = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        expected = model(real_images).numpy()
        assert np.array_equal(model(real_images), model.last(model.first(real_images)))
    graph = export(calibrate(quantize(model, FINE), images), "block", SHAPE)
    assert distance(execute(graph, images) * graph.output.scale, expected, graph.output.scale) < 0.05


def test_slopes_go_on_training_and_are_saved():
    _, quantized, images = pair()
    slopes = quantized.get_parameter("by_channel_slope.constant"), quantized.get_parameter("single_slope.constant")
    quantized.train()(torch.from_numpy(images).float() / 255).square().sum().backward()
    assert all(slope.grad.abs().min() > 0 for slope in slopes)
    assert slopes[0] is quantized.get_parameter("by_channel_rest.constant")
    state = copy.deepcopy(quantized.state_dict())
    _, again, _ = pair()
    with torch.no_grad():
        slopes[0].zero_()
    again.load_state_dict(quantized.state_dict())
    graphs = [export(model.eval(), "leaky", SHAPE) for model in (quantized, again)]
    assert np.array_equal(*(execute(graph, images) for graph in graphs))
    again.load_state_dict(state)
    assert not np.array_equal(execute(graphs[0], images), execute(export(again, "leaky", SHAPE), images))
