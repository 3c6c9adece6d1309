"""ALQ on whole models: schedules, checkpoints, and the way to integers and files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.graph.execute import execute
from esbflow.graph.file import load
from esbflow.networks.lenet5 import LeNet5
from esbflow.quant.export import export
from esbflow.quant.integer_module import integer_module
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training import api, loop
from esbflow.training.alq import ALQLayer, ALQSchedule, average_bits, prune, train_alq
from esbflow.training.api import load_model, save_model
from esbflow.training.loop import calibrate
from esbflow.training.recipes import RECIPES
from tests.sw.quantizers import gaussian, prepared


class Little(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8 * 4 * 4, 10)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.fc(torch.flatten(self.relu(self.conv2(self.relu(self.conv1(x)))), 1))


RECIPE = Recipe(weights="alq:3,pixel", first_weights="alq:3,kernel", last_weights="alq:3,sub2", activations="u8")


@pytest.fixture
def start(task):
    model = Little()
    loop.train(model, *task, loop.Schedule(epochs=8, batch=32, rate=0.05))
    return calibrate(quantize(model, RECIPE), task[0][:200])


SCHEDULE = ALQSchedule(bits=0.6, rounds=2, prunings=5, shadow_epochs=10, batch=32, rate=3e-3, shadow_rate=1e-2, shift=0)


def test_a_trained_model_has_its_bits_and_answers_in_integers_as_in_torch(task, start, tmp_path):
    images, labels = task
    seen = []
    train_alq(start, images, labels, SCHEDULE, report=lambda done, total, loss: seen.append((done, total)))
    assert seen[-1] == (16 * 16, 16 * 16)
    assert 0.3 < average_bits(start) <= 0.6
    assert loop.evaluate(start, images, labels) > 90
    graph = export(start, "little", (1, 8, 8))
    layers = [start.get_submodule(name) for name in ("conv1", "conv2", "fc")]
    nodes = [node for node in graph.nodes if hasattr(node, "weight")]
    for layer, node in zip(layers, nodes, strict=True):
        integers, scale = layer.weight_quantizer.eval().integers(layer.weight)
        assert np.array_equal(node.weight.reshape(integers.shape), integers.numpy())
        assert torch.allclose(integers * scale, layer.weight_quantizer(layer.weight).double(), atol=float(scale.max()) / 2)
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)  # no shadow is left
    random = np.random.default_rng(1).integers(0, 256, (50, 1, 8, 8)).astype(np.uint8)
    answers = execute(graph, random)
    assert np.array_equal(integer_module(start, (1, 8, 8))(torch.from_numpy(random)).numpy().astype(np.int64), answers)
    right = (execute(graph, images).reshape(len(images), -1).argmax(axis=1) == labels).mean()
    assert right > 0.9


def test_a_killed_run_goes_on_to_the_same_result(task, start, tmp_path, killed_after):
    images, labels = task
    schedule = ALQSchedule(bits=0.8, rounds=1, prunings=3, shadow_epochs=2, batch=64, shift=1)
    kept = {name: value.clone() for name, value in start.state_dict().items()}
    train_alq(start, images, labels, schedule, seed=3)
    whole = {name: value.clone() for name, value in start.state_dict().items()}
    for number in range(1, 5):
        path = tmp_path / f"{number}.ckpt"
        start.load_state_dict(kept)
        with killed_after(number):
            train_alq(start, images, labels, schedule, seed=3, checkpoint=path)
        start.load_state_dict(kept)
        train_alq(start, images, labels, schedule, seed=3, checkpoint=path)
        for name, value in start.state_dict().items():
            assert torch.equal(value, whole[name]), (number, name)


def test_the_ordinary_loop_trains_with_shadow_weights(task, start):
    before = start.get_submodule("conv2").weight_quantizer.codes.clone()
    loop.train(start, *task, loop.Schedule(epochs=2, batch=32, rate=0.02))
    assert not torch.equal(before, start.get_submodule("conv2").weight_quantizer.codes)
    assert loop.evaluate(start, *task) > 90


def test_state_survives_a_file(tmp_path):
    recipe = Recipe(weights="alq:2,sub2", first_weights="alq:2", last_weights="alq:2,channel")
    model = calibrate(quantize(LeNet5(), recipe), np.full((2, 1, 28, 28), 200, np.uint8))
    layers = [ALQLayer(m) for m in model.modules() if hasattr(m, "weight_quantizer")]
    prune(layers, 1500, 1e-3, per_weight=True)
    for layer in layers:
        layer.sync()
    save_model(model, recipe, "lenet5", tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    assert average_bits(again) == average_bits(model) < 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28)).astype(np.uint8)
    assert np.array_equal(execute(export(again, "a", (1, 28, 28)), images), execute(export(model, "a", (1, 28, 28)), images))


def test_stored_bits_are_the_published_account():
    w = gaussian(6, 10)
    quantizer = prepared(w, 3, "sub2")
    alive = int(quantizer.alive.sum())
    assert quantizer.stored_bits(w) == 12 * 4 + alive * 32 + alive * 5


@pytest.mark.parametrize("fields, message", [
    ({"bits": 0}, "bits a weight must be in 0..8"), ({"top_k": 0}, "top_k is a fraction"),
    ({"rounds": 0}, "must be at least 1"), ({"rate": 0}, "rates must be positive")])
def test_a_schedule_refuses_nonsense(fields, message):
    with pytest.raises(ValueError, match=message):
        ALQSchedule(**fields)


def test_training_needs_layers_and_images(task, start):
    with pytest.raises(ValueError, match="no layer has an ALQ quantizer"):
        train_alq(Little(), *task)
    with pytest.raises(ValueError, match="no images"):
        train_alq(start, task[0][:0], task[1][:0])


def test_a_recipe_trains_writes_model_and_graph_and_counts_signs(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (64, 1, 8, 8)).astype(np.uint8), random.integers(0, 10, 64)
    monkeypatch.setattr(api, "load_images", lambda name, split, count: data)
    recipe = replace(RECIPES["lenet5-mnist-alq"], network="digits", quant=RECIPE, real=loop.Schedule(epochs=1, batch=32),
                     low_bit=ALQSchedule(bits=0.5, rounds=1, prunings=2, shadow_epochs=1, batch=32))
    metrics = api.train_network(recipe, tmp_path / "alq", progress=False)
    assert metrics["epochs"] == 4 and 0.4 < metrics["weights_bits"] <= 0.5 and metrics["activation_bits"] == 8
    graph, model = load(tmp_path / "alq" / "graph.npz"), load_model(tmp_path / "alq" / "model.pt")
    assert metrics["weights_bits"] == pytest.approx(average_bits(model), abs=1e-3)
    answers = execute(graph, data[0])
    assert np.array_equal(answers, integer_module(model, (1, 8, 8))(torch.from_numpy(data[0])).numpy().astype(np.int64))
    assert metrics["graph_top1"] == pytest.approx(100 * (answers.reshape(64, -1).argmax(1) == data[1]).mean(), abs=0.01)
    again = api.train_network(recipe, tmp_path / "b", seed=4, progress=False, float_model=tmp_path / "alq" / "float.pt")
    assert again["float_top1"] == metrics["float_top1"]
    with pytest.raises(ValueError, match="training of ALQ runs in float32, uncompiled"):
        api.train_network(recipe, tmp_path / "c", progress=False, compiled=True, float_model=tmp_path / "alq" / "float.pt")
    assert recipe.with_epochs(3).low_bit.shadow_epochs == 3
