"""A model that Brevitas wrote (tests/sw/interchange/data/make_brevitas_model.py), against what qonnx's own executor computes of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_digits

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.interchange.onnx_import import import_onnx
from tests.sw.interchange.models import real, run_qonnx

PATH = Path(__file__).parent / "data" / "brevitas_residual.onnx"


@pytest.fixture(scope="module")
def graph():
    return import_onnx(PATH)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return (found.images[1437:, None] * 255 // 16).astype(np.uint8), found.target[1437:]


def test_layers_are_what_the_network_has(graph):
    kinds = [type(node) for node in graph.nodes]
    assert kinds == [ir.Input, ir.Conv2d, ir.Conv2d, ir.Conv2d, ir.Requantize, ir.Add, ir.MaxPool2d, ir.Conv2d, ir.Linear]
    assert str(graph["wide"].weight_format) == "esb4.1"  # e2m1
    assert str(graph["block_conv1"].weight_format) == "esb4.2"  # 4 bits, narrow: -7..7
    assert [str(node.format) for node in graph.nodes] == ["s8", "u4", "u4", "s4", "s4", "u4", "u4", "u4", "s32"]


def test_it_agrees_with_qonnx(graph, digits):
    pixels, _labels = digits
    proto = onnx.load(PATH)
    count = 60  # qonnx makes a session for each node of each image
    found = run_qonnx(proto, real(pixels[:count]))
    tensors = execute(graph, pixels[:count], keep=True)
    quantized = {node.output[0]: found[node.output[0]] for node in proto.graph.node
                 if node.op_type == "Quant" and node.output[0] in found}
    names = {"input": "/image/", "conv": "/relu/", "block_conv1": "/block/relu1/", "block": "/block/relu2/",
             "wide": "/wide_relu/"}
    for name, prefix in names.items():
        expected = next(value for key, value in quantized.items() if key.startswith(prefix))
        difference = np.abs(np.rint(expected / graph[name].scale) - tensors[name].reshape(expected.shape))
        print(f"{name}: {100 * (difference > 0).mean():.3f} % of values differ, at most {difference.max():.0f}")
        assert difference.max() <= 2 and (difference > 0).mean() < 0.02  # those of earlier layers are in it
    assert np.array_equal(np.rint(quantized["/image/act_quant/export_handler/Quant_output_0"] / graph.input.scale),
                          tensors["input"])
    expected = found[proto.graph.output[0].name]
    levels = tensors["linear"].reshape(count, -1)
    print(f"largest difference of an output: {np.abs(levels * graph.output.scale - expected).max() / np.ptp(expected):.4f} of "
          "their range")
    assert (levels.argmax(1) == expected.argmax(1)).mean() >= 0.98


def test_its_accuracy_is_that_of_brevitas(graph, digits):
    pixels, labels = digits
    top1 = 100 * (execute(graph, pixels).reshape(len(pixels), -1).argmax(1) == labels).mean()
    print(f"top-1 {top1:.2f} %, Brevitas 95.83 %")
    assert abs(top1 - 95.83) < 0.6
