"""Recipes carried out from end to end, and what they reach."""

import copy
import json

import numpy as np
import pytest
import torch

from esbflow.graph.bounds import check
from esbflow.graph.execute import execute
from esbflow.graph.file import load
from esbflow.networks.digits import DigitsNet
from esbflow.quant.export import export
from esbflow.quant.integer_module import integer_module
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training import api, data, loop
from esbflow.training.api import load_float_model, load_model, train_network
from esbflow.training.data import load_images
from esbflow.training.loop import Schedule, calibrate, evaluate, train
from esbflow.training.recipes import RECIPES
from esbflow.training.run_state import RunState


class Killed(Exception):
    pass


# -- recipes ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits recipe, trained once."""
    out = tmp_path_factory.mktemp("digits")
    return out, train_network("digits", out, progress=False)


def test_the_digits_recipe_reaches_97_percent_on_the_integer_graph(digits):
    out, metrics = digits
    assert metrics["graph_top1"] >= 97.0 and metrics["images"] == 360
    assert abs(metrics["graph_top1"] - metrics["fake_quant_top1"]) <= 100 / 360 + 1e-9  # one image of 360
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in out.iterdir()) == ["float.pt", "graph.npz", "metrics.json", "model.pt"]


def test_what_training_writes_agrees_with_its_metrics(digits):
    out, metrics = digits
    images, labels = load_images("digits", "test")
    graph = load(out / "graph.npz")
    outputs = execute(graph, images)
    assert api.top1(outputs, labels) == metrics["graph_top1"] == graph.info["graph_top1"]
    model = load_model(out / "model.pt")
    assert evaluate(model, images, labels) == metrics["fake_quant_top1"]
    assert np.array_equal(integer_module(model, (1, 8, 8))(torch.from_numpy(images)).numpy(), outputs)
    assert evaluate(load_float_model(out / "float.pt"), images, labels) == metrics["float_top1"]
    assert Recipe.from_json(graph.info["recipe"]) == RECIPES["digits"].quant
    check(graph, 28)


def test_training_starts_from_an_earlier_network_in_real_numbers(digits, tmp_path):
    start = digits[0] / "float.pt"
    metrics = train_network("digits", tmp_path / "again", epochs=1, progress=False, float_model=start)
    assert metrics["float_top1"] == digits[1]["float_top1"] and metrics["epochs"] == 1
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(start.read_bytes()[:1000])
    for path, text in ((tmp_path / "none.pt", "there is no file .*none.pt"),
                       (damaged, "damaged.pt is not a network in real numbers"),
                       (digits[0] / "graph.npz", "graph.npz is not a network in real numbers")):
        with pytest.raises(ValueError, match=text):
            load_float_model(path)
    with pytest.raises(ValueError, match=r"float.pt holds digits, and lenet5 is to be trained"):
        load_float_model(start, "lenet5")


@pytest.mark.parametrize("save_number", [1, 3])
def test_a_killed_training_resumes_to_the_same_graph(save_number, tmp_path, monkeypatch):
    """Killed in the real stage (first checkpoint) or in the low-bit stage (third)."""
    arguments = {"epochs": 2, "train_images": 150, "test_images": 50, "progress": False}
    train_network("digits", tmp_path / "unbroken", **arguments)
    save, saves = RunState.save, []

    def save_and_die(*values):
        save(*values)
        saves.append(1)
        if len(saves) == save_number:
            raise Killed

    monkeypatch.setattr(RunState, "save", save_and_die)
    with pytest.raises(Killed):
        train_network("digits", tmp_path / "killed", **arguments)
    monkeypatch.setattr(RunState, "save", save)
    train_network("digits", tmp_path / "killed", resume=True, **arguments)
    one, two = (load(tmp_path / name / "graph.npz") for name in ("unbroken", "killed"))
    for a, b in zip(one.nodes, two.nodes, strict=True):
        assert np.array_equal(getattr(a, "weight", None), getattr(b, "weight", None)) and a.scale == b.scale
    images = load_images("digits", "test")[0]
    assert np.array_equal(execute(one, images), execute(two, images))


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^no recipe named 'lenet'; known: lenet5-mnist, digits, "):
        train_network("lenet", tmp_path)


def test_a_compiled_model_computes_and_trains_the_same():
    torch.manual_seed(0)
    one = quantize(DigitsNet(), Recipe())
    images, labels = load_images("digits", "train", 64)
    calibrate(one, images)
    two = copy.deepcopy(one)
    x = loop.normalise(images, (0.0,), (1.0,))
    compiled = torch.compile(two.train(), backend="aot_eager", fullgraph=True)
    left, right = one.train()(x), compiled(x)
    assert torch.allclose(left, right, atol=1e-6)
    for out in (left, right):
        torch.nn.functional.cross_entropy(out, torch.as_tensor(labels)).backward()
    assert all(torch.allclose(p.grad, q.grad, atol=1e-5) for p, q in zip(one.parameters(), two.parameters()))


def test_mixed_precision_trains_and_exports():
    images, labels = load_images("digits", "train")
    torch.manual_seed(0)
    model = train(DigitsNet(), images, labels, Schedule(epochs=6, batch=32, rate=0.05), precision="bfloat16")
    model = train(quantize(model, Recipe()), images, labels, Schedule(epochs=3, batch=32, rate=0.02), precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    test, answers = load_images("digits", "test")
    assert (execute(export(model, shape=(1, 8, 8)), test).reshape(len(test), -1).argmax(1) == answers).mean() > 0.93
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, not 'int4'"):
        train(model, images, labels, Schedule(), precision="int4")


# -- MNIST --------------------------------------------------------------------------------------------------------
def has_mnist():
    folder = data.data_folder()
    return folder is not None and (folder / "MNIST" / "raw").is_dir()


@pytest.mark.skipif(not has_mnist(), reason="needs MNIST: set ESBFLOW_DATA to a folder that holds MNIST/raw")
def test_lenet5_learns_mnist_at_four_bits(tmp_path):
    """One epoch on a sixth of the images, at ESB(4,1) weights and 4-bit activations. The whole recipe is `make demo`, and
    what it reached is measured again with the zoo's model."""
    metrics = train_network("lenet5-mnist", tmp_path, epochs=1, train_images=10_000, progress=False)
    assert metrics["images"] == 10_000
    assert metrics["graph_top1"] >= 94.0
    assert metrics["graph_top1"] >= metrics["float_top1"] - 0.2
    assert abs(metrics["fake_quant_top1"] - metrics["graph_top1"]) <= 0.05 + 1e-9
    graph, model = load(tmp_path / "graph.npz"), load_model(tmp_path / "model.pt")
    check(graph, 28)
    layers = [node for node in graph.nodes if getattr(node, "weight", None) is not None]
    assert [str(node.weight_format) for node in layers] == ["esb4.1"] * 4
    assert {str(node.format) for node in layers[:-1]} == {"u4"} and str(graph.output.format) == "s32"
    images, labels = load_images("mnist", "test")
    outputs, module = execute(graph, images), integer_module(model, (1, 28, 28))
    assert api.top1(outputs, labels) == metrics["graph_top1"]
    for i in range(0, len(images), 500):
        assert np.array_equal(module(torch.tensor(images[i:i + 500])).numpy(), outputs[i:i + 500])
