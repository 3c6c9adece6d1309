"""The search for weights under a budget: costs are the compiler's, the budget holds, sensitive layers stay fine."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.cli import main
from esbflow.commands import search as search_command
from esbflow.engines import ENGINES
from esbflow.graph.file import load
from esbflow.networks.digits import DigitsNet
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.api import save_float_model
from esbflow.training.layer_bits import BitSearch, engine_within
from esbflow.training.loop import Schedule, calibrate, train


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.conv3, self.pool, self.linear = nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.conv3(torch.relu(self.conv2(torch.relu(self.conv1(x))))))
        return self.linear(torch.flatten(self.pool(x), 1))


@pytest.fixture(scope="module")
def search():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 200)
    images = (random.integers(0, 60, (200, 1, 8, 8)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    model = train(Net(), images, labels, Schedule(epochs=6, batch=20, rate=0.05)).eval()
    said = []
    found = BitSearch(model, Recipe(), images, labels, ENGINES["tiny4x4"], report=said.append)
    assert len(said) == 4
    return found


def test_a_generous_budget_keeps_everything_fine(search):
    choice = search.within(search.base.cycles)
    assert set(choice.weights.values()) == {"s8"} and choice.point == search.base


@pytest.mark.parametrize("of", ["cycles", "bytes"])
@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
def test_budgets_hold_for_the_compiled_network(search, of, share):
    budget = share * getattr(search.base, of)
    choice = search.within(budget, of)
    assert getattr(choice.point, of) <= budget
    assert search.measure(choice.weights) == choice.point
    cheaper = [name for name, text in choice.weights.items() if text != "s8"]
    assert cheaper and dict(choice.recipe.overrides) == choice.weights


def test_less_budget_never_costs_less_loss_than_the_cheapest_choice(search):
    losses = [search.within(share * search.base.bytes, "bytes").point.loss for share in (0.9, 0.6, 0.35)]
    cheapest = search.measure(dict.fromkeys(search.layers, "esb2.0")).loss
    assert max(losses) <= cheapest + 1e-6


def test_two_to_four_bits_cost_the_same_cycles_so_four_are_taken(search):
    choice = search.within(0.6 * search.base.cycles)
    saved = {text for text in choice.weights.values() if text != "s8"}
    points = search.points
    name = next(name for name, text in choice.weights.items() if text != "s8")
    assert points[name, "esb2.0"].cycles == points[name, "esb4.1"].cycles < points[name, "s8"].cycles
    assert saved <= {"esb4.1", "esb3.1", "esb2.0"}
    assert points[name, choice.weights[name]].loss == min(points[name, t].loss for t in ("esb2.0", "esb3.1", "esb4.1"))


def test_bad_budgets_are_refused(search):
    with pytest.raises(ValueError, match="a budget is of cycles or bytes, not of 'LUTs'"):
        search.within(1, "LUTs")
    with pytest.raises(ValueError, match=r"the cheapest weights still cost .* cycles; the budget is 10"):
        search.within(10)
    with pytest.raises(ValueError, match="no images"):
        BitSearch(search.model, Recipe(), np.zeros((0, 1, 8, 8), np.uint8), np.zeros(0), ENGINES["tiny4x4"])
    with pytest.raises(ValueError, match="at least two candidates"):
        BitSearch(search.model, Recipe(), search.images, search.labels, ENGINES["tiny4x4"], ("s8",))


def test_the_fastest_engine_that_fits_is_taken(search):
    model = calibrate(quantize(Net(), Recipe()), search.images).eval()
    graph = export(model, shape=(1, 8, 8))
    engines = {name: (ENGINES[name], size) for name, size in (("tiny4x4", 100), ("small8x16", 200), ("base16x16", 300))}
    assert engine_within(graph, engines, 150) == "tiny4x4"
    assert engine_within(graph, engines, 250) == "small8x16"
    with pytest.raises(ValueError, match="no engine has 50 LUTs or fewer; the smallest, tiny4x4, has 100"):
        engine_within(graph, engines, 50)


def test_the_command_writes_what_train_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ESBFLOW_DATA", raising=False)
    torch.manual_seed(0)
    save_float_model(DigitsNet(), "digits", tmp_path / "float.pt")
    common = ["--float", str(tmp_path / "float.pt"), "--engine", "tiny4x4", "--images", "60", "--json"]
    out = tmp_path / "choice.json"
    assert main(["search", "digits", "--budget", "0.8", "--out", str(out), *common]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content == json.loads(out.read_text()) and content["cycles"] <= 0.8 * content["finest"]["cycles"]
    assert len(content["weights"]) == 4
    assert main(["train", "digits", "--overrides", str(out), "--out", str(tmp_path / "run"), "--post-training", "50",
                 "--epochs", "1", "--json"]) == 0
    graph = load(tmp_path / "run" / "graph.npz")
    assert [str(node.weight_format) for node in graph.nodes if hasattr(node, "weight")] == list(content["weights"].values())
    assert main(["search", "digits", "--budget", "-1", "--out", str(out), *common]) == 2
    assert "the budget must be positive" in capsys.readouterr().err
    assert main(["search", "digits", "--budget", "1", "--out", str(out)]) == 2
    assert "give a trained network with --float" in capsys.readouterr().err
    sizes = {"tiny4x4": 100, "small8x16": 200}
    monkeypatch.setattr(search_command, "resources_of", lambda config, quiet: SimpleNamespace(lut=sizes[config.name]))
    for luts, expected in ((150, "tiny4x4"), (250, "small8x16")):
        assert main(["search", "digits", "--budget", "1", "--out", str(out), "--luts", str(luts), "--engines",
                     "small8x16 tiny4x4", *common]) == 0
        assert json.loads(capsys.readouterr().out)["engine"] == expected
    for options, text in ((["--luts", "50"], "no engine has 50 LUTs or fewer; the smallest, tiny4x4, has 100"),
                          (["--luts", "5", "--engines", " "], "--engines names no engine")):
        assert main(["search", "digits", "--budget", "1", "--out", str(out), "--engines", "tiny4x4", *options, *common]) == 2
        assert text in capsys.readouterr().err
    out.write_text("[")
    assert main(["train", "digits", "--overrides", str(out), "--out", str(tmp_path / "run")]) == 2
    assert "is no JSON object of layers and weights" in capsys.readouterr().err
