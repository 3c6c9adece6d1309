"""A model that Keras, tf2onnx and onnxruntime's quantizer wrote (tests/sw/interchange/data/make_keras_model.py), against what
onnxruntime computes of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_digits

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.interchange.onnx_import import import_onnx
from tests.sw.interchange.models import run_onnxruntime

PATH = Path(__file__).parent / "data" / "keras_residual.onnx"


@pytest.fixture(scope="module")
def graph():
    return import_onnx(PATH, pixel_max=255)


@pytest.fixture(scope="module")
def coloured():
    """uint8 images (n, 3, 8, 8) and labels, none of which it was trained on."""
    found = load_digits()
    grey = found.images[1437:, None].astype(np.int64) * 255 // 16
    return np.concatenate([grey, grey // 2, 255 - grey], axis=1).astype(np.uint8), found.target[1437:]


def test_layers_are_what_the_network_has(graph):
    layers = [type(node) for node in graph.nodes if not isinstance(node, ir.Requantize)]
    assert layers == [ir.Input, ir.Conv2d, ir.Conv2d, ir.Conv2d, ir.Add, ir.MaxPool2d, ir.Conv2d, ir.Concat, ir.Conv2d,
                      ir.MaxPool2d, ir.Linear, ir.Linear]
    assert graph.input.shape == (3, 8, 8) and graph.output.shape == (10, 1, 1)
    assert [note.split(" ")[0] for note in graph.info["notes"]] == ["Softmax", "the"]


def test_it_agrees_with_onnxruntime(graph, coloured):
    pixels, labels = coloured
    expected = run_onnxruntime(onnx.load(PATH), pixels.transpose(0, 2, 3, 1).astype(np.float32))
    found = execute(graph, pixels).reshape(len(pixels), 10)
    right, theirs = (found.argmax(1) == labels).mean(), (expected.argmax(1) == labels).mean()
    print(f"top-1 {100 * right:.2f} %, onnxruntime's {100 * theirs:.2f} %; the same on "
          f"{100 * (found.argmax(1) == expected.argmax(1)).mean():.2f} %")
    assert theirs > 0.9 and abs(right - theirs) < 0.01
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.98
