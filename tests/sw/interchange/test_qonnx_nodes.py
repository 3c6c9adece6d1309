"""Single operators of QONNX, and concatenations of few bits: the import equals qonnx's executor exactly."""

import numpy as np
import pytest

from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.interchange.onnx_file import GraphError
from esbflow.split.program import compile_split
from tests.sw.interchange.models import OFF_TIES, QONNX, Model, imported, random_pixels, real, run_qonnx

TRUNC = {"domain": QONNX, "rounding_mode": "FLOOR"}


def qonnx_exact(m, x, form):
    proto = m.proto(x)
    graph = imported(proto)
    pixels = random_pixels(np.random.default_rng(7), 4, 3, 6, 6)
    found = run_qonnx(proto, real(pixels))
    assert str(graph.output.format) == form
    levels = np.rint(found[x] / graph.output.scale).reshape(4, *graph.output.shape)
    assert np.array_equal(levels, execute(graph, pixels))
    return graph


@pytest.mark.parametrize("options, form", [
    (dict(bits=4), "s4"), (dict(bits=4, narrow=1), "esb4.2"), (dict(bits=4, signed=0), "u4"), (dict(bits=1), "bin"),
    (dict(bits=4, rounding="FLOOR"), "s4"), (dict(bits=5, signed=0, zero=16), "s5"), (dict(bits=2, narrow=1), "esb2.0")])
def test_quant(options, form):
    random, m = np.random.default_rng(13), Model((1, 3, 6, 6))
    x = m.quant("image", 2**-5, 8)
    w = m.quant(random.normal(size=(4, 3, 3, 3)), np.full((4, 1, 1, 1), 2**-2, np.float32), 4)
    x = m.add("Conv", x, w, np.full(4, OFF_TIES, np.float32))
    qonnx_exact(m, m.quant(x, 2**-1, **options), form)


@pytest.mark.parametrize("signed", [True, False])
def test_float_quant(signed):
    """e2m1 with a bias of 2 and e3m0, weights and activations."""
    random, m = np.random.default_rng(14), Model((1, 3, 6, 6))

    def float_quant(x, scale, e, k, bias, largest):
        return m.add("FloatQuant", x, *np.float32([scale, e, k, bias, largest]), domain=QONNX, has_inf=0, has_nan=0,
                     has_subnormal=1, saturation=1, rounding_mode="ROUND")

    w = float_quant(random.normal(size=(4, 3, 3, 3)), 2**-2, 3, 0, 1, 2**6)
    x = m.add("Conv", m.quant("image", 2**-5, 8), w, np.full(4, OFF_TIES, np.float32))
    x = x if signed else m.add("Relu", x)
    qonnx_exact(m, float_quant(x, 1.0, 2, 1, 2, 3.0), "esb4.1" if signed else "uesb3.1")


def test_bipolar_quant():
    random, m = np.random.default_rng(15), Model((1, 3, 6, 6))
    w = m.add("BipolarQuant", random.normal(size=(4, 3, 3, 3)), np.float32(0.25), domain=QONNX)
    x = m.add("Conv", m.quant("image", 2**-5, 8), w)
    qonnx_exact(m, m.add("BipolarQuant", x, np.float32(1), domain=QONNX), "bin")


@pytest.mark.parametrize("taken, form", [(None, "bin"), ([5, 40, 191, 0], "s2")])
def test_signs_that_read_a_padded_map(taken, form):
    """A sign is no zero: where rows leave out values of the map, weights of -1 and +1 are three levels."""
    random, m = np.random.default_rng(16), Model((1, 3, 6, 6))
    x = m.add("Pad", m.quant("image", 2**-5, 8), np.int64([0, 0, 1, 1, 0, 0, 1, 1]))
    x = m.add("Flatten", m.add("Trunc", x, *np.float32([2**-5, 0, 8, 2**-4, 7]), signed=1, narrow=0, **TRUNC))
    x = x if taken is None else m.add("Gather", x, np.int64(taken), axis=1)
    w = m.add("BipolarQuant", random.normal(size=(len(taken or range(192)), 4)), np.float32(0.25), domain=QONNX)
    graph = qonnx_exact(m, m.quant(m.add("Add", m.add("MatMul", x, w), np.float32(OFF_TIES)), 2**-2, 8), "s8")
    assert str(graph.output.weight_format) == form


@pytest.mark.parametrize("scale, power, nodes", [
    (2**-6, 2, ["AvgPool2d"]), (2**-6, 3, ["AvgPool2d"]), (2**-5, 1, ["AvgPool2d", "Requantize"]), (2**-4, 0, ["AvgPool2d"])])
def test_trunc(scale, power, nodes):
    """Averages of four, in steps of 2**-6, floored to coarser ones: at once where they are whole numbers of Trunc's scale, else
    after a layer that rounds to those. By no bits it is a rounding to the nearest."""
    m = Model((1, 3, 6, 6))
    x = m.add("AveragePool", m.quant("image", 2**-4, 4, signed=0), kernel_shape=[2, 2], strides=[2, 2])
    x = x if scale == 2**-6 else m.add("Sub", x, np.float32(OFF_TIES))
    x = m.add("Trunc", x, *np.float32([scale, 0, 6, scale * 2**power, 4]), signed=0, narrow=0, **TRUNC)
    graph = qonnx_exact(m, x, "u4")
    assert [type(node).__name__ for node in graph.nodes] == ["Input", *nodes]


@pytest.mark.parametrize("inputs, message", [
    ((1, 0, 4, 2), "is of QONNX's first version"), ((1, 1, 4, 2, 3), "use zero point 0"),
    ((1, 0, 4, 3, 3), "its output scale must be its scale times a power of two"),
    ((2, 0, 4, 1, 3), "its output scale must be its scale times a power of two")])
def test_truncs_that_are_refused(inputs, message):
    m = Model((1, 3, 6, 6))
    x = m.add("Trunc", m.quant("image", 1.0, 4, signed=0), *map(np.float32, inputs), signed=0, narrow=0, **TRUNC)
    with pytest.raises(GraphError, match=message):
        imported(m.proto(x))


def test_ties_go_up_and_not_to_even():
    m = Model((1, 1, 1, 4))
    x = m.quant("image", 1.0, 8, signed=0)
    proto = m.proto(m.quant(m.add("Sub", x, np.float32(2)), 2.0, 4))
    graph = imported(proto, pixel_max=255)
    pixels = np.uint8([[[[1, 3, 5, 7]]]])  # -1/2, 1/2, 3/2, 5/2 steps
    assert execute(graph, pixels).ravel().tolist() == [0, 1, 2, 3]
    assert run_qonnx(proto, pixels.astype(np.float32))[proto.graph.output[0].name].ravel().tolist() == [0, 0, 4, 4]


@pytest.mark.parametrize("parts, form", [
    ([(4, 2**-2, 0), (4, 2**-1, 0)], "u5"), ([(4, 2**-2, 0), (4, 2**-2, 1)], "s5"), ([(1, 1.0, 1), (1, 2.0, 1)], "s3"),
    ([(3, 2**-2, 0), (8, 2**-2, 1)], "s8"), ([(2, 1.0, 0), (2, 1.0, 0)], "u2")])
def test_concat_of_few_bits_is_exact(parts, form):
    """Formats and scales whose values one format of eight bits holds: none may lose its sign or its finest bits."""
    random, m = np.random.default_rng(19), Model((1, 3, 6, 6))
    image, tensors = m.quant("image", 2**-5, 8), []
    for bits, scale, signed in parts:
        w = m.quant(random.normal(size=(4, 3, 3, 3)), 2**-2, 4)
        x = m.add("Conv", image, w, np.full(4, OFF_TIES, np.float32))
        tensors.append(m.quant(x if signed else m.add("Relu", x), scale, bits, signed=signed))
    graph = qonnx_exact(m, m.add("Concat", *tensors, axis=1), form)
    assert type(graph.output) is ir.Concat and len(np.unique(execute(graph, random_pixels(random, 4, 3, 6, 6)))) > 2


def test_concat_of_other_scales_takes_eight_bits():
    """Steps of 0.31 and 1 have no common one: 8 bits, a sign if any has one, up to the largest magnitude."""
    random, m = np.random.default_rng(20), Model((1, 3, 6, 6))
    image = m.quant("image", 2**-5, 8)
    x = m.add("Conv", image, m.quant(random.normal(size=(4, 3, 3, 3)), 2**-2, 4))
    proto = m.proto(m.add("Concat", m.quant(x, 1.0, 4), m.quant(m.add("Relu", x), 0.31, 4, signed=0), axis=1))
    graph, pixels = imported(proto), random_pixels(random, 4, 3, 6, 6)
    assert str(graph.output.format) == "s8" and graph.output.scale == pytest.approx(1 / 15), "or 0.31 / 4: fewer levels are lost"
    expected = run_qonnx(proto, real(pixels))[proto.graph.output[0].name]
    difference = np.abs(execute(graph, pixels) * graph.output.scale - expected)
    assert difference[:, 4:].max() < 0.6 * graph.output.scale and (difference > 0.6 * graph.output.scale).mean() < 0.01


def sums(m, random, channels: int = 8):
    """A convolution whose sums lie beside all ties."""
    w = m.quant(random.normal(size=(channels, 3, 3, 3)), np.full((channels, 1, 1, 1), 2**-2, np.float32), 4)
    return m.add("Conv", m.quant("image", 2**-5, 8), w, np.full(channels, OFF_TIES, np.float32))


@pytest.mark.parametrize("high", [6.0, 2.5])
@pytest.mark.parametrize("signed, form", [(0, "u8"), (1, "u7")])
def test_a_clip_within_the_quantizers_range(high, signed, form):
    """ReLU6 in steps of a power of two, as Brevitas trains it: 0..192 and 0..80 are no formats."""
    m = Model((1, 3, 6, 6))
    x = m.add("Clip", sums(m, np.random.default_rng(21)), np.float32(0), np.float32(high))
    graph = qonnx_exact(m, m.quant(x, 2**-5 if not signed else 2**-4, 8, signed=signed), form)
    assert [type(node).__name__ for node in graph.nodes] == ["Input", "Conv2d", "Requantize", "Requantize"]


@pytest.mark.parametrize("bits, narrow, form", [(4, 0, "s4"), (4, 1, "esb4.2"), (8, 0, "s8")])
@pytest.mark.parametrize("operator, slope", [("LeakyRelu", 0.25), ("PRelu", np.float32([0.5, -0.25] * 4).reshape(8, 1, 1))])
def test_a_leaky_relu_of_sums(operator, slope, bits, narrow, form):
    m = Model((1, 3, 6, 6))
    x = sums(m, np.random.default_rng(22))
    x = m.add(operator, x, alpha=slope) if operator == "LeakyRelu" else m.add(operator, x, slope)
    x = m.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    graph = qonnx_exact(m, m.quant(x, 2**-2, bits, narrow=narrow), form)
    assert [type(node).__name__ for node in graph.nodes] == ["Input", "Conv2d", "Conv2d", "Add", "MaxPool2d"]
    assert "so the layer before it is computed twice" in graph.info["notes"][-1]


@pytest.mark.parametrize("operator, options", [("DepthToSpace", {}), ("DepthToSpace", {"mode": "CRD"}), ("SpaceToDepth", {})])
def test_channels_to_pixels_and_back(operator, options):
    """Before the ReLU and the quantizer of the layer, as the qonnx zoo's ESPCN has it, and a layer that reads it."""
    random, m = np.random.default_rng(23), Model((1, 3, 6, 6))
    x = m.add(operator, sums(m, random), blocksize=2, **options)
    x = m.quant(m.add("Relu", x), 2**-2, 4, signed=0)
    w = m.quant(random.normal(size=(3, 2 if operator == "DepthToSpace" else 32, 1, 1)), 2**-2, 4)
    graph = qonnx_exact(m, m.quant(m.add("Conv", x, w, np.full(3, OFF_TIES, np.float32)), 2**-1, 4), "s4")
    assert [type(node).__name__ for node in graph.nodes] == ["Input", "Conv2d", operator, "Conv2d"]
    program = compile_split(graph, ENGINES["tiny4x4"], 2)
    assert [part.node and type(part.node).__name__ for part in program.parts] == [None, operator, None]


def thresholds(m, x, rows, domain=QONNX, **options):
    return m.add("MultiThreshold", x, np.float32(rows), domain=domain, **options)


def test_the_domain_of_old_finn_files_is_qonnx():
    graphs = []
    for domain in (QONNX, "finn.custom_op.general"):
        random, m = np.random.default_rng(24), Model((1, 3, 6, 6))
        x = thresholds(m, sums(m, random), (np.arange(15)[None] + 0.5) / 4, domain, out_dtype="UINT4")
        graphs.append(imported(m.proto(m.add("Mul", x, np.float32(0.25)))))
    pixels = np.random.default_rng(1).integers(0, 256, (4, 3, 6, 6), dtype=np.uint8)
    assert np.array_equal(*(execute(graph, pixels) for graph in graphs)) and len(np.unique(execute(graphs[0], pixels))) > 3


@pytest.mark.parametrize("options, form", [
    (dict(out_dtype="UINT4"), "u4"), (dict(out_dtype="INT4", out_bias=-8.0), "s4"),
    (dict(out_dtype="UINT4", out_scale=0.5, out_bias=0.0, data_layout="NCHW"), "u4")])
@pytest.mark.parametrize("channels", [1, 8])
def test_thresholds_that_step_evenly(channels, options, form):
    """FINN's form of a quantizer, each channel with steps of its own; then its scale, and a layer of whole weights."""
    random, m = np.random.default_rng(24), Model((1, 3, 6, 6))
    steps = 2.0 ** random.integers(-3, 1, (channels, 1))
    x = thresholds(m, sums(m, random), steps * (np.arange(15) - random.integers(0, 8, (channels, 1)) + 0.5), **options)
    qonnx_exact(m, x, form)
    x = m.add("Mul", x, np.float32(0.25))
    x = m.add("Conv", x, random.integers(-3, 4, (4, 8, 1, 1)).astype(np.float32), np.full(4, OFF_TIES, np.float32))
    graph = qonnx_exact(m, m.quant(x, 2.0, 4), "s4")
    assert [type(node).__name__ for node in graph.nodes] == ["Input", "Conv2d", "Conv2d"]


def test_whole_weights_are_reordered_behind_a_flatten_of_channels_that_are_last():
    """FINN writes them as plain numbers."""
    random, m = np.random.default_rng(26), Model((1, 3, 6, 6))
    x = thresholds(m, "image", np.linspace(0.01, 0.9, 15)[None])
    x = m.add("Reshape", m.add("Transpose", x, perm=[0, 2, 3, 1]), np.int64([0, -1]))
    x = m.add("MatMul", x, random.integers(-4, 5, (108, 4)).astype(np.float32))
    qonnx_exact(m, thresholds(m, x, np.linspace(-200.5, 219.5, 15)[None]), "u4")


def test_one_threshold_is_a_sign():
    m = Model((1, 3, 6, 6))
    qonnx_exact(m, thresholds(m, sums(m, np.random.default_rng(25)), np.arange(8)[:, None], out_dtype="BIPOLAR", out_scale=2.0,
                              out_bias=-1.0), "bin")


@pytest.mark.parametrize("rows, options, message", [
    ([[0, 1, 3]], {}, "do not step evenly, which no requantizer does; import the QONNX model as it was before FINN's"),
    ([[3, 2, 1]], {}, "do not rise"), ([[0, 1, 2, 3]], {}, r"its levels 0\.\.4 are no number format"),
    ([[0, 1, 2]], dict(out_bias=-1.5), "no level at zero"), ([[0, 1, 2]], dict(data_layout="NHWC"), "its channels are last"),
    (np.tile(np.arange(3), (3, 1)), {}, "thresholds for 3 channels and its input has 8")])
def test_thresholds_that_are_refused(rows, options, message):
    m = Model((1, 3, 6, 6))
    with pytest.raises(GraphError, match=message):
        imported(m.proto(thresholds(m, sums(m, np.random.default_rng(26)), rows, **options)))
