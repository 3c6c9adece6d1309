"""The executor of the integer graph against torch, and its requantizer by hand and in exact fractions."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import convolve, exact_type, execute, requantize
from esbflow.graph.random import random_graph, random_images
from esbflow.graph.validate import validate
from esbflow.numbers import ESB, Format, Signed, Unsigned
from tests.sw.graph_nodes import constants, conv_node, input_node, output_of, seeds


@pytest.mark.parametrize("largest, kind", [(2 ** 24 - 1, np.float32), (2 ** 24, np.float64), (2 ** 53 - 1, np.float64),
                                           (2 ** 53, np.int64)])
def test_sums_are_exact_in_the_type_they_are_computed_in(largest, kind):
    assert exact_type(np.array([[3, -1], [0, largest]]), np.array([0, -1])) is kind
    random, x = np.random.default_rng(0), np.array([-255, 254, 255, 1, -1, 253]).reshape(1, 6, 1, 1)
    shares = random.dirichlet(np.ones(6), 40)
    weight = (shares * (largest // 255)).astype(np.int64) * random.choice([-1, 1], (40, 6))
    exact = [sum(int(w) * int(v) for w, v in zip(row, x.reshape(-1))) for row in weight]
    assert convolve(x, weight[:, :, None, None], (1, 1), (0, 0), (1, 1), 1).reshape(-1).tolist() == exact


# -- the executor against torch -----------------------------------------------------------------------------------
@st.composite
def axes(draw):
    """(size, kernel, stride, padding, dilation) of one axis, with at least one output."""
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    padding, stride = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    reach = (kernel - 1) * dilation + 1
    return draw(st.integers(max(1, reach - 2 * padding), 12)) if reach - 2 * padding <= 12 else reach, kernel, stride, \
        padding, dilation


@settings(max_examples=60, deadline=None)
@given(axes(), axes(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), seeds)
def test_convolution_equals_torch_with_any_stride_padding_dilation_and_groups(y, x, groups, per_group, out_per_group,
                                                                              seed):
    random = np.random.default_rng(seed)
    (size, kernel, stride, padding, dilation) = zip(y, x)
    images = random.integers(0, 256, (2, groups * per_group, *size), dtype=np.uint8)
    weight = random.integers(-128, 128, (groups * out_per_group, per_group, *kernel))
    options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    expected = F.conv2d(torch.from_numpy(images - 128.0), torch.from_numpy(weight.astype(np.float64)), **options)
    _, result = output_of(conv_node(weight, tuple(expected.shape[1:]), **options), images)
    assert torch.equal(result, expected)


@settings(max_examples=60, deadline=None)
@given(axes(), axes(), st.data(), seeds)
def test_the_shape_of_a_convolution_says_how_many_zeros_follow_the_map(y, x, data, seed):
    random = np.random.default_rng(seed)
    (size, kernel, stride, padding, dilation) = zip(y, x)
    after = [data.draw(st.integers(0, (k - 1) * d)) for k, d in zip(kernel, dilation)]
    images = random.integers(0, 256, (2, 2, *size), dtype=np.uint8)
    weight = random.integers(-128, 128, (3, 2, *kernel))
    padded = F.pad(torch.from_numpy(images - 128.0), (padding[1], after[1], padding[0], after[0]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    assume(all(have >= need for have, need in zip(padded.shape[2:], reach)))
    assume(all((have - need) // s * s - p < n for have, need, s, p, n in zip(padded.shape[2:], reach, stride, padding, size)))
    expected = F.conv2d(padded, torch.from_numpy(weight.astype(np.float64)), stride=stride, dilation=dilation)
    node = conv_node(weight, tuple(expected.shape[1:]), stride=stride, padding=padding, dilation=dilation)
    _, result = output_of(node, images)
    assert torch.equal(result, expected)
    assert all(0 <= behind <= most for behind, most in zip(node.behind(images.shape[1:]), after))


@pytest.mark.parametrize("rows, good", [(1, False), (2, True), (3, True), (4, False)])
def test_a_convolution_has_no_window_behind_its_map(rows, good):
    """Six rows, windows of three, stride two: two fit, a third begins in the map, a fourth would read zeros alone."""
    graph = ir.Graph("one", [input_node((1, 6, 6)), conv_node(np.ones((1, 1, 3, 3)), (1, rows, 2), stride=(2, 2))])
    if good:
        assert execute(validate(graph), np.zeros((1, 1, 6, 6), dtype=np.uint8)).shape == (1, 1, rows, 2)
        return
    with pytest.raises(GraphError, match=r"^layer conv: its shape is .*, its inputs give \(1, 2, 2\)$"):
        validate(graph)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), seeds)
def test_linear_layer_equals_torch_on_the_flattened_map(channels, height, width, out, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (3, channels, height, width), dtype=np.uint8)
    weight = random.integers(-128, 128, (out, channels * height * width))
    node = ir.Linear("fc", ("input",), (out, 1, 1), Signed(32), 1.0, weight=weight, weight_format=Signed(8),
                     weight_scale=np.ones(out), requantizer=constants(out))
    codes, result = output_of(node, images)
    assert torch.equal(result[:, :, 0, 0], F.linear(codes.flatten(1), torch.from_numpy(weight.astype(np.float64))))


@st.composite
def windows(draw):
    """(size, kernel, stride, padding) of one axis, as torch allows them."""
    kernel = draw(st.integers(1, 5))
    padding = draw(st.integers(0, kernel // 2))
    return draw(st.integers(max(1, kernel - 2 * padding), 13)), kernel, draw(st.integers(1, 5)), padding


@settings(max_examples=60, deadline=None)
@given(windows(), windows(), st.booleans(), seeds)
def test_max_pool_equals_torch_and_padding_never_wins(y, x, ceil_mode, seed):
    size, kernel, stride, padding = zip(y, x)
    # All codes below zero: a padding of zeros would win.
    images = np.random.default_rng(seed).integers(0, 100, (2, 3, *size), dtype=np.uint8)
    expected = F.max_pool2d(torch.from_numpy(images - 128.0), kernel, stride, padding, ceil_mode=ceil_mode)
    node = ir.MaxPool2d("pool", ("input",), tuple(expected.shape[1:]), Signed(8), 1.0, kernel=kernel, stride=stride,
                        padding=padding)
    _, result = output_of(node, images)
    assert torch.equal(result, expected)


@settings(max_examples=40, deadline=None)
@given(windows(), windows(), seeds)
def test_average_pool_sums_its_window_and_counts_padding_as_zero(y, x, seed):
    size, kernel, stride, padding = zip(y, x)
    images = np.random.default_rng(seed).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    means = F.avg_pool2d(torch.from_numpy(images - 128.0), kernel, stride, padding)
    node = ir.AvgPool2d("pool", ("input",), tuple(means.shape[1:]), Signed(32), 1.0, kernel=kernel, stride=stride,
                        padding=padding, requantizer=constants(3))
    _, result = output_of(node, images)
    assert torch.equal(result, (means * kernel[0] * kernel[1]).round())


def test_upsample_and_concat_equal_torch():
    images = np.random.default_rng(3).integers(0, 256, (2, 2, 3, 4), dtype=np.uint8)
    node = ir.Upsample("up", ("input",), (2, 6, 12), Signed(8), 1.0, factor=(2, 3))
    codes, result = output_of(node, images)
    assert torch.equal(result, F.interpolate(codes, scale_factor=(2, 3), mode="nearest"))
    node = ir.Concat("both", ("input", "input"), (4, 3, 4), Signed(8), 1.0)
    codes, result = output_of(node, images)
    assert torch.equal(result, torch.cat([codes, codes], dim=1))


def test_a_lookup_finds_negative_levels_in_the_upper_half_of_its_table():
    images = np.random.default_rng(4).integers(0, 256, (2, 2, 5, 5), dtype=np.uint8)
    table = np.round(40 * np.tanh(np.arange(256).astype(np.int8) / 50)).astype(np.int64)
    codes, result = output_of(ir.Lookup("act", ("input",), (2, 5, 5), Signed(8), 1.0, table=table), images)
    assert torch.equal(result, torch.round(40 * torch.tanh(codes / 50)))
    assert ir.Lookup("act", ("input",), (2, 5, 5), Signed(8), 1.0, table=table).rises(Signed(8))
    assert not ir.Lookup("act", ("input",), (2, 5, 5), Signed(8), 1.0, table=table).rises(Unsigned(8))


def test_convolution_beyond_53_bits_stays_exact():
    x = np.full((1, 2, 1, 1), 2**31 - 1)
    weight = np.array([2**30, 2**30 - 1]).reshape(1, 2, 1, 1)
    assert convolve(x, weight, (1, 1), (0, 0), (1, 1), 1).item() == (2**31 - 1) * (2**31 - 1)


def test_images_in_chunks_give_what_they_give_at_once(monkeypatch):
    random = np.random.default_rng(5)
    graph = random_graph(random, layers=3, channels=8, size=8)
    images = random_images(random, graph, 7)
    whole = execute(graph, images, keep=True)[graph.output.name]
    monkeypatch.setattr("esbflow.graph.execute.CHUNK_BYTES", 1)
    assert np.array_equal(execute(graph, images), whole)
    assert execute(graph, images[:0]).shape == (0, *graph.output.shape)


@pytest.mark.parametrize("images, message", [
    (np.zeros((1, 2, 3, 4)), r"^images must be uint8, not float64; the graph's input table does the normalisation$"),
    (np.zeros((1, 1, 3, 4), np.uint8), r"^images must have shape \(n, 2, 3, 4\), not \(1, 1, 3, 4\)$"),
    (np.zeros((2, 3, 4), np.uint8), r"^images must have shape \(n, 2, 3, 4\), not \(2, 3, 4\)$"),
])
def test_images_of_the_wrong_kind_are_refused(images, message):
    with pytest.raises(GraphError, match=message):
        execute(ir.Graph("g", [input_node((2, 3, 4))]), images)


# -- requantize ---------------------------------------------------------------------------------------------------
ROUNDING = [
    # acc, m, b, s, r, n, format, output: the table of docs/integer_graph.md
    (5, 1, 0, 1, 0, 0, Signed(8), 3),
    (-5, 1, 0, 1, 0, 0, Signed(8), -2),
    (4, 1, 0, 3, 0, 0, Signed(8), 1),
    (-4, 1, 0, 3, 0, 0, Signed(8), 0),
    (-5, 1, 0, 3, 0, 0, Signed(8), -1),
    (7, 3, -1, 2, 0, 0, Signed(8), 5),
    (7, 3, 1, 2, -2, 4, Signed(8), 4),
    (-3, 1, 0, 0, 0, 0, Unsigned(4), 0),
    (31, 1, 0, 1, 0, 0, Unsigned(4), 15),
    (900, 1, 0, 0, 0, 0, Signed(8), 127),
    (-900, 1, 0, 0, 0, 0, Signed(8), -128),
    (5, 1, 0, 0, 0, 0, ESB(4, 1), 6),
    (-5, 1, 0, 0, 0, 0, ESB(4, 1), -4),
    (39, 1, 0, 3, 0, 0, ESB(4, 1), 4),
    (40, 1, 0, 3, 0, 0, ESB(4, 1), 6),
    (14, 1, 0, 1, 0, 0, ESB(4, 1), 8),
    (90, 1, 0, 0, 0, 0, ESB(4, 1), 12),
    (9, 1, 0, 0, 0, 0, ESB(4, 2, signed=False), 10),
]


@pytest.mark.parametrize("acc, m, b, s, r, n, form, output", ROUNDING)
def test_requantize_follows_the_table_of_the_documentation(acc, m, b, s, r, n, form, output):
    node = ir.Add("sum", ("input", "input"), (1, 1, 1), form, 1.0, requantizer=constants(1, m, b, s, n))
    values = requantize(node, *(np.full((1, 1, 1, 1), v, dtype=np.int64) for v in (acc, r)))
    assert values.item() == output


def test_the_documentation_prints_the_table_that_is_tested():
    text = (Path(__file__).parents[3] / "docs" / "integer_graph.md").read_text()
    rows = re.findall(r"^\| (-?\d+) \| (-?\d+) \| (-?\d+) \| (\d+) \| (-?\d+) \| (-?\d+) \| (\w+(?:\.\d)?) \| (-?\d+) \|$", text,
                      re.MULTILINE)
    assert [(*map(int, row[:6]), Format.parse(row[6]), int(row[7])) for row in rows] == ROUNDING


@given(st.integers(-(2**27), 2**27 - 1), st.integers(-2048, 2047), st.integers(-(2**39), 2**39 - 1), st.integers(0, 40),
       st.integers(-128, 255), st.integers(-2048, 2047),
       st.sampled_from([Signed(8), Unsigned(4), Signed(16), ESB(4, 1), ESB(4, 2, signed=False), ESB(6, 3)]))
def test_requantize_rounds_the_exact_sum_once(acc, m, b, s, r, n, form):
    node = ir.Add("sum", ("input", "input"), (1, 1, 1), form, 1.0, requantizer=constants(1, m, b, s, n))
    value = requantize(node, *(np.full((1, 1, 1, 1), v, dtype=np.int64) for v in (acc, r))).item()
    exact = Fraction(acc * m + r * n + b, 2**s)
    assert value == max((-abs(exact - int(level)), int(level)) for level in form.levels)[1] if form.bits <= 8 else \
        value == min(max((exact + Fraction(1, 2)).__floor__(), form.min), form.max)


def test_each_channel_has_its_own_constants():
    form = Signed(16)
    q = ir.Requantizer(*(np.array(v) for v in ((1, 2, -1), (0, 1, 0), (0, 0, 1), (0, 0, 5))))  # m, b, s, n
    node = ir.Add("sum", ("input", "input"), (3, 1, 1), form, 1.0, requantizer=q)
    values = requantize(node, np.full((1, 3, 1, 1), 10), np.full((1, 3, 1, 1), 1))
    assert values.ravel().tolist() == [10, 21, -2]  # (-10 + 5) / 2 = -2.5, a tie, goes up


def test_a_residual_enters_before_the_only_rounding():
    # 1/4 + 1/4 = 1/2 rounds to 1; rounded one by one it would be 0.
    node = conv_node([[[[1]]]], (1, 1, 1), ("input", "input"), Signed(8), requantizer=constants(1, m=1, n=1, s=2))
    _, result = output_of(node, np.full((1, 1, 1, 1), 129, np.uint8))
    assert result.item() == 1
