"""Single operators of ONNX, with scales that are powers of two: the import equals onnxruntime exactly.

Biases keep every sum off the ties, where ONNX rounds to even and the integer graph up; ties have a test of their own.
"""

import numpy as np
import pytest

from esbflow.graph import ir
from esbflow.graph.execute import execute
from tests.sw.interchange.models import (
    INT8,
    OFF_TIES,
    Model,
    compare,
    conv_layer,
    dequantized,
    exact,
    image_in,
    imported,
    random_pixels,
    refused,
    run_onnxruntime,
    weights,
)


@pytest.mark.parametrize("options", [
    {}, {"pads": [1, 1, 1, 1]}, {"strides": [2, 2]}, {"dilations": [2, 2]}, {"group": 3, "out": 6}, {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "VALID"}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"pads": [0, 2, 1, 0], "strides": [2, 1]}, {"pads": [1, 0, 0, 1]}])
def test_convolutions(options):
    random, m = np.random.default_rng(1), Model(("n", 3, 6, 6))
    exact(m, m.qdq(conv_layer(m, random, image_in(m), **options), 2**-3, INT8))


def test_per_channel_scales_and_batch_norm():
    random, m = np.random.default_rng(2), Model(("n", 3, 6, 6))
    w = dequantized(m, weights(random, 4, 3, 3, 3), np.float32([2**-4, 2**-5, 2**-3, 2**-4]), axis=0)
    x = m.add("Conv", image_in(m), w)
    x = m.add("BatchNormalization", x, np.float32([1, 2, -1, 0.5]), np.full(4, OFF_TIES, np.float32), np.zeros(4, np.float32),
              np.full(4, 4.0, np.float32), epsilon=0.0)
    exact(m, m.qdq(m.add("Relu", x), 2**-4, np.int8(-128)))


@pytest.mark.parametrize("zero, form", [(np.uint8(0), "u8"), (np.int8(-128), "u8"), (np.int8(0), "s8"), (np.uint8(128), "s8")])
def test_zero_points_become_formats(zero, form):
    random, m = np.random.default_rng(3), Model(("n", 3, 6, 6))
    graph = exact(m, m.qdq(conv_layer(m, random, image_in(m)), 2**-3, zero))
    assert str(graph.output.format) == form


def test_weights_with_a_zero_point():
    random, m = np.random.default_rng(4), Model(("n", 3, 6, 6))
    codes = random.integers(121, 136, (4, 3, 3, 3)).astype(np.uint8)
    w = m.add("DequantizeLinear", codes, np.float32(2**-4), np.uint8(128))
    x = m.add("Conv", image_in(m), w, np.full(4, OFF_TIES, np.float32))
    assert exact(m, m.qdq(x, 2**-3, INT8)).output.weight.max() == 7


def test_relu_and_clip_narrow_the_format():
    random, m = np.random.default_rng(5), Model(("n", 3, 6, 6))
    x = m.add("Relu", conv_layer(m, random, image_in(m)))
    assert str(exact(m, m.qdq(x, 2**-3, INT8)).output.format) == "u7"
    m = Model(("n", 3, 6, 6))
    x = m.add("Clip", conv_layer(m, random, image_in(m)), np.float32(0), np.float32(15 * 2**-3))
    assert str(exact(m, m.qdq(x, 2**-3, np.uint8(0))).output.format) == "u4"


def test_a_clamp_costs_no_layer():
    random, m = np.random.default_rng(5), Model(("n", 3, 6, 6))
    x = m.qdq(conv_layer(m, random, image_in(m), name="conv"), 2**-3, INT8)
    graph = exact(m, m.qdq(m.add("Relu", x), 2**-3, INT8))
    assert [node.name for node in graph.nodes] == ["input", "conv"]


SLOPES = np.float32([0.25, -0.5, 0, 1.5])[:, None, None]


@pytest.mark.parametrize("operator, slope", [("LeakyRelu", 0.25), ("LeakyRelu", -1.0), ("PRelu", SLOPES),
                                             ("PRelu", np.float32([0.5])), ("PRelu", SLOPES[None])])
def test_leaky_relus_are_one_exact_layer_and_one_sum(operator, slope):
    random, m = np.random.default_rng(5), Model(("n", 3, 6, 6))
    given, options = ([slope], {}) if operator == "PRelu" else ([], {"alpha": slope})

    def leaky(x):
        return m.add("Add", m.add(operator, x, *given, **options), np.float32(OFF_TIES))

    x = m.qdq(leaky(m.qdq(conv_layer(m, random, image_in(m), name="conv"), 2**-3, INT8)), 2**-4, INT8)
    x = m.add("MaxPool", m.qdq(leaky(x), 2**-5, INT8), kernel_shape=[2, 2])
    kinds = [type(node) for node in exact(m, x).nodes]
    assert kinds == [ir.Input, ir.Conv2d, *(ir.Requantize, ir.Add) * 2, ir.MaxPool2d]


def test_leaky_relus_of_the_image_of_padded_and_of_joined_tensors():
    random, m = np.random.default_rng(6), Model(("n", 3, 6, 6))
    x = m.qdq(m.add("PRelu", "image", SLOPES[1:]), 2**-6, INT8)
    parts = [m.qdq(conv_layer(m, random, x, pads=[1] * 4), 2.0**-k, INT8) for k in (3, 4)]
    slopes = np.concatenate([2 * SLOPES, SLOPES + 1.25])
    x = m.qdq(m.add("PRelu", m.add("Concat", *parts, axis=1), slopes), 2**-6, INT8)
    x = m.add("LeakyRelu", m.add("Pad", x, np.int64([0, 0, 1, 0, 0, 0, 0, 2])), alpha=0.5)
    exact(m, m.qdq(conv_layer(m, random, m.qdq(x, 2**-7, INT8), channels=8), 2**-3, INT8))


@pytest.mark.parametrize("low, high, form", [(-8, 7, "s4"), (-7, 7, "esb4.2"), (0, 15, "u4")])
def test_clipped_codes_are_fewer_bits(low, high, form):
    """Brevitas's QCDQ: QuantizeLinear, Clip, DequantizeLinear."""
    random, m = np.random.default_rng(19), Model(("n", 3, 6, 6))

    def clipped(x, scale):
        x = m.add("Clip", m.add("QuantizeLinear", x, np.float32(scale), INT8), np.int8(low), np.int8(high))
        return m.add("DequantizeLinear", x, np.float32(scale), INT8)

    levels = m.add("Clip", random.integers(-20, 20, (4, 3, 3, 3)).astype(np.int8), np.int8(-7), np.int8(7))
    x = m.add("Conv", clipped("image", 2**-4), dequantized(m, levels, 2**-4), np.full(4, OFF_TIES, np.float32), name="conv")
    graph = exact(m, clipped(x, 2**-3))
    assert [node.name for node in graph.nodes] == ["input", "conv"]
    assert [str(node.format) for node in graph.nodes] == [form, form]


@pytest.mark.parametrize("transposed", [0, 1])
def test_linear_layers(transposed):
    random, m = np.random.default_rng(6), Model(("n", 3, 6, 6))
    shape = (5, 108) if transposed else (108, 5)
    w = dequantized(m, weights(random, *shape), np.full(5, 2**-4, np.float32), axis=1 - transposed)
    x = m.add("Flatten", image_in(m), axis=1)
    exact(m, m.qdq(m.add("Gemm", x, w, np.full(5, OFF_TIES, np.float32), transB=transposed), 2**-2, INT8))
    if not transposed:
        m = Model(("n", 3, 6, 6))
        x = m.add("Reshape", image_in(m), np.int64([0, -1]))
        x = m.add("MatMul", x, dequantized(m, weights(random, *shape), np.float32(2**-4)))
        exact(m, m.qdq(m.add("Add", x, np.full(5, OFF_TIES, np.float32)), 2**-2, INT8))


@pytest.mark.parametrize("options", [
    {"kernel_shape": [2, 2], "strides": [2, 2]}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 1], "ceil_mode": 1}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
    {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, {"kernel_shape": [4, 3], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [4, 3], "strides": [1, 2], "auto_pad": "SAME_LOWER"}])
def test_max_pools_before_and_after_the_quantizer(options):
    random = np.random.default_rng(8)
    m = Model(("n", 3, 6, 6))
    exact(m, m.add("MaxPool", image_in(m), **options))
    m = Model(("n", 3, 6, 6))
    x = m.add("MaxPool", m.add("Relu", conv_layer(m, random, image_in(m), pads=[1] * 4)), **options)
    graph = exact(m, m.qdq(x, 2**-3, np.uint8(0)))
    assert [type(node) for node in graph.nodes] == [ir.Input, ir.Conv2d, ir.MaxPool2d]


@pytest.mark.parametrize("pads", [[0, 0, 1, 1], [2, 1, 0, 1]])
@pytest.mark.parametrize("place", ["image", "tensor", "codes", "before relu"])
def test_zeros_of_a_pad_go_to_the_layer_that_reads_them(place, pads):
    random, m = np.random.default_rng(3), Model(("n", 3, 6, 6))
    around = np.int64([0, 0, *pads[:2], 0, 0, *pads[2:]])
    x = m.qdq(m.add("Pad", "image", around), 2**-6, INT8) if place == "image" else image_in(m)
    if place == "codes":
        x = m.qdq(m.add("Pad", x, around), 2**-6, INT8)
    elif place == "before relu":
        x = m.qdq(m.add("Relu", m.add("Pad", conv_layer(m, random, x, out=3, pads=[1] * 4), around)), 2**-3, INT8)
    elif place == "tensor":
        x = m.add("Pad", x, around)
    graph = exact(m, m.qdq(conv_layer(m, random, x, strides=[2, 2], pads=[0, 1, 0, 1]), 2**-2, INT8))
    assert graph.output.padding == (pads[0], pads[1] + 1) and len(graph.nodes) == 2 + (place == "before relu")


def test_zeros_of_a_pad_among_codes():
    m, random = Model(("n", 3, 6, 6), "uint8"), np.random.default_rng(4)
    around = np.int64([0, 0, 1, 1, 0, 0, 1, 0])
    x = m.add("DequantizeLinear", m.add("Pad", "image", around), np.float32(2**-7), np.uint8(0))
    x = m.add("Clip", m.add("QuantizeLinear", m.add("Pad", x, around), np.float32(2**-7), INT8), np.int8(0), np.int8(63))
    x = conv_layer(m, random, m.add("DequantizeLinear", x, np.float32(2**-7), INT8))
    proto, pixels = m.proto(m.qdq(x, 2**-4, INT8)), random_pixels(random, 8, 3, 6, 6)
    graph = imported(proto)
    assert compare(graph, pixels, run_onnxruntime(proto, pixels)) == (0, 0.0) and graph.output.padding == (2, 2)
    m.nodes[1].input[2] = m.constant(np.uint8(128))  # codes of zero are -1
    assert "DequantizeLinear node 'dequantizelinear2': it makes other values of the zeros of a Pad" in refused(m, x)
    m = Model(("n", 3, 6, 6))
    x = m.add("Pad", m.add("QuantizeLinear", "image", np.float32(1), np.uint8(128)), around)
    x = m.add("DequantizeLinear", x, np.float32(1), np.uint8(128))
    assert "Pad node 'pad2': it computes with codes" in refused(m, m.qdq(conv_layer(m, random, x), 1, INT8))


def test_zeros_of_a_pad_before_pools():
    random, around = np.random.default_rng(3), np.int64([0, 0, 1, 1, 0, 0, 1, 1])
    m = Model(("n", 3, 6, 6))
    x = m.qdq(m.add("Relu", conv_layer(m, random, image_in(m), pads=[1] * 4)), 2**-3, np.uint8(0))
    exact(m, m.add("MaxPool", m.add("Pad", x, around), kernel_shape=[3, 3], strides=[2, 2]))
    m = Model(("n", 3, 6, 6))
    x = m.add("Pad", m.add("Relu", conv_layer(m, random, image_in(m), pads=[1] * 4)), around)
    exact(m, m.qdq(m.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2]), 2**-3, np.uint8(0)))
    m = Model(("n", 3, 6, 6))
    x = m.add("AveragePool", m.add("Pad", image_in(m), around), kernel_shape=[4, 4])
    exact(m, m.qdq(m.add("Add", x, np.float32(2**-11)), 2**-6, INT8))
    m = Model(("n", 3, 6, 6))
    x = m.add("MaxPool", m.add("Pad", image_in(m), around), name="odd", kernel_shape=[3, 3])
    assert "MaxPool node 'odd': it reads zeros of a Pad beside values below zero" in refused(m, x)


def test_pads_without_an_integer_form():
    random = np.random.default_rng(3)

    def padded(pads, *more, **options):
        m = Model(("n", 3, 6, 6))
        x = m.add("Pad", image_in(m), np.int64(pads), *more, name="odd", **options)
        return refused(m, m.qdq(conv_layer(m, random, x), 1, INT8))

    even = [0, 0, 1, 1, 0, 0, 1, 1]
    assert "its padding (0, 0, 0, 4) leaves out rows or adds windows that the integer graph does not have" in padded(
        [0, 0, 0, 0, 0, 0, 0, 4])
    assert padded(even, mode="reflect") == "Pad node 'odd': padding by reflect has no integer form; pad with zeros"
    assert padded(even, np.float32(2)) == "Pad node 'odd': padding with 2 has no integer form; pad with zeros"
    assert "Pad node 'odd': what it makes of a map of shape (3, 6, 6) has no integer form" in padded([0, 1, 1, 1, 0, 0, 1, 1])
    assert "only zeros around height and width have" in padded([0, 0, -1, 0, 0, 0, 0, 0])
    takes_none = ("it reads the zeros of a Pad, which only convolutions, pools, ReLU and quantizers can take over; pad behind it")
    makes_others = "it makes other values of the zeros of a Pad, which layers cannot pad with; pad behind it"
    for operator, *others, options, sentence in (
            ("GlobalAveragePool", {}, takes_none), ("Concat", {"axis": 1}, takes_none), ("Add", "image", {}, takes_none),
            ("Add", np.float32(1), {}, makes_others), ("Cos", {}, makes_others), ("Div", np.float32(0), {}, makes_others)):
        m = Model(("n", 3, 6, 6))
        x = m.add("Pad", image_in(m), np.int64(even if "image" not in others else [0] * 7 + [1]))
        others = [m.add("Pad", other, np.int64([0] * 7 + [1])) if isinstance(other, str) else other for other in others]
        x = m.add(operator, x, *others, name="reader", **options)
        assert refused(m, m.qdq(x, 1, INT8)) == f"{operator} node 'reader': {sentence}"
    m = Model(("n", 3, 6, 6))
    assert makes_others in refused(m, m.quant(m.add("Pad", image_in(m), np.int64(even)), 1, 1, narrow=1))
    m = Model(("n", 3, 6, 6))
    assert f"output {m.add('Pad', image_in(m), np.int64(even))!r}: {takes_none}" == refused(m, "pad3_result")


def test_the_value_to_pad_with_may_be_quantized():
    random, m = np.random.default_rng(3), Model(("n", 3, 6, 6))
    zero = m.add("DequantizeLinear", np.int8(0), np.float32(1), INT8)
    x = m.add("Pad", image_in(m), np.int64([0, 0, 1, 0, 0, 0, 0, 1]), zero)
    exact(m, m.qdq(conv_layer(m, random, x), 2**-3, INT8))


@pytest.mark.parametrize("operator, options", [("GlobalMaxPool", {}), ("ReduceMax", {"axes": [2, 3]}),
                                               ("ReduceMax", {"axes": [-1, -2], "keepdims": 0})])
@pytest.mark.parametrize("open_layer", [False, True])
def test_the_maximum_over_the_map(operator, options, open_layer):
    random, m = np.random.default_rng(8), Model(("n", 3, 6, 6))
    x = conv_layer(m, random, image_in(m))
    x = m.add(operator, x if open_layer else m.qdq(x, 2**-3, INT8), **options)
    graph = exact(m, m.qdq(m.add("Relu", x), 2**-3, INT8) if open_layer else x)
    assert [type(node) for node in graph.nodes] == [ir.Input, ir.Conv2d, ir.MaxPool2d]
    assert graph.output.kernel == graph.output.stride == (4, 4)
    m = Model(("n", 3, 6, 6))
    x = m.add("ReduceMax", image_in(m), name="odd", axes=[1, 2])
    assert refused(m, x) == ("ReduceMax node 'odd': only the mean and the maximum over height and width have an integer "
                             "form")


def test_what_moves_values_may_stand_before_the_quantizer():
    """onnxruntime quantizes no PRelu and no difference, so that such layers go on to a Resize or Slice as they are."""
    random, m = np.random.default_rng(9), Model(("n", 3, 6, 6))
    x = m.qdq(conv_layer(m, random, image_in(m), pads=[1] * 4, name="conv"), 2**-3, INT8)
    x = m.add("PRelu", x, np.float32(0.25), name="leaky")
    x = m.add("Resize", x, "", np.float32([1, 1, 2, 1]), mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor", name="twice")
    x = m.add("MaxPool", m.add("Relu", x), kernel_shape=[3, 2])
    x = m.add("Mul", m.add("Slice", x, np.int64([1]), np.int64([3]), np.int64([1]), name="middle"), np.float32(0.5))
    graph = exact(m, m.qdq(x, 2**-6, INT8))
    assert [(type(node), node.name) for node in graph.nodes[3:]] == [
        (ir.Add, "leaky_before3"), (ir.Upsample, "leaky_before2"), (ir.MaxPool2d, "leaky_before1"), (ir.Conv2d, "leaky")]
    m = Model(("n", 3, 6, 6))
    x = m.add("Resize", conv_layer(m, random, image_in(m)), "", np.float32([1, 1, 2, 2]), mode="nearest")
    x = m.qdq(m.add("Add", x, np.float32(1), name="odd"), 2**-3, INT8)
    assert refused(m, x) == ("Add node 'odd': it follows a ReLU, PRelu, Clip, MaxPool or Resize that is not quantized; put a "
                             "quantizer between")


@pytest.mark.parametrize("options, place", [({"start": 1}, 0), ({"start": 1, "end": 2}, 0), ({"end": -1}, 1), ({"start": 0}, 1)])
def test_a_part_of_a_shape(options, place):
    random, m = np.random.default_rng(10), Model(("n", 3, 6, 6))
    x = m.qdq(conv_layer(m, random, image_in(m)), 2**-3, INT8)
    half = m.add("Div", m.add("Gather", m.add("Shape", x, **options), np.int64([place])), np.int64([2]))
    exact(m, m.add("Slice", x, half, np.int64([4]), np.int64([1])))


def test_average_pools():
    for operator, options in (("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
                              ("AveragePool", {"kernel_shape": [4, 4], "pads": [1] * 4, "count_include_pad": 1}),
                              ("GlobalAveragePool", {})):
        m = Model(("n", 3, 8, 8))
        x = m.add("Add", m.add(operator, image_in(m), **options), np.float32(2**-11))
        exact(m, m.qdq(x, 2**-6, INT8), size=8)
    m = Model(("n", 3, 8, 8))
    x = m.add("ReduceMean", image_in(m), axes=[2, 3], keepdims=1)
    exact(m, m.qdq(m.add("Add", x, np.float32(2**-12)), 2**-6, INT8), size=8)


def test_sums_of_two_tensors_and_into_a_convolution():
    random = np.random.default_rng(9)
    m = Model(("n", 3, 6, 6))
    x = image_in(m)
    y = m.qdq(conv_layer(m, random, x, out=3, pads=[1] * 4), 2**-3, INT8)
    total = m.add("Add", m.add("Sub", y, x), np.float32(2**-8), name="bias")
    assert type(exact(m, m.qdq(total, 2**-3, INT8)).output) is ir.Add
    m = Model(("n", 3, 6, 6))
    x = image_in(m)
    y = m.add("Add", conv_layer(m, random, x, out=3, pads=[1] * 4), x)
    graph = exact(m, m.qdq(m.add("Relu", y), 2**-3, np.uint8(0)))
    assert type(graph.output) is ir.Conv2d and len(graph.output.inputs) == 2


def test_concat_of_tensors_with_different_scales():
    random, m = np.random.default_rng(10), Model(("n", 3, 6, 6))
    x = image_in(m)
    y = m.qdq(conv_layer(m, random, x, pads=[1] * 4), 2**-3, INT8)
    exact(m, m.add("Concat", y, m.qdq(conv_layer(m, random, x, pads=[1] * 4), 2**-3, INT8), axis=1))
    both = m.add("Concat", y, m.add("Add", x, np.float32(2**-8)), axis=1)
    graph = exact(m, m.qdq(both, 2**-3, INT8))
    assert type(graph.output) is ir.Concat


def test_upsampling():
    m = Model(("n", 3, 6, 6))
    exact(m, m.add("Resize", image_in(m), np.zeros(0, np.float32), np.float32([1, 1, 2, 3]), mode="nearest",
                   coordinate_transformation_mode="asymmetric", nearest_mode="floor"))


def test_a_model_that_takes_codes():
    random, m = np.random.default_rng(11), Model(("n", 3, 6, 6), kind="uint8")
    x = m.add("DequantizeLinear", "image", np.float32(2**-6), np.uint8(128))
    proto = m.proto(m.qdq(conv_layer(m, random, x), 2**-3, INT8))
    pixels = random_pixels(random, 6, 3, 6, 6)
    assert compare(imported(proto), pixels, run_onnxruntime(proto, pixels)) == (0, 0.0)


def test_constants_are_folded():
    """Shape, Gather, Concat, Reshape as torch's older exporter writes a flatten; scales as Constant nodes."""
    random, m = np.random.default_rng(12), Model(("n", 3, 6, 6))
    x = image_in(m)
    batch = m.add("Unsqueeze", m.add("Gather", m.add("Shape", x), np.int64(0), axis=0), np.int64([0]))
    x = m.add("Reshape", x, m.add("Concat", batch, np.int64([-1]), axis=0))
    w = m.add("Transpose", dequantized(m, weights(random, 5, 108), np.full(5, 2**-4, np.float32), axis=0), perm=[1, 0])
    exact(m, m.qdq(m.add("Add", m.add("MatMul", x, w), np.float32(OFF_TIES)), 2**-2, INT8))


@pytest.mark.parametrize("last, ends, form", [("Relu", (), "u32"), ("Clip", (0.0, 1.0), None), ("Clip", (0.0,), "u32")])
def test_models_that_end_in_a_relu(last, ends, form):
    random, m = np.random.default_rng(4), Model(("n", 3, 6, 6))
    x = m.add(last, conv_layer(m, random, image_in(m), bias=False), *map(np.float32, ends), name="last")
    graph = imported(m.proto(x), pixel_max=255 / 128, mean=1.0)
    pixels = random_pixels(np.random.default_rng(7), 4, 3, 6, 6)
    expected = run_onnxruntime(m.proto(x), ((pixels - 128.0) / 128).astype(np.float32))
    assert abs(execute(graph, pixels) * graph.output.scale - expected).max() <= (0 if form else graph.output.scale / 2 + 1e-6)
    assert (expected > 0).any() and form in (None, str(graph.output.format))
    if form is None:
        assert graph.output.format.max * graph.output.scale == pytest.approx(1.0) and expected.max() == 1
