"""Splits, slices, shuffles, repetitions and flattens of ONNX, by whatever chain of operators: equal to onnxruntime."""

import numpy as np
import pytest

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from tests.sw.interchange.models import (
    INT8,
    OFF_TIES,
    Model,
    conv_layer,
    dequantized,
    exact,
    image_in,
    imported,
    random_pixels,
    weights,
)

SCALE = 2**-3


def start(channels=8, size=6):
    """(random, model, a quantized map of `channels`)."""
    random, m = np.random.default_rng(channels), Model(("n", 3, size, size))
    return random, m, m.qdq(conv_layer(m, random, image_in(m), out=channels, pads=[1] * 4), SCALE, INT8)


def end(m, random, x, channels):
    return m.qdq(conv_layer(m, random, x, out=5, channels=channels, scale=2**-5), 2**-4, INT8)


def kinds(graph):
    return [type(node) for node in graph.nodes]


@pytest.mark.parametrize("quantized", [False, True])
def test_a_shuffle(quantized):
    random, m, x = start()
    again = (lambda x: m.qdq(x, SCALE, INT8)) if quantized else (lambda x: x)  # as onnxruntime's quantizer does
    x = again(m.add("Reshape", x, np.int64([-1, 2, 4, 6, 6])))
    x = again(m.add("Transpose", x, perm=[0, 2, 1, 3, 4]))
    graph = exact(m, end(m, random, again(m.add("Reshape", x, np.int64([-1, 8, 6, 6]))), 8))
    assert kinds(graph) == [ir.Input, ir.Conv2d, ir.Conv2d, ir.Conv2d]
    assert graph.nodes[2].weight[:, :, 0, 0].argmax(axis=1).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("opset, options", [(17, dict(inputs=[np.int64([2, 5, 1])])), (18, dict(num_outputs=3))])
def test_a_split_into_unequal_parts(opset, options):
    random, m, x = start()
    m.add("Split", x, *options.pop("inputs", []), name="parts", axis=1, **options)
    m.nodes[-1].output[:] = ["a", "b", "c"]
    counts = (2, 5, 1) if opset == 17 else (3, 3, 2)
    outs = [m.qdq(conv_layer(m, random, part, out=4, channels=count, scale=2**-5), SCALE, INT8)
            for part, count in zip("abc", counts)]
    graph = exact(m, m.add("Concat", *outs, axis=1), opset=opset)
    assert sum(node.name.startswith("parts") for node in graph.nodes) == 3


def test_slices_and_a_choice_of_channels():
    random, m, x = start()
    x = m.add("Slice", x, np.int64([1]), np.int64([8]), np.int64([1]), np.int64([2]))  # 1, 3, 5, 7
    graph = exact(m, end(m, random, m.add("Gather", x, np.int64([3, 0, 0]), axis=1), 3))
    assert [node.weight[:, :, 0, 0].argmax(axis=1).tolist() for node in graph.nodes[2:4]] == [[1, 3, 5, 7], [3, 0, 0]]


def test_repeated_pixels_by_tiles():
    random, m, x = start(4)
    x = m.add("Tile", m.add("Unsqueeze", x, np.int64([3, 5])), np.int64([1, 1, 1, 2, 1, 2]))  # each row, each column
    x = m.add("Reshape", x, np.int64([-1, 4, 12, 12]))
    graph = exact(m, end(m, random, x, 4))
    assert kinds(graph) == [ir.Input, ir.Conv2d, ir.Upsample, ir.Conv2d] and graph.nodes[2].factor == (2, 2)


def test_a_flatten_by_detours():
    random, m, x = start(4)
    x = m.add("Reshape", m.add("Transpose", x, perm=[0, 3, 1, 2]), np.int64([-1, 144]))  # (w, c, h)
    x = m.add("Reshape", m.add("Transpose", m.add("Reshape", x, np.int64([-1, 6, 4, 6])), perm=[0, 3, 1, 2]),
              np.int64([-1, 6 * 6, 4]))
    x = m.add("Flatten", m.add("Transpose", m.add("Relu", m.add("Reshape", x, np.int64([-1, 6, 6, 4]))), perm=[0, 3, 1, 2]))
    w = dequantized(m, weights(random, 144, 5), np.full(5, 2**-5, np.float32), axis=1)
    graph = exact(m, m.qdq(m.add("Add", m.add("MatMul", m.qdq(x, SCALE, np.int8(-128)), w), np.float32(OFF_TIES)), 2**-2, INT8))
    assert ir.Linear in kinds(graph)


def pad(m, x, top=0, left=0, bottom=0, right=0):
    return m.add("Pad", x, np.int64([0, 0, top, left, 0, 0, bottom, right]))


def crop(m, x, *ends):
    """Rows from ends[0] to ends[1], columns from ends[2] to ends[3]."""
    return m.add("Slice", x, np.int64(ends[::2]), np.int64(ends[1::2]), np.int64([2, 3]))


@pytest.mark.parametrize("composed, padding", [
    (lambda m, x: pad(m, pad(m, x, 1, 0, 2, 2), 0, 2, 0, 0), (1, 2)),
    (lambda m, x: crop(m, pad(m, x, 2, 2, 2, 2), 1, 99, 0, -1), (1, 2)),
    (lambda m, x: pad(m, crop(m, x, 1, 6, 0, 5), 1, 1, 1, 1), (1, 1)),
    (lambda m, x: crop(m, pad(m, x, 2, 2, 2, 2), 2, 8, 2, 8), (0, 0)),
    (lambda m, x: crop(m, pad(m, x, 2, 2, 2, 2), 3, 8, 2, 7), (0, 0)),
    (lambda m, x: m.add("Transpose", m.add("Pad", m.add("Transpose", x, perm=[0, 3, 1, 2]), np.int64([0, 1, 0, 2, 0, 1, 0, 0])),
                        perm=[0, 2, 3, 1]), (2, 1)),
    (lambda m, x: m.add("Reshape", m.add("Relu", m.add("Reshape", pad(m, x, 1, 1, 1, 1), np.int64([0, 4, 64]))),
                        np.int64([0, 4, 8, 8])), (1, 1)),
    (lambda m, x: m.add("Tanh", m.add("Mul", np.float32(0.5), pad(m, x, 1, 1, 1, 1))), (1, 1)),
    (lambda m, x: m.add("Mul", pad(m, x, 1, 1, 1, 1), np.float32([1, 2, -1, 4]).reshape(4, 1, 1)), (1, 1))])
def test_zeros_before_and_behind_what_moves_values(composed, padding):
    random, m, x = start(4)
    graph = exact(m, end(m, random, m.qdq(composed(m, x), SCALE, INT8), 4))
    assert graph.output.padding == padding
    assert sum(isinstance(node, ir.Conv2d) for node in graph.nodes) <= 3  # a crop is one, zeros around a map are none


@pytest.mark.parametrize("by", ["MatMul", "Gemm"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 3, 1]])
def test_a_flatten_of_a_padded_map(by, order):
    """Weights that would read zeros go; channels may be first or last."""
    random, m, x = start(4)
    x = m.add("Flatten", m.qdq(m.add("Transpose", pad(m, x, 1, 0, 0, 2), perm=order), SCALE, INT8))
    scale = random.choice([2.0**-5, 2.0**-6], 5).astype(np.float32)
    transposed = by == "Gemm"
    w = dequantized(m, weights(random, *((5, 224) if transposed else (224, 5))), scale, axis=0 if transposed else 1)
    x = m.add(by, m.qdq(m.add("Relu", x), SCALE, INT8), w, **({"transB": 1} if transposed else {}))
    graph = exact(m, m.qdq(m.add("Add", x, np.float32(OFF_TIES)), 2**-2, INT8))
    assert graph.output.weight.shape == (5, 144)


def test_a_linear_layer_of_some_values_of_a_map():
    random, m, x = start(4)
    rows = m.add("Flatten", x)
    x = m.add("Gather", rows, np.int64([143, 3, 70]), axis=1)
    w = dequantized(m, weights(random, 3, 5), np.full(5, 2**-4, np.float32), axis=1)
    exact(m, m.qdq(m.add("Add", m.add("MatMul", x, w), np.float32(OFF_TIES)), 2**-2, INT8))
    with pytest.raises(GraphError, match=r"^Gather node 'twice': what it makes of a map of shape \(4, 6, 6\) has no"):
        x = m.add("Gather", rows, np.int64([3, 3, 70]), axis=1, name="twice")
        imported(m.proto(m.add("MatMul", x, w)))


def test_an_output_in_another_order_is_noted():
    random, m, x = start(4)
    graph = imported(m.proto(m.add("Transpose", x, name="turned", perm=[0, 1, 3, 2])), pixel_max=255 / 128, mean=1.0)
    assert graph.info["notes"] == ["the output of the model is the graph's moved by Transpose node 'turned'"]
    plain = imported(m.proto(x), pixel_max=255 / 128, mean=1.0)
    pixels = random_pixels(random, 2, 3, 6, 6)
    np.testing.assert_array_equal(execute(graph, pixels), execute(plain, pixels))


@pytest.mark.parametrize("odd, by", [
    (lambda m, x: m.add("Slice", x, np.int64([5]), np.int64([0]), np.int64([2]), np.int64([-1]), name="odd"), "Slice"),
    (lambda m, x: m.add("Tile", x, np.int64([1, 1, 2, 1]), name="odd"), "Tile"),
    (lambda m, x: m.add("Flatten", x, name="odd", axis=2), "Flatten"),
    (lambda m, x: m.add("Gather", x, np.int64([0, 3, 4]), name="odd", axis=3), "Gather")])
def test_what_the_graph_cannot_express_is_refused_where_it_is_read(odd, by):
    _random, m, x = start(4)
    x = odd(m, x)
    rows = by == "Flatten"
    x = m.add("Add", x, np.ones(36, np.float32)) if rows else m.add("MaxPool", m.qdq(x, SCALE, INT8), kernel_shape=[2, 2])
    with pytest.raises(GraphError) as caught:
        imported(m.proto(x))
    assert str(caught.value).startswith(f"{by} node 'odd': what it makes of a map of shape (4, 6, 6) has no integer form; only a ")


def test_an_output_with_values_missing_is_refused():
    _random, m, x = start(4)
    with pytest.raises(GraphError, match=r"^Gather node 'odd': what it makes of a map of shape \(4, 6, 6\) has no"):
        imported(m.proto(m.add("Gather", x, np.int64([0, 3, 4]), name="odd", axis=2)))
