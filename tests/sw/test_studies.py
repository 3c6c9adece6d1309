"""Studies: every run names a method there is, records are written once, runs share the real-valued network."""

import json

import pytest

from esbflow.networks.registry import NETWORKS
from esbflow.quant.convert import quantize
from esbflow.quant.methods import activation_quantizer, weight_quantizer
from esbflow.training import record, studies
from esbflow.training.alq import ALQSchedule
from esbflow.training.product import ProductSchedule
from esbflow.training.recipes import RECIPES
from esbflow.training.studies import STUDIES, Run, Study, carry_out, recipe_of


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_a_recipe(name):
    study = STUDIES[name]
    assert len({run.name for run in study.runs}) == len(study.runs)
    for run in study.runs:
        recipe = recipe_of(study, run)
        weight_quantizer(recipe.quant.weights)
        activation_quantizer(recipe.quant.activations)
        assert recipe.low_bit.epochs == study.epochs
        assert (recipe.quant.first_weights == run.weights) == (name == "lenet5")


def test_records_are_written_once_and_the_real_network_is_shared(tmp_path, monkeypatch):
    study = Study("digits", 1, 0.02, (Run("vecq2", "vecq:2", "u4"), Run("esb4", "esb4.1", "u4")))
    monkeypatch.setitem(STUDIES, "digits", study)
    out, results = tmp_path / "out", tmp_path / "results"
    first = carry_out("digits", out, results, progress=False)
    assert [path.name for path in first] == ["digits-vecq2.json", "digits-esb4.json"]
    one, two = (json.loads(path.read_text()) for path in first)
    assert one["top1_float"] == two["top1_float"], "trained once"
    assert set(record.KEYS) <= set(one) and one["method"] == "vecq:2" and one["weights_bits"] < 3 < two["weights_bits"]
    assert carry_out("digits", out, results, progress=False) == []
    with pytest.raises(ValueError, match="study digits has no run 'x'; it has vecq2, esb4"):
        carry_out("digits", out, results, only="x")
    with pytest.raises(ValueError, match="no study named 'x'; there are lenet5, resnet20, digits"):
        carry_out("x", out, results)


def test_the_command_line(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(studies, "carry_out", lambda *arguments: seen.append(arguments) or [tmp_path / "a.json"])
    studies.main(["lenet5", "--only", "vecq2", "--out", str(tmp_path), "--seed", "3"])
    assert seen[0][0] == "lenet5" and seen[0][3:] == ("vecq2", 3)
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_its_network(name):
    recipe = RECIPES[name]
    model = quantize(NETWORKS[recipe.network](), recipe.quant)
    assert record.weights_bits(model) > 0 and (recipe.real is None) == (recipe.start is not None)
    assert isinstance(recipe.low_bit.epochs, int) and recipe.with_epochs(2) != recipe.with_epochs(4)
    kinds = {type(module.weight_quantizer).__name__ for module in model.modules() if hasattr(module, "weight_quantizer")}
    own = {ALQSchedule: "ALQQuantizer", ProductSchedule: "ProductQuantizer"}.get(type(recipe.low_bit))
    assert own in {*kinds, None}, "a training of its own needs layers of its method"
