"""Networks with several outputs, such as the heads of a detector, from torch and ONNX to the RTL and the command line."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.cli import main
from esbflow.commands import run
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.graph import file
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.interchange.onnx_import import import_onnx
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule
from esbflow.quant.recipe import Recipe
from tests.compiler.machine import Machine
from tests.end_to_end.conftest import engine_of
from tests.sw.exported_models import calibrated, images_for
from tests.sw.interchange.models import INT8, Model, conv_layer, image_in, random_pixels, run_onnxruntime


class Heads(nn.Module):
    """Two scales of features with a head each. The first features are an output too, beside the layer that reads them."""

    shape = (2, 6, 6)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.boxes = nn.ModuleList([nn.Conv2d(6, 4, 1), nn.Conv2d(5, 4, 1)])
        self.scores = nn.Conv2d(5, 3, 1)

    def forward(self, x):
        features = torch.relu(self.first(x))
        coarse = torch.relu(self.second(features))
        return {"features": features, "boxes": [self.boxes[0](features), self.boxes[1](coarse)],
                "scores": torch.sigmoid(self.scores(coarse))}


@pytest.fixture(scope="module")
def heads():
    torch.manual_seed(1)
    model = calibrated(Heads(), Recipe(weights="s4", activations="u4"), Heads.shape)
    return model, export(model, "heads", Heads.shape)


def same(found, expected):
    return list(found) == list(expected) and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_every_output_is_that_of_the_model(heads):
    model, graph = heads
    images = images_for(Heads.shape, 5)
    found, real = execute(graph, images), model(torch.from_numpy(images).float() / 255)
    expected = {"features": real["features"], "boxes.0": real["boxes"][0], "boxes.1": real["boxes"][1],
                "scores": torch.logit(real["scores"])}
    assert list(found) == list(expected)
    errors = graph.info["output_error"]
    for name, node in graph.results.items():
        limit = errors[name]["largest"] if name in errors else node.scale  # a tensor of the model's own quantizer
        assert np.abs(found[name] * node.scale - expected[name].detach().numpy()).max() <= limit + 1e-4, name
    assert same({name: value.numpy().astype(int) for name, value in IntegerModule(graph)(torch.from_numpy(images)).items()}, found)


@pytest.mark.parametrize("engine", ["slices4x4", "small8x16"])
def test_programs_store_every_output(heads, engine):
    graph, images = heads[1], images_for(Heads.shape, 3)
    for stripes in (False, True) if engine_of(engine).stripes else (False,):
        program = compile_graph(graph, engine_of(engine), 3, stripes=stripes)
        for order in (None, np.random.default_rng(3)):
            assert same(Machine(program).run(images, order), execute(graph, images))


def test_the_rtl_stores_every_output(bench, heads):
    graph, images = heads[1], images_for(Heads.shape, 3)
    program = compile_graph(graph, engine_of("tiny4x4"), 2)
    _, engine = bench("tiny4x4")
    engine.load(program)
    result = engine.run(images)
    assert same(result.outputs, execute(graph, images)) and result.cycles == 2 * count_cycles(program).total
    assert result.scale == {name: node.scale for name, node in graph.results.items()}


def test_onnx_heads_and_their_files(tmp_path, capsys):
    random, m = np.random.default_rng(2), Model(("n", 2, 5, 5))
    features = m.qdq(m.add("Relu", conv_layer(m, random, image_in(m), out=6, channels=2)), 2**-3, np.int8(-128))
    heads = [m.qdq(conv_layer(m, random, features, channels=6, out=3), 2**-3, INT8), features]
    proto = m.proto(heads[0])
    proto.graph.output.append(type(proto.graph.output[0])(name=features))
    proto.graph.output[1].type.CopyFrom(proto.graph.output[0].type)
    (tmp_path / "heads.onnx").write_bytes(proto.SerializeToString())
    graph = import_onnx(tmp_path / "heads.onnx", pixel_max=255 / 128, mean=1.0)
    images = random_pixels(random, 4, 2, 5, 5)
    found = execute(graph, images)
    for name, expected in zip(heads, run_onnxruntime(proto, ((images - 128.0) / 128).astype(np.float32), every=True), strict=True):
        assert np.array_equal(found[name] * graph.results[name].scale, expected)
    np.savez(tmp_path / "images.npz", images=images)
    file.save(graph, tmp_path / "graph.npz")
    command = ["run", str(tmp_path / "graph.npz"), "--data", str(tmp_path / "images.npz"), "--json", "--outputs"]
    main([*command, str(tmp_path / "out.npz")])
    assert json.loads(capsys.readouterr().out)["top1"] is None
    with np.load(tmp_path / "out.npz") as saved:
        assert same({name: saved[name] for name in heads}, found)
        assert saved[f"{heads[1]}.scale"] == graph.results[heads[1]].scale
    assert main([*command, str(tmp_path / "out.npy")]) == 2 and "2 outputs" in capsys.readouterr().err


def test_outputs_may_have_any_name(tmp_path):
    outputs = {name: np.arange(4) + k for k, name in enumerate(("file", "args", "head/0:0", "x"))}
    run._save(tmp_path / "out.npz", outputs, dict.fromkeys(outputs, 0.5))
    with np.load(tmp_path / "out.npz") as saved:
        assert same({name: saved[name] for name in outputs}, outputs) and saved["file.scale"] == 0.5


class Echo(nn.Module):
    shape = (2, 4, 4)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return self.conv(x), x


def test_what_no_layer_computes_is_no_output(heads):
    with pytest.raises(GraphError, match="which no layer computes"):
        export(calibrated(Echo(), Recipe(), Echo.shape), "echo", Echo.shape)
    with pytest.raises(GraphError, match=r"4 outputs, features, boxes.0"):
        _ = heads[1].output
