"""What the engine cannot compute runs on the host between two programs, by the same call."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.cli import main
from esbflow.graph import file, host, ir
from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule
from esbflow.quant.recipe import Recipe
from esbflow.split.driver import SplitEngine
from esbflow.split.partition import split
from esbflow.split.program import SplitProgram, compile_split, load_split
from tests.end_to_end.conftest import engine_of
from tests.sw.exported_models import calibrated, images_for
from tests.sw.interchange.models import (
    INT8,
    Model,
    conv_layer,
    dequantized,
    image_in,
    imported,
    random_pixels,
    run_onnxruntime,
)


class Excited(nn.Module):
    """Squeeze-and-excitation (Hu et al., 2018) in a residual block, whose sum joins a program's output with the host's part."""

    shape = (2, 6, 6)

    def __init__(self):
        super().__init__()
        self.stem, self.project = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.squeeze, self.excite, self.last = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.last(F.relu(x + self.project(gate * x)))


class Gated(nn.Module):
    """The same gate from linear layers, as SENet has it, made a map of one pixel by `widen`."""

    def __init__(self, widen):
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(2, 6, 3), nn.Linear(6, 3), nn.Linear(3, 6)
        self.last, self.widen = nn.Conv2d(6, 4, 3), widen

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.last(x * self.widen(torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3)))))), x))


@pytest.mark.parametrize("widen", [
    lambda gate, x: gate[:, :, None, None], lambda gate, x: gate[..., None, None], lambda gate, x: gate.unsqueeze(-1).unsqueeze(-1),
    lambda gate, x: torch.unsqueeze(gate, 2)[..., None], lambda gate, x: gate.view(x.size(0), -1, 1, 1).expand_as(x),
    lambda gate, x: gate.reshape(gate.shape[0], gate.shape[1], 1, 1).expand(x.size()), lambda gate, x: gate.view(-1, 6, 1, 1).expand(x.shape)])
def test_a_gate_is_made_a_map_in_any_spelling(widen):
    graph, images = None, images_for((2, 6, 6), 3)
    for way in (lambda gate, x: gate.view(-1, 6, 1, 1), widen):
        torch.manual_seed(1)
        model = calibrated(Gated(way), Recipe(weights="s8", activations="u8"), (2, 6, 6))
        first, graph = graph, export(model, "gated", (2, 6, 6))
    assert np.array_equal(execute(graph, images), execute(first, images))


class Decoder(nn.Module):
    shape = (2, 5, 6)

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(2, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)
        self.norm, self.mix, self.last = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1), nn.Conv2d(3, 2, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.up(F.relu(self.down(x)))))
        x = F.interpolate(torch.softmax(self.mix(x), 1), scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(x)


@pytest.fixture(scope="module", params=[Excited, Decoder], ids=["excited", "decoder"])
def network(request):
    torch.manual_seed(4)
    cls = request.param
    model = calibrated(cls(), Recipe(weights="s8", activations="u8"), cls.shape)
    return model, export(model, cls.__name__, cls.shape), images_for(cls.shape, 3)


def test_the_graph_is_near_the_model(network):
    model, graph, images = network
    found = execute(graph, images) * graph.output.scale
    with torch.no_grad():
        real = model(torch.from_numpy(images).float() / 255).numpy()
    assert np.abs(found - real).max() < 0.03 * np.abs(real).max()
    assert np.array_equal(IntegerModule(graph)(torch.from_numpy(images)).numpy(), execute(graph, images))


@pytest.mark.parametrize("engine", ["tiny4x4", "lookup8x16"])
def test_parts_compute_what_the_graph_does(network, engine):
    _, graph, images = network
    config = engine_of(engine)
    same, parts = split(graph, config)
    assert np.array_equal(execute(same, images), execute(graph, images))
    alone = {part.node.name for part in parts if part.node is not None}
    inside = [node for part in parts if part.graph for node in part.graph.nodes[1:]]
    assert len(alone) + len(inside) == len(same.nodes) - 1
    assert not any(isinstance(node, host.Host) or (isinstance(node, ir.Lookup) and not config.function_table) for node in inside)
    assert all(not isinstance(same[name], (ir.Conv2d, ir.Linear)) for name in alone)  # what has weights is the engine's


def test_one_call_runs_programs_and_host(bench, network, tmp_path):
    _, graph, images = network
    program = compile_split(graph, engine_of("tiny4x4"), 2)
    assert isinstance(program, SplitProgram) and len(program.programs) > 1
    program.save(tmp_path / "split.npz")
    _, engine = bench("tiny4x4")
    engine = SplitEngine(engine)
    for loaded in (program, tmp_path / "split.npz"):
        engine.load(loaded)
        result = engine.run(images)
        assert np.array_equal(result.outputs, execute(graph, images)) and result.scale == graph.output.scale
    assert {part["where"] for part in result.parts} == {"host", "engine"} and result.runs == 2
    assert sum(part["cycles"] for part in result.parts) == result.cycles
    assert [layer["name"] for layer in result.layers[0]] == [layer["name"] for layer in load_split(
        tmp_path / "split.npz").meta["layers"]]
    engine.unload()


@pytest.mark.parametrize("corners", [False, True])
def test_host_operators_equal_torch(corners):
    random = np.random.default_rng(1)
    x, y = random.standard_normal((2, 2, 4, 5, 3)), random.standard_normal((2, 4, 1, 1))
    common = dict(name="x", inputs=("x",), shape=(), format=None, scale=1.0)
    weight, bias = random.standard_normal((4, 3, 2, 3)), random.standard_normal(6)
    transposed = host.ConvTranspose2d(**common, weight=weight, bias=bias, stride=(2, 3), padding=(1, 0), more=(1, 2),
                                      dilation=(2, 1), groups=2)
    expected = F.conv_transpose2d(torch.from_numpy(x[0]), torch.from_numpy(weight), torch.from_numpy(bias), (2, 3), (1, 0), (1, 2),
                                  2, (2, 1)).numpy()
    assert np.allclose(transposed.real(x[0]), expected) and transposed.shape_of((4, 5, 3)) == expected.shape[1:]
    assert np.abs(expected).max() <= transposed.reach(np.abs(x).max())
    bilinear = host.Bilinear(**common, factor=(2, 3), corners=corners)
    assert np.allclose(bilinear.real(x[0]), F.interpolate(torch.from_numpy(x[0]), scale_factor=(2, 3), mode="bilinear",
                                                          align_corners=corners).numpy())
    assert np.allclose(host.Softmax(**common).real(x[0]), torch.softmax(torch.from_numpy(x[0]), 1).numpy())
    pixels, channels = torch.from_numpy(random.standard_normal((2, 8, 2, 3))), torch.from_numpy(random.standard_normal((2, 2, 4, 6)))
    assert np.array_equal(host.DepthToSpace(**common, crd=True).real(pixels.numpy()), F.pixel_shuffle(pixels, 2).numpy())
    assert np.array_equal(host.SpaceToDepth(**common, crd=True).real(channels.numpy()), F.pixel_unshuffle(channels, 2).numpy())
    assert np.allclose(host.Product(**common).real(x[0], y), x[0] * y)


def test_onnx_operators_equal_onnxruntime(tmp_path, capsys):
    """Steps of no power of two keep what the host makes off the ties, which ONNX rounds to even."""
    random, m = np.random.default_rng(3), Model(("n", 3, 6, 6))
    x = m.qdq(conv_layer(m, random, image_in(m), out=4), 2**-3, INT8)
    w = dequantized(m, random.integers(-7, 8, (4, 2, 3, 3)).astype(np.int8), np.float32(2**-4))
    x = m.qdq(m.add("Relu", m.add("ConvTranspose", x, w, np.full(4, 2**-9, np.float32), strides=[2, 2], pads=[1, 1, 0, 1],
                                  output_padding=[0, 1], group=2)), 2**-2, np.int8(-128))
    gate = m.qdq(m.add("GlobalMaxPool", x), 2**-2, np.int8(-128))
    x = m.qdq(m.add("Mul", gate, x), 0.31, np.uint8(0))
    x = m.qdq(m.add("Resize", x, "", np.float32([1, 1, 2, 2]), mode="linear"), 0.29, np.uint8(0))
    proto = m.proto(m.qdq(conv_layer(m, random, x, channels=4, out=2), 2**-1, INT8))
    graph, pixels = imported(proto, pixel_max=255 / 128, mean=1.0), random_pixels(random, 4, 3, 6, 6)
    expected = run_onnxruntime(proto, ((pixels - 128.0) / 128).astype(np.float32))
    found = execute(graph, pixels) * graph.output.scale
    assert (found != expected).mean() < 0.02 and np.abs(found - expected).max() <= 0.5
    file.save(graph, tmp_path / "graph.npz")
    assert main(["inspect", str(tmp_path / "graph.npz"), "--json"]) == 0
    said = {part["operator"] for part in json.loads(capsys.readouterr().out)["host"]}
    assert {"ConvTranspose2d", "Product", "Bilinear"} <= said
