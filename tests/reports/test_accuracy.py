"""The ledger and the tables of methods and of passes are what their commands print."""

import json
from pathlib import Path

import pytest

from esbflow.reports import accuracy, methods_table, passes_table
from esbflow.reports.marks import filled
from esbflow.training import record

DOCS = Path(__file__).parents[2] / "docs"


def test_the_ledger_is_the_one_of_the_records():
    assert (DOCS / "accuracy.md").read_text() == accuracy.ledger(accuracy.read_results(DOCS / "results"))


def test_the_table_of_methods_is_up_to_date():
    assert (DOCS / "methods.md").read_text() == methods_table.page()


def test_the_table_of_passes_is_the_list_that_the_compiler_runs():
    assert filled((DOCS / passes_table.PAGE).read_text(), passes_table.MARK) == passes_table.table()


def test_a_record_appears_beside_the_published_number(tmp_path):
    content = dict.fromkeys(record.KEYS, 1) | {"method": "ul2q:2", "network": "lenet5", "data": "mnist", "weights_bits": 2.0,
                                               "activation_bits": 8, "top1_integer_graph": 99.25, "command": "esbflow train x"}
    record.write(tmp_path / "results" / "lenet5-ul2q2.json", content)
    page = accuracy.ledger(accuracy.read_results(tmp_path / "results"))
    line = next(line for line in page.splitlines() if line.startswith("| muL2Q | LeNet-5 | MNIST | 2/32 "))
    assert "**99.25** [2/8](results/lenet5-ul2q2.json)" in line
    other = next(line for line in page.splitlines() if line.startswith("| muL2Q | LeNet-5 | MNIST | 1/32 "))
    assert "not reproduced" in other


def test_our_best_esb_of_as_many_bits_stands_in_every_row():
    def esb(top1, bits, activations, **other):
        return {"method": "esb3.1", "network": "resnet20", "data": "cifar10", "weights_bits": bits, "minutes": 1,
                "activation_bits": activations, "top1_integer_graph": top1, "command": "x", **other}

    page = accuracy.ledger({"worse": esb(90.9, 3.04, 3), "best": esb(91.2, 3.04, 3), "other-net": esb(99, 3.0, 3, network="vgg"),
                            "other-method": esb(99, 3.0, 3, method="lsq:s3"), "four": esb(99, 4.04, 3),
                            "no-accuracy": {"method": "esb3.1"}})
    lines = {tuple(cell.strip() for cell in line.split("|")[1:5]): line.split("|")[9].strip() for line in page.splitlines()
             if line.startswith("| ")}
    assert lines["APoT", "ResNet-20", "CIFAR-10", "3/3"] == "[91.20](results/best.json)"
    assert lines["LQ-Nets", "ResNet-20", "CIFAR-10", "3/3"] == "[91.20](results/best.json)"
    assert lines["APoT", "ResNet-20", "CIFAR-10", "4/4"] == lines["LQ-Nets", "VGG-small", "CIFAR-10", "3/3"] == ""


def test_saliency_has_a_section_of_its_own():
    result = {"method": "vecq:2", "weights_bits": 2.1, "activation_bits": 8, "bytes": 1234, "bytes_float": 56789, "minutes": 3,
              "command": "python -m x"}
    for i, suffix in enumerate(("_integer_graph", "_float")):
        result |= {name + suffix: 0.5 + i / 4 for name in accuracy.SALIENCY_MEASURES}
    page = accuracy.ledger({"saliency-unet-vecq2-u8": result})
    head, _, section = page.partition("## Saliency")
    assert "vecq2" not in head
    assert "| vecq:2 | 2.1/8 | integers | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 1,234 |" in section
    assert "| vecq:2 | 2.1/8 | FP32 | 0.7500 | 0.7500 | 0.7500 | 0.7500 | 56,789 |" in section and "fake" not in section
    assert "## Saliency" not in accuracy.ledger({})


def test_networks_that_were_not_trained_have_a_section_of_their_own_and_old_records_a_mark():
    result = {"network": "resnet18", "method": "esb4.1", "activations": "u4", "images": 20, "minutes": 2, "command": "x",
              "top1_float": 80.0}
    for i, kind in enumerate(accuracy.FIDELITY_KINDS):
        result |= {f"sqnr_db_{kind}": 12.34 - i, f"agreement_{kind}": 75.0, f"top1_{kind}": 70.0}
    old = {"method": "esb3.1", "network": "resnet20", "data": "cifar10", "weights_bits": 3.0, "activation_bits": 3,
           "top1_integer_graph": 91.0, "command": "y", "before": "d818c1a"}
    head, _, section = accuracy.ledger({"near": result, "old": old}).partition("## Beside the real network")
    assert "| resnet18 | esb4.1, u4 | 20 | 12.3 | 11.3 | 75 | 75 | 70 | 70 | 80 | 2 |  | `x` |" in section
    assert "results/near.json" not in head and "| before d818c1a | `y` |" in head


def test_bad_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a record needs 'network'"):
        record.write(tmp_path / "x.json", {"method": "esb"})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "broken.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(ValueError, match=r"broken.json is not JSON"):
        accuracy.read_results(tmp_path)
