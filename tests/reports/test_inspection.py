"""Inspection of layers, the format selector, and their command."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from esbflow.cli import main
from esbflow.engines import ENGINES
from esbflow.graph.random import random_graph
from esbflow.networks.digits import DigitsNet
from esbflow.numbers import Format
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.reports.formats import list_formats, product_cost
from esbflow.reports.inspection import gaussian_sqnr, histogram_line, inspect, warnings, weight_sqnr
from esbflow.training.api import save_model
from esbflow.training.loop import calibrate


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    recipe = Recipe(overrides=(("conv2", "vecq:2"),))
    model = quantize(DigitsNet(), recipe)
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
    return calibrate(model, images).eval(), recipe


def test_every_layer_is_described(trained):
    model, _ = trained
    graph = export(model, shape=(1, 8, 8))
    entries = inspect(graph, model)
    assert len(entries) == 4
    second = entries[1]
    assert second["chosen_by"] == "VecQ" and second["form"].bits == 2 and second["zeros"] == 0
    assert second["headroom_bits"] == 28 - second["accumulator_bits"]
    for entry, node in zip(entries, [n for n in graph.nodes if hasattr(n, "weight")]):
        layer = [m for m in model.modules() if hasattr(m, "weight_quantizer")][entries.index(entry)]
        real = layer.weight.detach().numpy().reshape(len(node.weight), -1)
        error = real - node.weight.reshape(len(real), -1) * node.weight_scale[:, None]
        assert entry["sqnr_db"] == pytest.approx(10 * math.log10((real ** 2).sum() / (error ** 2).sum()), abs=1e-6)
    assert [e["sqnr_db"] for e in inspect(graph)] == [None] * 4, "the graph alone does not know the real weights"


def test_sqnr_is_what_it_says():
    real = np.array([[3.0, 4.0]])
    assert weight_sqnr(real, np.array([[3, 4]]), np.ones(1)) == math.inf
    assert weight_sqnr(real, np.array([[3, 3]]), np.ones(1)) == pytest.approx(10 * math.log10(25))
    assert gaussian_sqnr(Format.parse("s8")) == pytest.approx(40.5, abs=0.2)


def test_saturation_bad_scales_and_overflow_are_said(trained):
    model, _ = trained
    graph = export(model, shape=(1, 8, 8))
    entries = inspect(graph, model, accumulator_bits=8)
    entries[0].update(saturation=0.5, sqnr_db=1.0)
    said = " ".join(warnings(entries))
    assert "50.0 % of the weights are at the end levels" in said and "below what" in said
    assert "accumulator needs" in said


@pytest.mark.parametrize("text, length", [("esb4.1", 15), ("bin", 2), ("s8", 33)])
def test_histograms_have_a_character_a_level(text, length):
    form = Format.parse(text)
    line = histogram_line(form.nearest(np.random.default_rng(0).normal(0, form.max / 3, 2000)), form)
    assert len(line) == length and "█" in line


def test_random_graphs_can_be_inspected():
    for seed in range(5):
        entries = inspect(random_graph(np.random.default_rng(seed)))
        assert all(0 <= e["saturation"] <= 1 and e["accumulator_bits"] > 0 for e in entries)


def test_the_selector_lists_every_format_with_its_cost():
    found = {entry["format"]: entry for entry in list_formats(8)}
    assert set(found) >= {"esb2.0", "esb3.0", "esb3.1", "esb4.0", "esb4.1", "esb4.2", "esb8.5"}
    assert "gaussian" in found["esb4.1"]["best"] and "laplace" in found["esb4.1"]["best"]
    assert found["esb4.1"]["gaussian"] == pytest.approx(1.26849e-2, rel=1e-4)
    # Widths of sums of 576 products, as the published design's table has them for ESB activations.
    assert product_cost(Format.parse("esb4.1"), Format.parse("uesb4.2"))["accumulator_bits"] == 19
    assert product_cost(Format.parse("esb2.0"), Format.parse("u4"))["accumulator_bits"] == 15
    with pytest.raises(ValueError, match="listed for 2 to 10 bits, not 40"):
        list_formats(40)


def test_the_command_prints_json_writes_a_page_and_refuses_nothing(trained, tmp_path, capsys):
    model, recipe = trained
    save_model(model, recipe, "digits", tmp_path / "model.pt")
    assert main(["inspect", str(tmp_path / "model.pt"), "--json", "--html", str(tmp_path / "page.html")]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["layers"]) == 4 and "integers" not in content["layers"][0]
    assert content["input"] == "the host folds: engine base16x16 has no image buffer (image_beats = 0)"
    (tmp_path / "engine.json").write_text(json.dumps(replace(ENGINES["base16x16"], image_beats=512).to_dict()))
    assert main(["inspect", str(tmp_path / "model.pt"), "--engine", str(tmp_path / "engine.json")]) == 0
    assert "input: raw pixels" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert main(["inspect", "--formats", "4"]) == 0
    assert "esb4.1" in capsys.readouterr().out
    assert main(["inspect"]) == 2
    assert "give a model to inspect" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "none.pt")]) == 2
