"""One name for a layer: what a recipe takes is what graphs, tables and messages show."""

import json

import pytest
import torch
from torch import nn

from esbflow.cli import main
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.file import save
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.reports.inspection import inspect
from esbflow.training.loop import calibrate
from tests.sw.exported_models import images_for

SHAPE = (3, 8, 8)


class Block(nn.Module):
    """One ReLU for two sums, and one convolution called twice."""

    def __init__(self, channels):
        super().__init__()
        self.pw, self.dw = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm, self.act = nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x):
        y = self.act(self.norm(self.pw(x)) + x)
        return self.act(self.dw(y)) + torch.relu(self.pw(y))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu_1 = nn.Conv2d(3, 8, 3, padding=1)  # called as torch.fx calls an operation
        self.b1, self.input = Block(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.b1(torch.relu(self.relu_1(x)))
        return self.input(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def exported(recipe=Recipe()):
    model = calibrate(quantize(Net(), recipe), images_for(SHAPE, 16))
    return model, export(model, "net", SHAPE)


def test_a_layer_is_called_as_its_module_everywhere(tmp_path, capsys):
    model, graph = exported()
    layers = ["relu_1", "b1.pw", "b1.dw", "b1.pw_1", "input_1"]
    assert [node.name for node in graph.nodes if hasattr(node, "weight")] == layers
    assert graph.info["modules"] == dict(zip(layers, ("relu_1", "b1.pw", "b1.dw", "b1.pw", "input")))
    assert [entry["name"] for entry in inspect(graph, model)] == layers
    program = compile_graph(graph, ENGINES["tiny4x4"], 1)
    assert set(layers) <= {layer["name"] for layer in program.meta["layers"]}
    path = save(graph, tmp_path / "graph.npz")
    for command in (["inspect", str(path)], ["estimate", str(path)]):
        assert main([*command, "--json"]) == 0
        assert set(layers) <= {layer["name"] for layer in json.loads(capsys.readouterr().out)["layers"]}


@pytest.mark.parametrize("name", ["relu_1", "b1.pw", "b1.dw", "b1.pw_1", "input_1"])
def test_overrides_take_each_name_that_is_shown(name):
    _, graph = exported(Recipe(overrides={name: "s3"}))
    found = {node.name: str(node.weight_format) for node in graph.nodes if hasattr(node, "weight")}
    assert [key for key, form in found.items() if form == "s3"] == (["b1.pw", "b1.pw_1"] if "pw" in name else [name])


def test_activation_overrides_take_the_name_of_each_tensor_that_is_shown():
    _, plain = exported()
    for node in plain.nodes[1:-1]:
        text = "s5" if node.format.min else "u5"
        _, graph = exported(Recipe(activation_overrides={node.name: text}))
        assert [other.name for other in graph.nodes if str(other.format) == text] == [node.name]


def test_a_tensor_stored_twice_has_two_names():
    recipe = Recipe(residual_activations="u8", activations="u2", activation_overrides={"relu_1_low": "u3"})
    _, graph = exported(recipe)
    assert (str(graph["relu_1"].format), str(graph["relu_1_low"].format)) == ("u8", "u3")


def test_messages_name_the_module():
    class Wrong(Net):
        def forward(self, x):
            return self.b1.pw(nn.functional.pad(self.relu_1(x), (0, 5)))

    model = calibrate(quantize(Wrong()), images_for(SHAPE, 4))
    with pytest.raises(Exception, match=r"^b1\.pw: zeros behind its map"):
        export(model, "net", SHAPE)
