"""Models whose nodes were damaged one at a time: each is imported or refused by a sentence, and a bug of ours is neither."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from esbflow import cli
from esbflow.graph.errors import GraphError
from esbflow.interchange import onnx_import
from esbflow.interchange.onnx_import import import_onnx

FILES = sorted(Path(__file__).parent.glob("data/*.onnx"))
VALUES = (0, -1, 7, 1.5, "x", [1, 2], [1.5], [0] * 6)
OPERATORS = ("Relu", "Conv", "Add", "Concat", "Quant", "Pad", "Clip", "Reshape", "Transpose", "Slice", "Gather", "Resize")


def lose_an_input(random, node, graph):
    if node.input:
        del node.input[random.integers(len(node.input))]


def blank_an_input(random, node, graph):
    if node.input:
        node.input[random.integers(len(node.input))] = ""


def repeat_an_input(random, node, graph):
    if node.input:
        node.input.append(node.input[random.integers(len(node.input))])


def change_an_attribute(random, node, graph):
    names = [attribute.name for attribute in node.attribute] or ["axis"]
    name = names[random.integers(len(names))]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, VALUES[random.integers(len(VALUES))])])


def lose_an_attribute(random, node, graph):
    if node.attribute:
        del node.attribute[random.integers(len(node.attribute))]


def change_a_constant(random, node, graph):
    tensor = graph.initializer[random.integers(len(graph.initializer))]
    array = numpy_helper.to_array(tensor)
    changed = [array.reshape(-1), array[None], np.zeros(0, array.dtype), np.repeat(array.reshape(-1)[:1], 2),
               array.astype(np.float64), array * 0, np.array(3, array.dtype)]
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(changed[random.integers(len(changed))]), tensor.name))


def change_the_operator(random, node, graph):
    node.op_type = OPERATORS[random.integers(len(OPERATORS))]


DAMAGES = (lose_an_input, blank_an_input, repeat_an_input, change_an_attribute, lose_an_attribute, change_a_constant,
           change_the_operator)


@pytest.mark.filterwarnings("ignore::esbflow.graph.doubts.GraphWarning")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_damaged_model_is_imported_or_refused_by_a_sentence(file, damage, tmp_path):
    random, whole = np.random.default_rng(len(file.stem)), onnx.load(file)
    for _ in range(8):
        model = onnx.ModelProto()
        model.CopyFrom(whole)
        damage(random, model.graph.node[random.integers(len(model.graph.node))], model.graph)
        onnx.save(model, tmp_path / "model.onnx")
        try:
            import_onnx(tmp_path / "model.onnx")
        except ValueError as refused:  # any other exception is a bug, and fails the test
            assert str(refused) and "\n" not in str(refused)


@pytest.mark.parametrize("bug", [AttributeError("no attribute 'inputt'"), TypeError("f() takes 2"), NameError("nam")])
def test_a_bug_in_a_handler_keeps_its_traceback(monkeypatch, capsys, bug):
    def handler(walk, node, value):
        raise bug

    file = next(file for file in FILES if "residual" in file.stem)
    monkeypatch.setitem(onnx_import.HANDLERS, "Relu", handler)
    with pytest.raises(type(bug)):
        cli.main(["import", str(file), "--out", "unused.npz"])
    assert "this is a fault of esbflow, not of its input; please report it" in capsys.readouterr().err


def test_a_damaged_node_tells_what_was_wrong_with_it(tmp_path, capsys):
    model = onnx.load(FILES[0])
    node = next(node for node in model.graph.node if node.op_type == "Quant" or node.op_type == "QuantizeLinear")
    del node.input[1]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="inputs"):
        import_onnx(tmp_path / "model.onnx")
    assert cli.main(["--traceback", "import", str(tmp_path / "model.onnx"), "--out", str(tmp_path / "g.npz")]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err
