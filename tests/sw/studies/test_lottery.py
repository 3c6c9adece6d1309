"""Learned bits as a lottery ticket: the same widths, weights and images in each training, the record, the command."""

import json
from pathlib import Path

import pytest
import torch

from esbflow import cli
from esbflow.studies import lottery
from esbflow.training import record

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def found():
    return lottery.run("digits", seeds=2, penalty=0.6, epochs=2, images=300)


def test_a_ticket_has_the_widths_that_were_learned_and_one_width_is_beside_their_mean(found):
    for play in found["plays"]:
        learned = play["learned"]["widths"]
        assert len(set(learned.values())) > 1, "the penalty is one at which layers differ"
        assert play["ticket"]["widths"] == learned and play["ticket"]["bytes"] == play["learned"]["bytes"]
        below, above = play["fixed"]
        assert below["bits"] <= play["ticket"]["bits"] < above["bits"] == below["bits"] + 1
        assert below["bytes"] <= play["ticket"]["bytes"] < above["bytes"]


def test_the_record_has_what_the_ledger_reads_and_the_table_each_seed(found, tmp_path):
    assert set(record.KEYS) <= set(found)
    tickets = [play["ticket"]["top1"] for play in found["plays"]]
    assert found["top1_integer_graph"] == pytest.approx(sum(tickets) / 2, abs=0.006)
    assert found["command"] == "esbflow study lottery digits --seeds 2 --epochs 2 --images 300 --penalty 0.6"
    (tmp_path / "lottery-digits-digits.json").write_text(json.dumps(found))
    row = next(line for line in lottery.table(tmp_path).splitlines() if "those bits, from scratch" in line)
    bits = "-".join(map(str, found["plays"][0]["ticket"]["widths"].values()))
    assert f"| {bits} | " in row and f"| {tickets[0]:.2f} {tickets[1]:.2f} | " in row


def test_all_trainings_of_a_seed_begin_with_the_same_weights(monkeypatch):
    seen = []
    monkeypatch.setattr(lottery, "train", lambda model, *rest, **options: seen.append(
        (model.conv1.weight.detach().clone(), options["seed"])) or model)
    play = lottery.Lottery("digits", images=64)
    for kind, quant in (("real", None), ("learned", play.quant()), ("ticket", play.quant(widths={"conv1": 3}))):
        play.trained(7, kind, quant)
    assert all(torch.equal(weight, seen[0][0]) and seed == 7 for weight, seed in seen)


def test_the_command_line(tmp_path, capsys):
    assert cli.main(["study", "lottery", "digits", "--seeds", "1", "--epochs", "1", "--images", "64", "--out",
                     str(tmp_path / "out"), "--results", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "lottery-digits-digits.json").read_text()) == said
    assert not list((tmp_path / "out").glob("*.ckpt")), "they are for interrupted studies"
    assert cli.main(["study", "lottery", "--table", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("digits, digits](results/lottery-digits-digits.json)") == 5


@pytest.mark.parametrize("words, said", [
    (["resnet20-cifar10-w4a4"], "a lottery trains from scratch, and resnet20's recipe starts from public weights; take one that "
                                "does not, such as tfc-mnist-w2a2"),
    (["digits", "--seeds", "0"], "the number of seeds must be at least 1, not 0"),
    (["digits", "--penalty", "-1"], "the penalty must be positive, not -1"),
    (["digits", "--epochs", "0"], "epochs and batch must be at least 1, not 0 and 32"),
    (["digit"], "no recipe named 'digit'; known: lenet5-mnist, digits, "),
])
def test_bad_input_is_one_sentence(words, said, capsys):
    assert cli.main(["study", "lottery", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_page_has_the_records():
    assert lottery.table(DOCS / "results") in (DOCS / "method_results.md").read_text()
