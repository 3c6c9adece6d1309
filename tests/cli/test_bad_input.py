"""Bad input: one sentence that names the thing and the fix, exit code 2, nothing half-written."""

import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest

from esbflow import cli
from esbflow.training.run_state import RunState


def test_a_missing_model_is_named_with_the_fix(refused, tmp_path):
    missing = tmp_path / "none.npz"
    for command in (["run"], ["estimate"], ["compile", "--out", tmp_path / "p.npz"]):
        assert refused(*command, missing) == (f"esbflow {command[0]}: there is no model file {missing}; make one with "
                                              "`esbflow train` or `esbflow export`")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_model_is_refused(refused, model, keep):
    content = model.read_bytes()
    model.write_bytes(content[:int(keep * len(content)) if isinstance(keep, float) else keep])
    assert f"{model} is not a whole model file" in refused("estimate", model)


@pytest.mark.parametrize("name, command, way", [
    ("m.onnx", ["run"], "`esbflow import {path} --out graph.npz`"), ("m.onnx", ["compile", "--out", "p"], "`esbflow import"),
    ("m.onnx", ["estimate"], "`esbflow import {path} --out graph.npz`"),
    ("m.pt", ["run"], "`esbflow export {path} --out graph.npz`"), ("m.PTH", ["estimate"], "`esbflow export {path}"),
    ("m.tflite", ["run"], "`python -m tf2onnx.convert --tflite {path}"), ("m.h5", ["run"], "convert it with tf2onnx"),
    ("m.tflite", ["import", "--out", "g"], "--tflite {path}"), ("m.pt", ["import", "--out", "g"], "`esbflow export {path}"),
])
def test_a_model_of_another_tool_is_named_with_its_way_in(refused, tmp_path, name, command, way):
    path = tmp_path / name
    path.write_bytes(b"something")
    assert way.format(path=path) in refused(command[0], path, *command[1:])


def test_another_file_is_no_model(refused, data):
    assert f"{data} is not a whole model file" in refused("run", data)


def test_an_unknown_engine_lists_the_known_ones(refused, model):
    sentence = refused("estimate", model, "--engine", "huge")
    assert sentence.startswith("esbflow estimate: no engine named 'huge'; known: tiny4x4, ")


def test_a_json_that_is_no_engine_is_named(refused, tmp_path):
    path = tmp_path / "engine.json"
    path.write_text("{}")
    assert f"{path} is no engine's configuration: it has no name and no rows and no cols" in refused("rtl", "--engine", path, "--out", tmp_path)
    path.write_text(json.dumps({"config": {"name": "odd", "rows": 6, "cols": 8}}))
    assert "rows must be a power of two in 4..128, not 6" in refused("rtl", "--engine", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given, hint", [
    (["estimate", "x.npz", "--engine", "base16x61"], "; did you mean base16x16?"),
    (["rum", "x.npz"], "; did you mean run? see `esbflow --help`"),
    (["run", "x.npz", "--bakend", "rtl"], "; did you mean --backend? see `esbflow --help`"),
    (["run", "x.npz", "--backend", "goldn"], "; did you mean golden? see `esbflow run --help`"),
    (["train", "lenet5-minst", "--out", "x"], "; did you mean lenet5-mnist?"),
    (["run", "x.npz", "--frobnicate"], "unrecognized arguments: --frobnicate; see `esbflow --help`"),
])
def test_the_nearest_known_name_is_named(refused, given, hint):
    assert refused(*given).endswith(hint)


@pytest.mark.parametrize("content, reason", [
    (b"\xff\xfe", "is no JSON file of an engine: 'utf-8' codec can't decode"),
    (b"[1]", "is no engine's configuration: it holds no object"),
    (b'{"name": "../up", "rows": 8, "cols": 8}', "name must be 1 to 64 letters, digits, '_', '-' or '.', and begin with"),
    (b'{"name": "", "rows": 8, "cols": 8}', "name must be 1 to 64 letters"),
    (b'{"name": "x", "rows": 8, "collumns": 8}', "no engine parameter named 'collumns'; known: "),
    (b'{"name": "x", "rows": 8}', "is no engine's configuration: it has no cols"),
    (None, "there is no engine file "),
])
def test_a_file_that_is_no_engine_is_named(refused, tmp_path, content, reason):
    path = tmp_path / "engine.json"
    if content is not None:
        path.write_bytes(content)
    sentence = refused("rtl", "--engine", path, "--out", tmp_path / "out")
    assert reason in sentence and str(path) in sentence
    assert not (tmp_path / "out").exists()


def test_a_network_of_other_scales_is_refused_where_lanes_shift(refused, model, tmp_path):
    (tmp_path / "shift.json").write_text('{"name": "shift4x4", "rows": 4, "cols": 4, "requantizer": "shift"}')
    said = refused("compile", model, "--engine", tmp_path / "shift.json", "--out", tmp_path / "p.esbp")
    assert re.search(r"layer \w+: engine shift4x4 requantizes by shifts and m of channel \d+ is -?\d+, no power of two; train with "
                     r"power-of-two scales", said)
    assert not (tmp_path / "p.esbp").exists()
    (tmp_path / "shift.json").write_text('{"name": "shift4x4", "rows": 4, "cols": 4, "requantizer": "shifts"}')
    assert "requantizer must be one of multiply, shift, not 'shifts'" in refused(
        "compile", model, "--engine", tmp_path / "shift.json", "--out", tmp_path / "p.esbp")


def test_a_program_needs_its_engine_and_no_other_batch(refused, esbflow, model, data, tmp_path):
    program = tmp_path / "program.npz"
    esbflow("compile", model, "--engine", "tiny4x4", "--batch", 2, "--out", program)
    run = ["run", program, "--data", data]
    assert "is a compiled program: give --backend rtl or board, or its integer graph" in refused(*run)
    run += ["--backend", "rtl"]
    assert "is for engine tiny4x4, not base16x16; leave --engine out, or" in refused(*run, "--engine", "base16x16")
    assert "runs 2 images at a time; leave --batch out" in refused(*run, "--batch", 4)
    assert "a compiled program knows how it takes images" in refused(*run, "--channels-last")


def test_outputs_go_to_files_of_numpy_only(refused, model, data, tmp_path):
    sentence = refused("run", model, "--data", data, "--outputs", tmp_path / "outputs.csv")
    assert sentence == f"esbflow run: --outputs {tmp_path / 'outputs.csv'} must end in .npy or .npz"


@pytest.mark.parametrize("option", ["--images", "--batch"])
@pytest.mark.parametrize("value, reason", [("0", "must be at least 1, not 0"), ("-4", "must be at least 1, not -4"),
                                           ("few", "must be a whole number, not 'few'")])
def test_counts_are_positive(refused, model, option, value, reason):
    assert refused("run", model, f"{option}={value}") == (
        f"esbflow run: argument {option}: {reason}; see `esbflow run --help`")


def test_a_batch_beyond_the_engine_is_refused(refused, model, tmp_path):
    sentence = refused("compile", model, "--batch", "257", "--out", tmp_path / "program.npz")
    assert sentence == "esbflow compile: batch must be in 1..256, not 257"
    assert not (tmp_path / "program.npz").exists()


def test_images_of_the_wrong_shape_or_type_are_refused(refused, model, tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=np.zeros((2, 1, 3, 3), np.uint8))
    assert "images must have shape (n, " in refused("run", model, "--data", path)
    np.savez(path, images=np.zeros((2, 1, 3, 3)))
    assert "images must be uint8, not float64" in refused("run", model, "--data", path)


def test_no_images_are_refused(refused, model, graph, tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=np.zeros((0, *graph.input.shape), np.uint8))
    for backend in ("golden", "rtl"):
        assert "no images" in refused("run", model, "--data", path, "--backend", backend, "--engine", "tiny4x4")


def test_a_missing_or_damaged_data_file_is_named(refused, model, data, tmp_path):
    missing = tmp_path / "none.npz"
    assert refused("run", model, "--data", missing) == f"esbflow run: there is no data file {missing}"
    data.write_bytes(data.read_bytes()[:100])
    assert f"{data} is not a whole .npz with an array `images`" in refused("run", model, "--data", data)
    np.savez(data, pictures=np.zeros(3))
    assert f"{data} has no array `images`; it has pictures" in refused("run", model, "--data", data)
    assert "x.npy is no .npz; write one with np.savez(" in refused("run", model, "--data", "x.npy")


def test_labels_must_be_as_many_as_images(refused, model, graph, tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, images=np.zeros((3, *graph.input.shape), np.uint8), labels=np.zeros(2, np.int64))
    assert "3 images and 2 labels" in refused("run", model, "--data", path)


def test_an_unknown_data_set_lists_the_known_ones(refused, model):
    assert refused("run", model, "--data", "faces") == (
        "esbflow run: no data set named 'faces'; known: mnist, digits, cifar10, imagenet-folder")


def test_without_mnist_it_says_where_to_put_it(refused, model, monkeypatch, tmp_path):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sentence = refused("run", model)
    assert sentence.endswith("set ESBFLOW_DATA to a folder that holds MNIST/raw")
    assert "no network" in sentence


def test_a_board_needs_a_bitstream(refused, model, data):
    assert "--backend board needs --overlay FILE.bit" in refused("run", model, "--data", data, "--backend", "board")


def test_an_unknown_recipe_lists_the_known_ones(refused, tmp_path):
    assert "no recipe named 'alexnet'; known: lenet5-mnist, digits" in refused("train", "alexnet", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_an_unknown_scale_mode_lists_the_known_ones(refused, tmp_path):
    said = refused("train", "digits", "--out", tmp_path / "o", "--scale-mode", "median")
    assert "scale_mode must be one of closed_form, laplace, refined, learned, pow2, not 'median'" in said
    assert not (tmp_path / "o").exists()


def test_export_wants_a_trained_model(refused, tmp_path, model):
    missing = tmp_path / "model.pt"
    out = tmp_path / "out.npz"
    assert refused("export", missing, "--out", out) == (
        f"esbflow export: there is no model file {missing}; make one with `esbflow train`")
    assert f"{model} is not a quantized model that `esbflow train` or `save_model` wrote (" in refused(
        "export", model, "--out", out)
    assert "net.h5 is a Keras model; convert it with tf2onnx" in refused("export", "net.h5", "--out", out)
    assert not out.exists()


def test_report_wants_a_report(refused, model, tmp_path):
    path, out = tmp_path / "report.json", tmp_path / "report.html"
    assert f"{path} is not a report.json" in refused("report", path, model, "--out", out)
    path.write_text("[1, ")
    assert f"{path} is not a report.json" in refused("report", path, model, "--out", out)
    path.write_text("{}")
    assert "the report has no 'model'" in refused("report", path, model, "--out", out)
    assert not out.exists()


def test_an_output_that_cannot_be_written_is_named(refused, model, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert str(blocked) in refused("rtl", "--engine", "tiny4x4", "--out", blocked / "deeper")
    assert str(blocked) in refused("compile", model, "--engine", "tiny4x4", "--out", blocked / "program.npz")


def test_commands_and_options_are_checked(refused):
    assert "invalid choice: 'fly'" in refused("fly")
    assert "--out" in refused("rtl")
    assert "unrecognized arguments: --fast" in refused("doctor", "--fast")


def test_interrupting_says_so(monkeypatch, capsys):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.doctor, "checks", lambda: interrupt(None))
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_names_that_the_network_has_not_are_refused_before_anything_is_trained(refused, tmp_path):
    path = tmp_path / "choice.json"
    for content, text in (({"conv9": "s8"}, "overrides: no layer with weights is called 'conv9'; there are conv1, conv2, "),
                          ({"weights": {"conv1": "s8", "relu1": "s4"}}, "no layer with weights is called 'relu1'"),
                          ({}, "is no JSON object of layers and weights"), ({"conv1": 8}, "is no JSON object of layers and")):
        path.write_text(json.dumps(content))
        assert text in refused("train", "digits", "--overrides", path, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stopped_training_says_how_to_go_on_and_is_not_overwritten(refused, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("ESBFLOW_DATA", raising=False)
    command = ["train", "digits", "--out", str(tmp_path), "--epochs", "2", "--images", "60", "--json"]
    save = RunState.save

    def save_and_stop(state, model, optimizer, done):
        save(state, model, optimizer, done)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "save", save_and_stop)
        assert cli.main(command) == 130
    path = tmp_path / "real.ckpt"
    assert capsys.readouterr().err == (f"esbflow train: stopped; {path} keeps what was trained: go on with the same command and "
                                       "--resume\n")
    kept = path.read_bytes()
    assert refused(*command) == (f"esbflow train: {tmp_path} keeps a training that was interrupted; go on with it by --resume, or "
                                 f"train into another folder, or remove {path}")
    for option, text in ((["--epochs", "3"], "epochs is 2 there and 3 here"), (["--seed", "1"], "seed is 0 there and 1 here"),
                         (["--images", "50"], "images is 60 there and 50 here")):
        assert text in refused(*command, "--resume", *option)
    assert path.read_bytes() == kept and [file.name for file in tmp_path.iterdir()] == ["real.ckpt"]
    assert cli.main([*command, "--resume"]) == 0 and not path.exists()


def test_a_missing_library_points_at_doctor(monkeypatch, capsys):
    def missing():
        raise ModuleNotFoundError("No module named 'pynq'", name="pynq")

    monkeypatch.setattr(cli.doctor, "checks", missing)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "esbflow doctor: pynq is not installed; `esbflow doctor` says what to do\n"


def test_bugs_keep_their_traceback(monkeypatch):
    def bug():
        raise RuntimeError("cannot be")

    monkeypatch.setattr(cli.doctor, "checks", bug)
    with pytest.raises(RuntimeError, match=r"^cannot be$"):
        cli.main(["doctor"])


@pytest.mark.parametrize("given, reason", [
    (["--rounding", "nearest"], "--rounding is for --post-training; give the number of images with it"),
    (["--ranges", "99.9"], "--ranges is for --post-training; give the number of images with it"),
    (["--equalize"], "--equalize is for --post-training; give the number of images with it"),
    (["--tune", "3"], "--tune is for --post-training; give the number of images with it"),
    (["--post-training", "10", "--rounding", "up"], "rounding must be one of outputs, nearest, not 'up'"),
    (["--post-training", "10", "--ranges", "widest"], "ranges must be error or a percentile above 0 and up to 100, not 'widest'"),
    (["--post-training", "10", "--ranges", "101"], "ranges must be error or a percentile above 0 and up to 100, not 101.0"),
    (["--post-training", "10", "--ranges", "nan"], "ranges must be error or a percentile above 0 and up to 100, not nan"),
])
def test_options_of_post_training_are_refused_before_anything_is_written(given, reason, tmp_path, capsys):
    assert cli.main(["train", "digits", "--out", str(tmp_path / "out"), *given]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [
    ["train", "digits", "--out", "{blocked}/run"], ["train", "digits", "--out", "{out}", "--results", "{blocked}/record.json"],
    ["demo", "--out", "{blocked}/demo"], ["demo", "--zoo", "lenet5-esb-w4a4", "--out", "{blocked}/demo"],
    ["run", "zoo:lenet5-esb-w4a4", "--data", "{data}", "--outputs", "{blocked}/outputs.npz"],
    ["rtl", "--engine", "tiny4x4", "--out", "{blocked}/engine"], ["zoo", "lenet5-esb-w4a4", "--out", "{blocked}/graph.npz"],
    ["bitstream", "--board", "ulx3s", "--engine", "tiny4x4", "--out", "{blocked}/bits"],
    ["study", "lottery", "digits", "--out", "{blocked}"], ["study", "text", "--results", "{blocked}/results"]])
def test_an_output_that_cannot_be_written_is_named_before_the_work_begins(refused, tmp_path, monkeypatch, command):
    def work(*arguments, **options):
        raise AssertionError("it has begun")

    for place in ("esbflow.training.api.train", "esbflow.training.api.load_float_model", "esbflow.training.api.post_train",
                  "esbflow.commands.run.run_images", "esbhw.generate.write", "esbhw.bitstream.build"):
        monkeypatch.setattr(place, work)
    (tmp_path / "file").write_text("")
    np.savez(tmp_path / "data.npz", images=np.zeros((1, 1, 28, 28), np.uint8))
    said = refused(*(part.format(blocked=tmp_path / "file", out=tmp_path / "out", data=tmp_path / "data.npz")
                     for part in command))
    assert str(tmp_path / "file") in said
    assert re.search("cannot be written|can be written into|is a file; name a folder", said)
    assert not list(tmp_path.glob("**/*.probe"))


def test_a_device_is_not_replaced_by_a_file(refused, model):
    assert refused("inspect", model, "--html", "/dev/null") == (
        "esbflow inspect: /dev/null is a device or a pipe, not a file; name a file")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_torch_cannot_use_is_named_before_anything_is_trained(refused, tmp_path, device):
    said = refused("train", "digits", "--out", tmp_path / "out", "--device", device)
    assert said.startswith(f"esbflow train: this torch cannot use the device {device!r} (") and "choose cpu" in said
    assert not (tmp_path / "out").exists()
