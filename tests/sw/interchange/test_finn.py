"""TFC_1W1A, a network of FINN's own that Brevitas wrote (tests/sw/interchange/data/make_brevitas_tfc.py): every activation is -1 or +1."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.interchange.onnx_import import import_onnx
from esbflow.training.api import top1
from esbflow.training.data import DataUnavailable, load_images
from tests.compiler.machine import Machine
from tests.sw.interchange.models import real, run_qonnx

PATH = Path(__file__).parent / "data" / "brevitas_tfc_1w1a.onnx"
TRAINED = 92.21
"""Top-1 in Brevitas on MNIST's test images, as make_brevitas_tfc.py printed it."""


@pytest.fixture(scope="module")
def graph():
    return import_onnx(PATH)


@pytest.fixture(scope="module")
def strokes():
    """uint8 (20, 1, 28, 28): bright bars on black, as the images of an MLP are mostly black."""
    random, images = np.random.default_rng(5), np.zeros((20, 1, 28, 28), np.uint8)
    for image in images[:, 0]:
        for _ in range(3):
            y, x = random.integers(4, 20, 2)
            image[y:y + random.integers(2, 8), x:x + random.integers(2, 8)] = random.integers(100, 256)
    return images


def test_every_sign_is_that_of_qonnx(graph, strokes):
    """Weights and signs have no rounding, thresholds are whole numbers: nothing may differ but the outputs' half a step."""
    assert [str(node.format) for node in graph.nodes] == ["bin"] * 4 + ["s32"]
    proto = onnx.load(PATH)
    found = run_qonnx(proto, real(strokes))
    tensors = execute(graph, strokes, keep=True)
    signs = [found[node.output[0]] for node in proto.graph.node
             if node.op_type == "BipolarQuant" and "act_quant" in node.name]
    for node, expected in zip(graph.nodes, signs, strict=False):
        assert np.array_equal(tensors[node.name].reshape(expected.shape), expected), node.name
    assert len(signs) == 4
    expected = found[proto.graph.output[0].name]
    outputs = tensors[graph.output.name].reshape(expected.shape)
    assert np.abs(outputs * graph.output.scale - expected).max() <= 0.501 * graph.output.scale


@pytest.mark.parametrize("engine", ["tiny4x4", "base16x16"])
def test_it_runs_on_the_machine(graph, strokes, engine):
    """Its first layer reads all 784 pixels as channels: one window, folded."""
    program = compile_graph(graph, ENGINES[engine], 4)
    assert program.meta["input"]["fold"]["kernel"] == [28, 28] and program.meta["input"]["channels"] == 784
    assert np.array_equal(Machine(program).run(strokes[:4]), execute(graph, strokes[:4]))


def test_its_accuracy_is_what_it_was_in_brevitas(graph):
    try:
        images, labels = load_images("mnist", "test")
    except DataUnavailable as error:
        pytest.skip(str(error))
    # Ten sums of 64 signs are often equal: float32 decides by its noise, the graph by the order of classes.
    assert top1(execute(graph, images), labels) == pytest.approx(TRAINED, abs=0.03)
