"""Models with axes (n, height, width, channels), as Keras writes them: equal to onnxruntime in every value, since scales are
powers of two and biases keep sums off the ties."""

import numpy as np
import pytest

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.interchange.channels_last import TO_FIRST, TO_LAST
from tests.sw.interchange.models import (
    INT8,
    OFF_TIES,
    Model,
    conv_layer,
    dequantized,
    image_in,
    imported,
    random_pixels,
    run_onnxruntime,
    weights,
)

HEIGHT, WIDTH = 6, 5


def exact(m, x, channels=3, last=False, opset=17):
    """The model that ends in tensor x equals the imported graph on random images; returns the graph."""
    proto = m.proto(x, opset)
    graph = imported(proto, pixel_max=255 / 128, mean=1.0)
    pixels = random_pixels(np.random.default_rng(7), 6, channels, HEIGHT, WIDTH)
    expected = run_onnxruntime(proto, ((pixels - 128.0) / 128).astype(np.float32).transpose(0, 2, 3, 1))
    found = execute(graph, pixels) * graph.output.scale
    if last and expected.ndim == 4:
        expected = expected.transpose(TO_FIRST)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    assert len(np.unique(found)) > 8
    assert graph.info["notes"][0] == f"the model's images are (height, width, channels), the graph's {(channels, HEIGHT, WIDTH)}"
    return graph


def first(m, x):
    return m.add("Transpose", x, perm=TO_FIRST)


def last(m, x):
    return m.add("Transpose", x, perm=TO_LAST)


def dense(m, random, x, inputs, outputs=7, gemm=None):
    levels = weights(random, inputs, outputs)
    if gemm is None:
        w = dequantized(m, levels, np.full(outputs, 2**-4, np.float32), axis=1)
        return m.add("Add", m.add("MatMul", x, w), np.full(outputs, OFF_TIES, np.float32))
    w = dequantized(m, levels.T if gemm else levels, np.full(outputs, 2**-4, np.float32), axis=0 if gemm else 1)
    return m.add("Gemm", x, w, np.full(outputs, OFF_TIES, np.float32), transB=int(gemm))


def image(channels=3):
    return Model(("n", HEIGHT, WIDTH, channels))


@pytest.mark.parametrize("before", [False, True])
def test_the_image_is_swapped_before_or_behind_its_quantizer(before):
    random, m = np.random.default_rng(1), image()
    x = first(m, image_in(m)) if not before else m.qdq(first(m, "image"), 2**-6, INT8)
    graph = exact(m, m.qdq(conv_layer(m, random, x, pads=[1] * 4), 2**-3, INT8))
    assert [type(node) for node in graph.nodes] == [ir.Input, ir.Conv2d]


def test_images_of_one_channel_are_reshaped():
    random, m = np.random.default_rng(2), image(1)
    x = m.add("Reshape", image_in(m), np.int64([-1, 1, HEIGHT, WIDTH]))
    exact(m, m.qdq(conv_layer(m, random, x, channels=1), 2**-3, INT8), channels=1)


def test_a_normalisation_by_channel_before_the_swap():
    random, m = np.random.default_rng(3), image()
    x = m.add("Mul", m.add("Sub", "image", np.float32([0.25, -0.5, 0])), np.float32([[[[0.5, 1, 2]]]]))
    exact(m, m.qdq(conv_layer(m, random, first(m, m.qdq(x, 2**-6, INT8))), 2**-3, INT8))


@pytest.mark.parametrize("gemm", [None, True, False])
@pytest.mark.parametrize("sizes", ["open", "computed", "flatten"])
def test_a_flatten_in_that_order_reorders_the_weights(gemm, sizes):
    random, m = np.random.default_rng(4), image()
    x = last(m, m.qdq(conv_layer(m, random, first(m, image_in(m)), out=5), 2**-3, INT8))
    if sizes == "open":
        rows = m.add("Reshape", x, np.int64([-1, 5 * 4 * 3]))
    elif sizes == "flatten":
        rows = m.add("Flatten", x)
    else:  # as tf2onnx writes it: casts stop onnx's own inference of shapes
        count = m.add("Slice", m.add("Cast", m.add("Shape", x), to=6), np.int64([0]), np.int64([1]), np.int64([0]))
        rows = m.add("Reshape", x, m.add("Cast", m.add("Concat", count, np.int32([60]), axis=0), to=7))
    rows = m.qdq(m.add("Relu", rows), 2**-3, INT8)
    exact(m, m.qdq(dense(m, random, rows, 60, gemm=gemm), 2**-4, INT8))


def test_sums_concatenations_pads_and_means_while_channels_are_last():
    random, m = np.random.default_rng(5), image()
    x = first(m, image_in(m))
    a = m.qdq(last(m, conv_layer(m, random, x, pads=[1] * 4)), 2**-3, INT8)
    b = m.qdq(last(m, conv_layer(m, random, x, pads=[1] * 4)), 2**-3, INT8)
    total = m.qdq(m.add("Relu", m.add("Add", a, b)), 2**-3, np.int8(-128))
    scaled = m.add("Mul", total, np.float32([1, 0.5, 2, 1]))
    joined = m.add("Concat", total, m.qdq(m.add("Add", scaled, np.full(4, OFF_TIES, np.float32)), 2**-3, np.int8(-128)), axis=3)
    x = first(m, m.add("Pad", joined, np.int64([0, 1, 0, 0, 0, 2, 1, 0])))
    x = m.qdq(conv_layer(m, random, x, channels=8), 2**-2, np.int8(-128))
    exact(m, last(m, x), last=True)


def test_leaky_relus_while_channels_are_last():
    random, m = np.random.default_rng(6), image()
    x = m.qdq(last(m, conv_layer(m, random, first(m, image_in(m)), pads=[1] * 4)), 2**-3, INT8)
    x = padded = m.add("Pad", x, np.int64([0, 1, 1, 0, 0, 0, 1, 0]))
    x = m.qdq(m.add("PRelu", x, np.float32([[[0.25, 0.5, 2, -1]]])), 2**-5, INT8)
    x = m.qdq(m.add("LeakyRelu", x, alpha=0.5), 2**-6, INT8)
    exact(m, last(m, m.qdq(conv_layer(m, random, first(m, x), channels=4), 2**-2, np.int8(-128))), last=True)
    positive = m.add("Relu", padded)
    count = len(m.nodes)
    for operator, *inputs, options in (("Concat", padded, {"axis": 3}), ("ReduceMean", {"axes": [1, 2]}), ("Add", positive, {})):
        del m.nodes[count:]
        x = m.qdq(m.add(operator, padded, *inputs, name=f"odd{operator}", **options), 1, INT8)
        with pytest.raises(GraphError, match=rf"^{operator} node 'odd{operator}': it reads the zeros of a Pad"):
            imported(m.proto(first(m, x)))


def test_a_pad_of_named_axes_and_weights_that_are_not_quantized():
    random, m = np.random.default_rng(12), image()
    x = m.add("Pad", image_in(m), np.int64([1, 0, 0, 2]), "", np.int64([1, 2]))
    x = m.qdq(conv_layer(m, random, first(m, x)), 2**-3, INT8)
    exact(m, x, opset=18)
    rows = m.add("Flatten", last(m, x))
    with pytest.raises(GraphError, match=r"^MatMul node 'odd': its weights are not quantized; quantize them too$"):
        imported(m.proto(m.qdq(m.add("MatMul", rows, np.ones((100, 2), np.float32), name="odd"), 1, INT8), 18))


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax"])
def test_the_mean_and_the_maximum_over_the_map(operator, keep):
    random, m = np.random.default_rng(6), image()
    x = last(m, m.qdq(conv_layer(m, random, first(m, image_in(m)), kernel=3, pads=[1, 0, 1, 0], strides=[3, 3]), 2**-3, INT8))
    x = m.qdq(m.add("Add", m.add(operator, x, axes=[1, 2], keepdims=keep), np.full(4, OFF_TIES, np.float32)), 2**-6, INT8)
    if keep:
        x = m.add("Reshape", x, np.int64([-1, 4]))
    exact(m, m.qdq(dense(m, random, x, 4), 2**-6, INT8))


def test_an_output_with_its_channels_last_is_noted():
    random, m = np.random.default_rng(8), image()
    graph = exact(m, m.qdq(last(m, conv_layer(m, random, first(m, image_in(m)))), 2**-3, INT8), last=True)
    assert graph.info["notes"][1] == "the output of the model has its channels last, that of the graph first"


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_a_softmax_at_the_end_is_left_to_the_host(end):
    random, m = np.random.default_rng(9), image()
    x = last(m, m.qdq(conv_layer(m, random, first(m, image_in(m))), 2**-3, INT8))
    scores = m.qdq(dense(m, random, m.add("Flatten", x), 48), 2**-2, INT8)
    plain, graph = imported(m.proto(scores)), imported(m.proto(m.qdq(m.add(end, scores, name="last"), 2**-8, INT8)))
    assert graph.info["notes"][0] == f"{end} node 'last' is left to the host: the largest value stays the largest"
    pixels = random_pixels(random, 4, 3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(execute(graph, pixels), execute(plain, pixels))


@pytest.mark.parametrize("odd, says", [
    (lambda m, x: m.add("MaxPool", x, kernel_shape=[2, 2]), "it has no integer form for a tensor (n, height, width, channels)"),
    (lambda m, x: m.add("Concat", x, x, axis=1), "it has no integer form for a tensor (n, height, width, channels)"),
    (lambda m, x: m.add("Add", m.add("Flatten", x), np.arange(48, dtype=np.float32)), "it reads rows that were flattened from"),
    (lambda m, x: m.add("Mul", x, np.arange(3, dtype=np.float32)[:, None]), "a constant of shape (1, 1, 1, 3) is not one number"),
    (lambda m, x: m.add("ReduceMean", x, axes=[2, 3]), "it has no integer form for a tensor (n, height, width, channels)")])
def test_what_has_no_form_in_that_order_is_refused(odd, says):
    random, m = np.random.default_rng(10), image()
    x = last(m, m.qdq(conv_layer(m, random, first(m, image_in(m))), 2**-3, INT8))
    with pytest.raises(GraphError) as caught:
        imported(m.proto(m.qdq(odd(m, x), 2**-3, INT8)))
    assert says in str(caught.value) and " node '" in str(caught.value) and "\n" not in str(caught.value)
