"""Int8 models of TensorFlow Lite as tf2onnx writes them: int8 in and out, images of axes (n, height, width, channels), zero
points of -128 behind ReLUs, and what moves values among the codes."""

import numpy as np
import pytest
from onnx import TensorProto

from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from tests.sw.interchange.models import INT8, OFF_TIES, Model, dequantized, imported, run_onnxruntime, weights

LOW = np.int8(-128)


def conv(m, random, x, out, channels, kernel=3, **options):
    w = dequantized(m, weights(random, out, channels // options.get("group", 1), kernel, kernel), np.full(out, 2**-4), axis=0)
    return m.add("Conv", x, w, np.full(out, OFF_TIES, np.float32), kernel_shape=[kernel, kernel], **options)


def keyword_spotter(random, place="codes"):
    """A stem, a depthwise separable block, an average pool and a linear layer, with int8 codes between all layers.

    place : of the first Transpose, among the "codes" or the "real" numbers.
    """
    m = Model((1, 8, 6, 2), "int8")
    x = "image"
    if place == "codes":
        x = m.add("Transpose", x, perm=[0, 3, 1, 2])
    x = m.add("DequantizeLinear", x, np.float32(2**-6), LOW)
    if place == "real":
        x = m.add("Transpose", x, perm=[0, 3, 1, 2])
    x = conv(m, random, x, 6, 2, strides=[2, 2], pads=[0, 0, 1, 1])
    x = m.qdq(m.add("Relu", x), 2**-3, LOW)
    x = conv(m, random, x, 6, 6, group=6, pads=[1, 1, 1, 1])
    x = m.qdq(m.add("Clip", x, np.float32(0), np.float32(255 * 2**-4)), 2**-4, LOW)
    x = m.add("QuantizeLinear", m.add("MaxPool", x, kernel_shape=[2, 1], strides=[2, 1]), np.float32(2**-4), LOW)
    x = m.add("Transpose", x, perm=[0, 2, 3, 1])
    x = m.add("Reshape", x, np.int64([-1, 36]))
    x = m.add("DequantizeLinear", x, np.float32(2**-4), LOW)
    x = m.add("MatMul", x, dequantized(m, weights(random, 36, 5), np.float32(2**-4)))
    x = m.add("Add", x, np.full(5, OFF_TIES, np.float32))
    return m, m.add("QuantizeLinear", x, np.float32(2**-2), INT8)


@pytest.mark.parametrize("place", ["codes", "real"])
def test_int8_models_equal_onnxruntime(place):
    random = np.random.default_rng(5)
    m, last = keyword_spotter(random, place)
    proto = m.proto(last)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    graph = imported(proto)
    assert graph.input.shape == (2, 8, 6) and str(graph.input.format) == "u8" and str(graph.output.format) == "s8"
    pixels = random.integers(0, 256, (6, 2, 8, 6), dtype=np.uint8)
    codes = (pixels.transpose(0, 2, 3, 1).astype(int) - 128).astype(np.int8)
    expected = np.concatenate([run_onnxruntime(proto, one[None]) for one in codes])
    assert len(np.unique(expected)) > 10 and np.array_equal(execute(graph, pixels).reshape(expected.shape), expected)


def test_an_odd_zero_point_of_the_output_alone_is_left_out():
    random, m = np.random.default_rng(6), Model((1, 2, 4, 4), "int8")
    x = m.add("DequantizeLinear", "image", np.float32(2**-6), INT8)
    last = m.add("QuantizeLinear", conv(m, random, x, 3, 2), np.float32(2**-2), np.int8(17))
    proto = m.proto(last)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT8
    graph = imported(proto)
    assert "zero point 17" in graph.info["notes"][0] and str(graph.input.format) == "s8"
    pixels = random.integers(0, 256, (4, 2, 4, 4), dtype=np.uint8)
    real = execute(graph, pixels) * graph.output.scale
    expected = np.concatenate([run_onnxruntime(proto, (one[None].astype(int) - 128).astype(np.int8)) for one in pixels])
    assert np.array_equal(np.clip(np.rint(real * 4) + 17, -128, 127), expected)


def test_an_odd_zero_point_of_the_image_is_refused():
    m = Model((1, 2, 4, 4), "int8")
    x = conv(m, np.random.default_rng(7), m.add("DequantizeLinear", "image", np.float32(1), np.int8(83)), 3, 2)
    with pytest.raises(GraphError, match=r"its zero point gives the levels -211\.\.44"):
        imported(m.proto(x))
