"""Files that cannot be imported: one sentence, exit code 2, nothing written. And the commands."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from esbflow.cli import main
from esbflow.graph.execute import execute
from esbflow.graph.file import load, save
from esbflow.graph.random import random_graph, random_images
from esbflow.interchange.onnx_file import GraphError
from esbflow.interchange.onnx_import import import_onnx
from tests.sw.interchange.models import Model, random_pixels


def quantized_model(shape=("n", 3, 6, 6), kind="float") -> Model:
    m = Model(shape, kind)
    x = m.qdq("image", 2**-6, np.int8(0))
    w = m.add("DequantizeLinear", np.ones((4, 3, 3, 3), np.int8), np.float32(0.1), np.int8(0))
    m.output = m.qdq(m.add("Conv", x, w), 0.5, np.int8(0))
    return m


@pytest.fixture
def refused(capsys, tmp_path):
    """refused(proto or path, *options) -> the sentence of `esbflow import`."""

    def run(model, *options):
        path = model
        if isinstance(model, onnx.ModelProto):
            path = tmp_path / "model.onnx"
            path.write_bytes(model.SerializeToString())
        before = sorted(tmp_path.rglob("*"))
        try:
            code = main(["import", str(path), "--out", str(tmp_path / "out" / "graph.npz"), *options])
        except SystemExit as exit:
            code = exit.code
        printed = capsys.readouterr()
        assert code == 2 and printed.out == "" and len(printed.err.splitlines()) == 1, printed
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err.strip().removeprefix("esbflow import: ").replace(str(path), "FILE")

    return run


@pytest.mark.parametrize("keep", [1, 50, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file(refused, tmp_path, keep):
    content = quantized_model()
    content = content.proto(content.output).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[:int(keep * len(content)) if isinstance(keep, float) else keep])
    assert refused(path).startswith("FILE is not a whole ONNX file (")


def test_damage_anywhere_is_one_sentence(tmp_path):
    """Bytes changed at random: the model is imported or refused, but never fails in another way."""
    content = (Path(__file__).parent / "data" / "brevitas_residual.onnx").read_bytes()
    random, refusals = np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(256)
        (tmp_path / "damaged.onnx").write_bytes(damaged)
        try:
            import_onnx(tmp_path / "damaged.onnx")
        except GraphError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 20


def test_no_file_a_folder_an_empty_file_and_another_kind(refused, tmp_path):
    assert refused(tmp_path / "none.onnx") == "there is no file FILE"
    assert refused(tmp_path) == "FILE is a folder, not an ONNX file"
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert refused(tmp_path / "empty.onnx").startswith("FILE is not a whole ONNX file (")
    (tmp_path / "text.onnx").write_text("this is no model, whatever its name says\n" * 10)
    assert refused(tmp_path / "text.onnx").startswith("FILE is not a whole ONNX file (")


def test_a_model_that_is_not_quantized(refused):
    m = Model(("n", 3, 6, 6))
    sentence = refused(m.proto(m.add("Conv", "image", np.ones((4, 3, 3, 3), np.float32))))
    assert sentence == ("FILE is not quantized; quantize it with onnxruntime.quantization.quantize_static, or train it with "
                        "Brevitas or esbflow, first")


def test_the_operator_format_of_onnxruntime(refused):
    m = Model(("n", 3, 6, 6))
    m.nodes.append(helper.make_node("DynamicQuantizeLinear", ["image"], ["a", "b", "c"]))
    assert refused(m.proto("a")) == ("FILE has DynamicQuantizeLinear nodes; quantize it with quant_format=QuantFormat.QDQ and "
                                     "static scales")


def test_float16(refused):
    m = quantized_model(kind="float16")
    assert refused(m.proto(m.output)) == "FILE: tensor 'image' is float16; export the model in float32"


def test_dynamic_shapes_besides_the_batch(refused):
    m = quantized_model(("n", 3, "height", 6))
    assert refused(m.proto(m.output)) == ("FILE: its input has an axis of unknown size 'height'; only the batch may be dynamic, "
                                          "export it with a fixed height and width")
    m = quantized_model(("n", 3, 1, 6, 6))
    assert refused(m.proto(m.output)).startswith("FILE: its input has 5 axes; the integer graph takes images")


def test_shapes_that_do_not_fit(refused):
    m = quantized_model(("n", 5, 6, 6))
    assert refused(m.proto(m.output)) == "layer conv4: 5 input channels do not fit weights of 3 in 1 groups"
    m = quantized_model()
    x = m.add("Add", m.output, np.ones((1, 4, 3, 3), np.float32))
    assert refused(m.proto(x)).startswith("FILE: its shapes do not fit together (")


@pytest.mark.parametrize("opset", [7, 25, 99])
def test_an_opset_beyond_the_known_ones(refused, opset):
    m = quantized_model()
    assert refused(m.proto(m.output, opset)) == (
        f"FILE uses ONNX opset {opset} and the import knows 9 to 24; export it with opset_version=17, or use "
        "onnx.version_converter")


def test_the_input_as_an_output(refused):
    m = quantized_model()
    proto = m.proto(m.output)
    proto.graph.output.append(helper.make_tensor_value_info(m.nodes[1].output[0], TensorProto.FLOAT, None))
    assert refused(proto) == ("output 'dequantizelinear2_result' is the quantized input, which no layer computes; leave it "
                              "to the host")


@pytest.mark.parametrize("option, reason", [
    ("--mean=a", "argument --mean: must be numbers with commas between them, not 'a'"),
    ("--mean=1,2", "mean must be one number or 3, finite, and a std positive; not [1.0, 2.0]"),
    ("--std=0", "std must be one number or 3, finite, and a std positive; not [0.0]"),
    ("--pixel-max=-1", "the brightest pixel's value must be positive and finite, not -1.0")])
def test_what_the_input_is(refused, option, reason):
    m = quantized_model()
    assert reason in refused(m.proto(m.output), option)


# -- the commands -----------------------------------------------------------------------------------------------
def esbflow(capsys, *arguments) -> dict:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_export_and_import_by_command(capsys, tmp_path):
    random = np.random.default_rng(0)
    graph = random_graph(random, size=8, kinds=("conv", "residual", "max"))
    exported = esbflow(capsys, "export", save(graph, tmp_path / "a.npz"), "--format", "qonnx", "--rounding", "FLOOR", "--out",
                       tmp_path / "a.onnx")
    assert exported["out"] == str(tmp_path / "a.onnx")
    content = esbflow(capsys, "import", tmp_path / "a.onnx", "--out", tmp_path / "b.npz", "--name", "back")
    assert content["name"] == "back" and content["notes"] == [] and content["accumulator_bits"]
    images = random_images(random, graph, 4)
    assert np.array_equal(execute(load(tmp_path / "b.npz"), images), execute(graph, images))


def test_mean_and_std_are_in_the_table(capsys, tmp_path):
    m = quantized_model()
    onnx.save(m.proto(m.output), tmp_path / "m.onnx")
    esbflow(capsys, "import", tmp_path / "m.onnx", "--out", tmp_path / "m.npz", "--mean", "0.5,0.25,0", "--std", "0.5")
    graph = load(tmp_path / "m.npz")
    pixels = random_pixels(np.random.default_rng(0), 2, 3, 6, 6)
    wanted = np.rint((pixels / 255 - np.array([0.5, 0.25, 0]).reshape(3, 1, 1)) / 0.5 * 64)
    assert np.array_equal(execute(graph, pixels, keep=True)["input"], np.clip(wanted, -128, 127))


def test_a_graph_is_exported_as_qonnx_only(capsys, tmp_path):
    path = save(random_graph(np.random.default_rng(0)), tmp_path / "a.npz")
    assert main(["export", str(path), "--out", str(tmp_path / "b.npz")]) == 2
    assert "is not a quantized model that `esbflow train` or `save_model` wrote" in capsys.readouterr().err


def test_compiled_for_an_engine(capsys, tmp_path):
    m = quantized_model()
    onnx.save(m.proto(m.output), tmp_path / "m.onnx")
    esbflow(capsys, "import", tmp_path / "m.onnx", "--out", tmp_path / "m.npz")
    assert esbflow(capsys, "compile", tmp_path / "m.npz", "--engine", "tiny4x4", "--out", tmp_path / "p.npz")["instructions"] > 0
