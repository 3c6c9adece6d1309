"""The exported QONNX, against what qonnx's own executor computes of it; and models of every kind there and back."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.interchange.onnx_file import GraphError, from_proto
from esbflow.interchange.onnx_import import import_model
from esbflow.interchange.qonnx_export import export_qonnx, to_qonnx
from esbflow.networks.lenet5 import LeNet5
from esbflow.numbers import ESB, Codebook, Signed, Unsigned
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.sw.interchange.models import random_pixels, run_qonnx
from tests.sw.interchange.test_roundtrip import round_trip

EXACT = 1 << 24
"""float32 holds all integers up to here; qonnx computes in float32."""


def levels(proto: onnx.ModelProto, graph: ir.Graph, pixels: np.ndarray) -> dict:
    """What qonnx computes, in levels, by name of the node."""
    found = run_qonnx(proto, pixels.astype(np.float32))
    return {node.name: np.rint(found[node.name].astype(np.float64) / np.float32(node.scale)).reshape(len(pixels), *node.shape)
            for node in graph.nodes}


@pytest.mark.parametrize("seed", range(12))
def test_qonnx_computes_what_the_graph_says(seed):
    """With FLOOR, scales that are powers of two and sums that float32 holds: every value of every tensor.

    AvgPool is left out, because float32 rounds the mean; ESB, because FloatQuant has its ties to even.
    """
    random = np.random.default_rng(seed)
    while True:
        graph = random_graph(random, size=8, kinds=("conv", "residual", "linear", "max", "add", "requantize"))
        for i, node in enumerate(graph.nodes):
            scale = graph[node.inputs[0]].scale if isinstance(node, ir.MaxPool2d) else 2.0 ** random.integers(-6, 4)
            graph.nodes[i] = dataclasses.replace(node, scale=scale)
        if all(isinstance(node.format, (Signed, Unsigned)) and _fits(graph, node) for node in graph.nodes):
            break
    pixels = random_images(random, graph, 2)
    found, expected = levels(to_qonnx(graph, "FLOOR"), graph, pixels), execute(graph, pixels, keep=True)
    for node in graph.nodes:
        assert np.array_equal(found[node.name], expected[node.name]), node.name


def _fits(graph, node) -> bool:
    from esbflow.graph.bounds import bounds

    bound = bounds(graph).get(node.name)
    return bound is None or max(-bound.sum_low, bound.sum_high) < EXACT


@pytest.mark.parametrize("seed", range(6))
def test_any_graph_is_at_most_one_step_off_in_qonnx(seed):
    """Layer by layer there are ties and float32; a wide output also has the 24 bits of its mantissa."""
    random = np.random.default_rng(100 + seed)
    graph = random_graph(random, layers=1)
    pixels = random_images(random, graph, 2)
    found, expected = levels(to_qonnx(graph), graph, pixels), execute(graph, pixels, keep=True)
    assert np.array_equal(found["input"], expected["input"])
    node, values = graph.output, expected[graph.output.name]
    places = [np.searchsorted(node.format.levels, v) if node.format.bits <= 16 else v
              for v in (found[node.name].astype(np.int64), values)]
    assert (np.abs(places[0] - places[1]) <= np.maximum(1, np.abs(values) * 2.0 ** -22)).all()


@pytest.mark.parametrize("form", [ESB(4, 1), ESB(4, 2), ESB(5, 0), ESB(8, 5), ESB(4, 2, signed=False), ESB(6, 3, signed=False)])
def test_float_quant_has_the_levels_of_esb(form):
    """Every quarter of a level from below the smallest to above the largest, but no ties."""
    values = np.arange(4 * form.min - 8, 4 * form.max + 9)
    values = values[(values >= -128) & (values < 128)]
    table = np.zeros((1, 256), np.int64)
    table[0, :len(values)] = values
    one = np.ones(1, np.int64)
    graph = ir.Graph("esb", [
        ir.Input("input", (), (1, 1, 256), Signed(8), 0.5, table=table),
        ir.Requantize("out", ("input",), (1, 1, 256), form, 2.0, requantizer=ir.Requantizer(4 * one, 1 * one, 4 * one, 0 * one))])
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 1, 256)
    proto = to_qonnx(graph)
    assert np.array_equal(levels(proto, graph, pixels)["out"], execute(graph, pixels))
    assert str(round_trip(graph).output.format) == str(form)
    quant = next(node for node in proto.graph.node if node.op_type == "FloatQuant") if form.exponent_bits > 1 else None
    if quant:
        constants = {t.name: onnx.numpy_helper.to_array(t).item() for t in proto.graph.initializer if t.name in quant.input}
        assert [constants[name] for name in quant.input[1:]] == [
            2.0 * 2 ** form.significand, form.exponent_bits, form.significand, 1, form.max / 2 ** form.significand]


# -- networks from torch ----------------------------------------------------------------------------------------
class Depthwise(nn.Module):
    shape = (3, 12, 12)

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    def forward(self, x):
        return self.layers(x)


class Residual(nn.Module):
    shape = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(a, 8, 3, padding=1) for a in (3, 8, 8))
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.norm(self.third(torch.relu(self.second(x)))) + x)
        return self.last(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module", params=[LeNet5, Residual, Depthwise])
def network(request):
    """An untrained network with batch norms that do something, quantized and calibrated, as an integer graph."""
    torch.manual_seed(0)
    model = request.param()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    quantized = quantize(model.eval(), Recipe(weights="esb4.1", activations="u4", first_weights="esb4.1", last_weights="s8"))
    shape = request.param.shape
    calibrate(quantized, random_pixels(np.random.default_rng(0), 16, *shape))
    return export(quantized, request.param.__name__, shape)


def test_networks_come_back_equal(network):
    pixels = random_pixels(np.random.default_rng(1), 8, *network.input.shape)
    expected = execute(network, pixels)
    assert len(np.unique(expected)) > 8
    for rounding in ("ROUND", "FLOOR"):
        back = round_trip(network, rounding)
        assert np.array_equal(execute(back, pixels), expected)
        assert [node.name for node in back.nodes] == [node.name.replace(".", "_") for node in network.nodes]


def test_networks_agree_in_qonnx(network):
    pixels = random_pixels(np.random.default_rng(2), 4, *network.input.shape)
    proto = to_qonnx(network)
    assert "Mul" == proto.graph.node[0].op_type  # the input is a straight line of the pixel, no table
    found, expected = levels(proto, network, pixels), execute(network, pixels, keep=True)
    for node in network.nodes[:-1]:
        difference = np.abs(found[node.name] - expected[node.name])
        assert difference.max() <= 1 and (difference > 0).mean() < 0.005, node.name
    last = network.output.name
    assert (found[last].reshape(4, -1).argmax(1) == expected[last].reshape(4, -1).argmax(1)).all()


# -- operators that random graphs do not have -------------------------------------------------------------------
def test_concat_and_upsample_come_back_equal():
    random = np.random.default_rng(3)
    form, one, zero = Signed(8), np.ones(2, np.int64), np.zeros(2, np.int64)
    half = ir.Requantizer(m=one, b=zero, s=one, n=zero)
    graph = ir.Graph("join", [
        ir.Input("input", (), (2, 3, 4), form, 0.25, table=random.integers(-128, 128, (2, 256))),
        ir.Requantize("half", ("input",), (2, 3, 4), form, 0.25, requantizer=half),
        ir.Concat("both", ("input", "half", "input"), (6, 3, 4), form, 0.25),
        ir.Upsample("large", ("both",), (6, 6, 12), form, 0.25, factor=(2, 3))])
    pixels = random_pixels(random, 5, 2, 3, 4)
    assert np.array_equal(execute(round_trip(graph), pixels), execute(graph, pixels))
    assert np.array_equal(levels(to_qonnx(graph, "FLOOR"), graph, pixels)["large"], execute(graph, pixels))


def test_a_format_without_an_operator_is_refused_by_name(tmp_path):
    one = np.ones(1, np.int64)
    graph = ir.Graph("book", [
        ir.Input("input", (), (1, 2, 2), Signed(8), 1.0, table=np.zeros((1, 256), np.int64)),
        ir.Requantize("odd", ("input",), (1, 2, 2), Codebook((-3, 1, 9)), 1.0,
                      requantizer=ir.Requantizer(one, one, one, 0 * one))])
    with pytest.raises(GraphError, match=r"layer odd: QONNX has no format cb\[-3,1,9\]; use u4, s4, ESB"):
        export_qonnx(graph, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_wide_biases_keep_all_their_bits():
    """b has 40 bits and float32 24."""
    form, count = Signed(32), 5
    b = np.array([2**38 + 1, -(2**38) - 1, 2**30 + 1, 12345678901, 7], np.int64)
    graph = ir.Graph("wide", [
        ir.Input("input", (), (count, 1, 4), Signed(8), 0.3, table=np.tile(np.arange(256) - 128, (count, 1))),
        ir.Requantize("out", ("input",), (count, 1, 4), form, 0.7, requantizer=ir.Requantizer(
            np.full(count, 1021), b, np.full(count, 9), np.zeros(count, np.int64)))])
    pixels = random_pixels(np.random.default_rng(4), 3, count, 1, 4)
    for rounding in ("ROUND", "FLOOR"):
        back = import_model(from_proto(to_qonnx(graph, rounding), "x"))
        assert np.array_equal(execute(back, pixels), execute(graph, pixels))
