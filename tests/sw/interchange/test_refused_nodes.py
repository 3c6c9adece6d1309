"""Operators and quantizers of ONNX without an integer form: named with a fix, or taken in another way that is said."""

import numpy as np
import pytest

from esbflow.graph import ir
from tests.sw.interchange.models import (
    INT8,
    Model,
    compare,
    conv_layer,
    image_in,
    imported,
    random_pixels,
    refused,
    run_onnxruntime,
    weights,
)


def test_operators_without_an_integer_form_are_named_with_a_fix():
    random = np.random.default_rng(16)

    def after(operator, *inputs, **options):
        m = Model(("n", 3, 6, 6))
        x = m.qdq(conv_layer(m, random, image_in(m), pads=[1] * 4), 2**-3, INT8)
        x = m.qdq(m.add(operator, x, *inputs, name="odd", **options), 2**-3, INT8)
        return refused(m, m.add("MaxPool", x, kernel_shape=[2, 2]))

    assert after("LayerNormalization", np.ones(6, np.float32)) == (
        "LayerNormalization node 'odd': the integer graph has no LayerNormalization; use BatchNormalization")
    moved = ("node 'odd': what it makes of a map of shape (4, 6, 6) has no integer form; only a flatten, a choice of channels, "
             "rectangles of pixels, repeated pixels, channels at the end and zeros around height and width have")
    assert after("Transpose", perm=[0, 1, 3, 2]) == f"Transpose {moved}"
    assert after("Reshape", np.int64([0, 8, 3, 6])) == f"Reshape {moved}"
    assert "a dilated max pool has no integer form" in after("MaxPool", kernel_shape=[2, 2], dilations=[2, 2])
    assert "needs count_include_pad=1" in after("AveragePool", kernel_shape=[3, 3], pads=[1] * 4)
    assert "a constant of shape (6,) is not one number, nor one for each of 4 channels" in after(
        "Mul", np.arange(6, dtype=np.float32))
    assert "only repeating pixels by whole factors" in after(
        "Resize", np.zeros(0, np.float32), np.float32([1, 1, 2, 2]), mode="cubic")
    assert "linear interpolation by asymmetric is not known" in after(
        "Resize", np.zeros(0, np.float32), np.float32([1, 1, 2, 2]), mode="linear", coordinate_transformation_mode="asymmetric")
    assert "to (9, 9) is not known; use whole factors" in after(
        "Resize", np.zeros(0, np.float32), np.float32([1, 1, 1.5, 1.5]), mode="linear")
    assert "LRN node 'odd': the integer graph has no LRN; it has Abs, Add, AveragePool" in after("LRN", size=3)
    for domain in ("qonnx.custom_op.channels_last", "finn.custom_op.fpgadataflow"):
        assert after("MaxPool", domain=domain) == (
            f"MaxPool node 'odd': the integer graph has no operators of {domain}; import the QONNX model as it was before "
            "FINN's conversion")
    assert after("Relu", domain="com.me").endswith("no operators of com.me; export it with ONNX's own operators, or QONNX's")


def test_a_softmax_along_the_width_is_refused():
    random, m = np.random.default_rng(16), Model(("n", 3, 6, 6))
    x = m.qdq(conv_layer(m, random, image_in(m), pads=[1] * 4), 2**-3, INT8)
    x = m.qdq(m.add("Softmax", x, name="odd", axis=-1), 2**-3, INT8)
    assert refused(m, m.add("MaxPool", x, kernel_shape=[2, 2])) == (
        "Softmax node 'odd': the host computes a softmax over channels only (axis 1)")


@pytest.mark.parametrize("mean, pixel_max, form, said", [
    (0.0, 255 / 128, "u8", "takes it in u8, exactly"), (0.0, 1.0, "u8", "takes it in u8, exactly"),
    (1.0, 255 / 128, "s8", r"takes it in s8, to 0.0039 where its largest value is 1")])
def test_an_input_that_is_not_quantized_is_taken_in_eight_bits(mean, pixel_max, form, said):
    """Two layers read it, and it is one input; zeros around it are real zeros."""
    random, m = np.random.default_rng(17), Model(("n", 3, 6, 6))
    x = m.qdq(conv_layer(m, random, "image", pads=[1, 1, 1, 1]), 2**-5, INT8)
    x = m.add("Add", x, m.qdq(conv_layer(m, random, "image", kernel=1), 2**-5, INT8))
    proto = m.proto(m.qdq(x, 2**-5, INT8))
    graph = imported(proto, pixel_max=pixel_max, mean=mean)
    assert str(graph.input.format) == form and [type(node) for node in graph.nodes].count(ir.Input) == 1
    assert [note for note in graph.info["notes"] if said in note] == graph.info["notes"] != []
    real_table = np.arange(256) / 255 * pixel_max - mean
    assert np.abs(graph.input.table * graph.input.scale - real_table).max() <= (0 if form == "u8" else 0.0040) + 1e-6
    pixels = random_pixels(np.random.default_rng(7), 8, 3, 6, 6)
    images = (pixels / 255 * pixel_max - mean).astype(np.float32)
    steps, share = compare(graph, pixels, run_onnxruntime(proto, images))
    assert steps <= 1 and share < (0.03 if form == "u8" else 0.15)


def test_an_input_that_is_read_in_two_ways_is_refused():
    random, m = np.random.default_rng(18), Model(("n", 3, 6, 6))
    x = m.qdq(conv_layer(m, random, image_in(m), kernel=1), 2**-5, INT8)
    y = m.qdq(conv_layer(m, random, "image", kernel=1, name="odd"), 2**-5, INT8)
    assert refused(m, m.qdq(m.add("Add", x, y), 2**-4, INT8)) == (
        "Conv node 'odd': the model's input is read in codes of s8 elsewhere and of u8 here; put one quantizer right after the "
        "input")


def test_layers_that_are_not_quantized_are_named():
    random = np.random.default_rng(17)
    m = Model(("n", 3, 6, 6))
    x = m.add("Conv", image_in(m), weights(random, 4, 3, 3, 3).astype(np.float32), name="odd")
    assert refused(m, m.qdq(x, 1, INT8)) == "Conv node 'odd': its weights are not quantized; quantize them too"
    m = Model(("n", 3, 6, 6))
    x = conv_layer(m, random, conv_layer(m, random, image_in(m)), channels=4, kernel=1, name="odd")
    assert refused(m, m.qdq(x, 1, INT8)) == "Conv node 'odd': its input is not quantized; put a quantizer before it"
    m = Model(("n", 3, 6, 6))
    x = image_in(m)
    total = m.add("Add", conv_layer(m, random, x), conv_layer(m, random, x), name="odd")
    assert "Add node 'odd': the engine adds a quantized tensor to a quantized tensor" in refused(m, m.qdq(total, 1, INT8))


@pytest.mark.parametrize("options, reason", [
    (dict(bits=4, rounding="CEIL"), "the engine cannot round by CEIL; use rounding_mode ROUND"),
    (dict(bits=4.5), "its bit width must be one whole number"),
    (dict(bits=4, zero=3), "its zero point gives the levels -11..4, which the engine does not have"),
    (dict(bits=40), "its bit width must be in 1..32, not 40")])
def test_quantizers_without_an_integer_form(options, reason):
    m = Model(("n", 3, 6, 6))
    x = m.add("Add", m.quant("image", 2**-5, 8), np.float32(1))
    x = m.quant(x, 1.0, name="odd", **options)
    assert f"Quant node 'odd': {reason}" in refused(m, m.add("MaxPool", x, kernel_shape=[2, 2]))


def test_an_output_with_an_odd_zero_point_is_left_to_the_host():
    random, m = np.random.default_rng(18), Model(("n", 3, 6, 6))
    graph = imported(m.proto(m.qdq(conv_layer(m, random, image_in(m)), 2**-3, np.int8(5))))
    assert str(graph.output.format) == "s32"
    assert graph.info["notes"] == ["QuantizeLinear node 'quantizelinear5' is left out: zero point 5 gives levels -133..122"]
