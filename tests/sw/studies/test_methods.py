"""Studies: every run names a method there is, records are written once, runs share the real-valued network."""

import json

import pytest

from esbflow import cli
from esbflow.networks.registry import NETWORKS
from esbflow.quant.methods.registry import activation_quantizer, weight_quantizer
from esbflow.quant.quantize import quantize
from esbflow.studies import methods as studies
from esbflow.studies.methods import STUDIES, Run, Study, carry_out, recipe_of
from esbflow.training import record
from esbflow.training.alq import ALQSchedule
from esbflow.training.product import ProductSchedule
from esbflow.training.recipes import RECIPES

ALIKE = {**dict.fromkeys(("lenet5", "resnet56", "cnv", "lfc", "tfc"), (True, True)),
         **dict.fromkeys(("cifarnet", "vgg7"), (True, False))}
"""Studies whose first and last layers have the weights of all others."""


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_a_recipe(name):
    study = STUDIES[name]
    assert len({run.name for run in study.runs}) == len(study.runs)
    for run in study.runs:
        recipe = recipe_of(study, run)
        weight_quantizer(recipe.quant.weights)
        activation_quantizer(recipe.quant.activations)
        assert recipe.low_bit.epochs == study.epochs
        alike = recipe.quant.first_weights == run.weights, recipe.quant.last_weights == run.weights
        assert alike == ALIKE.get(name, (False, False))
        assert recipe.quant.input_bits == (dict(run.options).get("input_bits") or RECIPES[study.recipe].quant.input_bits)


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
    with pytest.raises(ValueError, match="no study named 'x'; there are lenet5, resnet20, resnet56, vgg-small, cifarnet, "
                                         "vgg7, cnv, lfc, tfc, digits"):
        carry_out("x", out, results)


def test_a_record_says_how_its_run_differed(tmp_path, monkeypatch):
    monkeypatch.setitem(STUDIES, "digits", Study("digits", 1, 0.02, (Run("vecq2", "vecq:2", "u4"),)))
    [path] = carry_out("digits", tmp_path / "out", tmp_path, progress=False, seed=3, epochs=2, device="cpu",
                       precision="bfloat16")
    found = json.loads(path.read_text())
    assert found["epochs"] == 2 and found["hardware"].startswith("CPU ")
    assert found["command"] == ("esbflow study methods digits --only vecq2 --seed 3 --epochs 2 --device cpu "
                                "--precision bfloat16")


def test_the_command_line(monkeypatch, tmp_path, capsys):
    seen = []
    (tmp_path / "a.json").write_text('{"top1_integer_graph": 99.0}')
    monkeypatch.setattr(studies, "carry_out", lambda *given: seen.append(given) or [tmp_path / "a.json"])
    words = ["study", "methods", "lenet5", "--only", "vecq2", "--out", str(tmp_path), "--seed", "3", "--device", "cuda:1"]
    for more, progress, said in (([], True, "wrote "), (["--json"], False, '"written": {')):
        assert cli.main([*words, *more]) == 0
        given = seen.pop()
        assert given[0] == "lenet5" and given[3:] == ("vecq2", 3, progress, None, "cuda:1", "float32", False)
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("more, said", [
    (["--only", "vecq9"], "esbflow study: study lenet5 has no run 'vecq9'; it has ul2q1, "),
    (["--only", "vecq2", "--epochs", "0"], "esbflow study: epochs and batch must be at least 1, not 0 and 64"),
])
def test_bad_input_is_one_sentence(more, said, tmp_path, capsys):
    assert cli.main(["study", "methods", "lenet5", *more, "--out", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_its_network(name):
    recipe = RECIPES[name]
    model = quantize(NETWORKS[recipe.network](), recipe.quant)
    assert record.weights_bits(model) > 0 and (recipe.real is None) == (recipe.start is not None)
    assert isinstance(recipe.low_bit.epochs, int) and recipe.with_epochs(2) != recipe.with_epochs(4)
    kinds = {type(module.weight_quantizer).__name__ for module in model.modules() if hasattr(module, "weight_quantizer")}
    own = {ALQSchedule: "ALQQuantizer", ProductSchedule: "ProductQuantizer"}.get(type(recipe.low_bit))
    assert own in {*kinds, None}, "a training of its own needs layers of its method"
