"""ONNX and QONNX models of sequences (n, channels, length) and of rows (n, features), against onnxruntime and qonnx."""

import numpy as np
import pytest

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from tests.compiler.machine import Machine
from tests.sw.interchange.models import OFF_TIES, Model, compare, imported, random_pixels, real, run_onnxruntime, run_qonnx

POWER = 2.0 ** -5  # scales that float32 computes exactly with


def radio(random, low=-3, high=4):
    """As FINN's network of radio signals: convolutions of length 3, pools, two linear layers; weights of 3, activations of 4
    bits."""
    m = Model((1, 2, 24))
    x = m.quant("image", POWER / 8, 8)
    for channels, out in ((2, 6), (6, 9)):
        weights = random.integers(low, high, (out, channels, 3)) * POWER
        x = m.add("Conv", x, m.quant(weights, POWER, 3), random.integers(-9, 9, out) * POWER / 8 + OFF_TIES,
                  pads=[1, 1], kernel_shape=[3])
        x = m.quant(m.add("Relu", x), POWER, 4, signed=0)
        x = m.add("MaxPool", x, kernel_shape=[2], strides=[2])
    x = m.add("Flatten", x)
    x = m.quant(m.add("Relu", m.add("Gemm", x, m.quant(random.integers(low, high, (8, 54)) * POWER, POWER, 3), transB=1)),
                POWER * 2, 4, signed=0)
    return m, m.add("MatMul", x, m.quant(random.integers(low, high, (8, 5)) * POWER, POWER, 3))


@pytest.mark.parametrize("seed", range(6))
def test_a_network_of_signals_is_equal_to_qonnx_in_every_value(seed):
    random = np.random.default_rng(seed)
    m, output = radio(random)
    proto, pixels = m.proto(output), random_pixels(random, 6, 2, 24)
    graph = imported(proto)
    assert graph.input.shape == (2, 1, 24)
    expected = run_qonnx(proto, real(pixels))
    assert compare(graph, pixels, expected[output]) == (0, 0)
    stored = execute(graph, pixels[:, :, None], keep=True)
    assert {name: values.shape for name, values in stored.items() if values.ndim != 4} == {}
    program = compile_graph(graph, ENGINES["tiny4x4"], 2)
    assert np.array_equal(Machine(program).run(pixels[:2, :, None]), execute(graph, pixels[:2]))


def one(operator, *inputs, shape=(3, 13), **options):
    """(model, output) of one operator between quantizers."""
    m = Model(("n", *shape))
    x = m.qdq("image", 1 / 255, np.uint8(0))
    y = m.add(operator, x, *[value(m) if callable(value) else value for value in inputs], **options)
    return m, m.qdq(y, 1 / 50, np.int8(0))


def weights(*shape, seed=0):
    levels = np.random.default_rng(seed).integers(-90, 90, shape).astype(np.int8)
    return lambda m: m.add("DequantizeLinear", levels, np.float32(0.004), np.int8(0))


@pytest.mark.parametrize("operator, inputs, options", [
    ("Conv", (weights(4, 3, 3),), {}),
    ("Conv", (weights(4, 3, 3),), dict(pads=[2, 0], strides=[2], dilations=[2])),
    ("Conv", (weights(4, 3, 4),), dict(auto_pad="SAME_UPPER")),
    ("Conv", (weights(6, 1, 3), np.float32([1, -1, 0.5, 0, 0.25, 2])), dict(group=3)),
    ("MaxPool", (), dict(kernel_shape=[3], strides=[2], pads=[1, 1])),
    ("MaxPool", (), dict(kernel_shape=[2], strides=[2], ceil_mode=1)),
    ("AveragePool", (), dict(kernel_shape=[3], strides=[2])),
    ("AveragePool", (), dict(kernel_shape=[3], pads=[1, 1], count_include_pad=1)),
    ("GlobalAveragePool", (), {}), ("GlobalMaxPool", (), {}),
    ("ReduceMean", (), dict(axes=[2])), ("ReduceMean", (), dict(axes=[-1], keepdims=0)), ("ReduceMax", (), dict(axes=[2])),
    ("Mul", (np.float32([[0.5], [1], [0.25]]),), {}), ("Add", (np.float32([[[0.1], [0], [-0.3]]]),), {}),
    ("BatchNormalization", (np.float32([1, -0.5, 2]), np.float32([0.1, 0.2, 0]), np.float32([0.4, 0.5, 0.6]),
                            np.float32([0.5, 0.2, 1])), {}),
    ("PRelu", (np.float32([[0.1], [0.5], [-0.2]]),), {}),
    ("Resize", ("", np.float32([1, 1, 2])), dict(mode="nearest")),
    ("Slice", (np.int64([1]), np.int64([3]), np.int64([1])), {}),
    ("Gather", (np.int64([2, 0]),), dict(axis=1)),
    ("Pad", (np.int64([0, 1, 0, 0, 2, 0]),), {}), ("Unsqueeze", (np.int64([2]),), {}),
    ("Flatten", (), {}),
])
def test_one_operator_on_sequences(operator, inputs, options):
    m, output = one(operator, *inputs, **options)
    proto, pixels = m.proto(output, opset=13 if operator.startswith("Reduce") else 17), \
        random_pixels(np.random.default_rng(1), 8, 3, 13)
    step, share = compare(imported(proto), pixels, run_onnxruntime(proto, real(pixels)))
    assert step <= 1 and share < 0.05


def test_zeros_around_a_sequence_go_to_the_layer():
    m = Model(("n", 3, 13))
    x = m.add("Pad", m.qdq("image", 1 / 255, np.uint8(0)), np.int64([0, 0, 2, 0, 0, 1]))
    output = m.qdq(m.add("Conv", x, weights(4, 3, 4)(m)), 1 / 50, np.int8(0))
    proto, pixels = m.proto(output), random_pixels(np.random.default_rng(1), 8, 3, 13)
    step, share = compare(imported(proto), pixels, run_onnxruntime(proto, real(pixels)))
    assert step <= 1 and share < 0.05


@pytest.mark.parametrize("first", ["Gemm", "MatMul"])
def test_rows_of_features(first):
    m, random = Model(("n", 30)), np.random.default_rng(0)
    x = m.qdq("image", 1 / 255, np.uint8(0))
    for i, (operator, size, out) in enumerate(((first, 30, 12), ("Gemm", 12, 4))):
        x = m.add(operator, x, weights(size, out, seed=i)(m))
        x = m.qdq(m.add("Relu", x) if i == 0 else x, 1 / 40, np.int8(0))
    proto, pixels = m.proto(x), random_pixels(random, 16, 30)
    graph = imported(proto, mean=0.0)
    assert graph.input.shape == (30, 1, 1)
    step, share = compare(graph, pixels, run_onnxruntime(proto, real(pixels)))
    assert step <= 1 and share < 0.05


@pytest.mark.parametrize("operator, inputs, options, sentence", [
    ("Pad", (np.int64([0, 1, 1, 0, 0, 0]),), {}, "Pad node 'pad3': what it makes of a map of shape (3, 1, 13) has no "
                                                       "integer form; only a flatten"),
    ("ReduceMean", (), dict(axes=[1]), "ReduceMean node 'reducemean3': only the mean and the maximum over the length of a "
                                       "sequence have an integer form"),
    ("Slice", (np.int64([9]), np.int64([0]), np.int64([2]), np.int64([-1])), {}, "Slice node 'slice3': what it makes of a map of shape"),
])
def test_what_sequences_have_not_is_refused_by_name(operator, inputs, options, sentence):
    m, output = one(operator, *inputs, **options)
    channels = {"Pad": 4, "Slice": 3}.get(operator)
    output = output if channels is None else m.add("Conv", output, weights(2, channels, 1)(m))
    with pytest.raises(GraphError) as error:
        imported(m.proto(m.qdq(output, 0.1, np.int8(0)), opset=13))
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rows", ["flat", "mean"])
def test_sequences_with_channels_last(channels, rows):
    """By the chains that tf2onnx makes of Keras' Conv1D, MaxPooling1D, ZeroPadding1D, Concatenate, Flatten and pooling."""
    m = Model(("n", 12, channels))
    x = m.add("Add", m.add("Mul", m.qdq("image", 1 / 255, np.uint8(0)), np.float32([2.0])), np.float32([-1.0]))
    x = m.add("Unsqueeze", m.qdq(x, 1 / 127, np.int8(0)), np.int64([1]))
    x = m.add("Reshape", x, np.int64([-1, 1, 1, 12])) if channels == 1 else m.add("Transpose", x, perm=[0, 3, 1, 2])
    x = m.add("Squeeze", m.add("Conv", x, weights(5, channels, 1, 3)(m), pads=[0, 1, 0, 1]), np.int64([2]))
    x = m.add("Mul", x, np.float32([[[1], [0.5], [2], [-1], [1]]]))
    x = m.qdq(m.add("Relu", m.add("Transpose", x, perm=[0, 2, 1])), 1 / 100, np.int8(0))
    x = m.qdq(m.add("Add", x, np.float32([0.1, 0.2, 0, 0, 0.3])), 1 / 80, np.int8(0))
    pooled = m.add("MaxPool", m.add("Unsqueeze", m.add("Transpose", x, perm=[0, 2, 1]), np.int64([2])), kernel_shape=[1, 2],
                   strides=[1, 2])
    x = m.add("Transpose", m.add("Squeeze", pooled, np.int64([2])), perm=[0, 2, 1])
    x = m.add("Concat", x, m.add("Slice", x, np.int64([1]), np.int64([3]), np.int64([2])), axis=-1)
    x = m.add("Transpose", m.add("Pad", x, np.int64([0, 1, 0, 0, 0, 0])), perm=[0, 2, 1])
    x = m.qdq(m.add("Conv", x, weights(4, 7, 2, seed=1)(m)), 1 / 60, np.int8(0))
    x = m.add("Transpose", x, perm=[0, 2, 1])
    if rows == "flat":
        x = m.add("Reshape", x, np.int64([-1, 24]))
    else:
        x = m.qdq(m.add("ReduceMean", x, axes=[1], keepdims=0), 1 / 120, np.int8(0))
    x = m.qdq(m.add("MatMul", x, weights(24 if rows == "flat" else 4, 3, seed=2)(m)), 1 / 200, np.int8(0))
    proto, pixels = m.proto(x, opset=13), random_pixels(np.random.default_rng(0), 16, 12, channels)
    graph = imported(proto)
    assert graph.input.shape == (channels, 1, 12)
    assert graph.info["notes"] == [f"the model's images are (length, channels), the graph's ({channels}, 1, 12)"]
    expected = run_onnxruntime(proto, real(pixels))
    step, share = compare(graph, np.ascontiguousarray(pixels.transpose(0, 2, 1)), expected)
    assert step <= 3 and share < 0.15 and np.abs(expected).max() >= 16 / 200
