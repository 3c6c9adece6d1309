"""The integer graph: executor against torch and by hand, exact bounds, checks, and its file."""

import itertools
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from esbflow.graph import ir
from esbflow.graph.bounds import Bound, bounds, check
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import convolve, execute, requantize
from esbflow.graph.file import VERSION, load, save
from esbflow.graph.macs import macs, macs_per_image
from esbflow.graph.random import random_graph, random_images
from esbflow.graph.validate import validate
from esbflow.numbers import ESB, Codebook, Format, Signed, Unsigned

seeds = st.integers(0, 2**32 - 1)


def constants(channels, m=1, b=0, s=0, n=0):
    return ir.Requantizer(**{name: np.full(channels, value, dtype=np.int64)
                             for name, value in dict(m=m, n=n, b=b, s=s).items()})


def input_node(shape, form=Signed(8)):
    """A table that gives pixel - 128, so that every 8-bit code occurs."""
    return ir.Input("input", (), shape, form, 1.0, table=np.tile(np.arange(256) - 128, (shape[0], 1)))


def conv_node(weight, shape, inputs=("input",), form=Signed(32), **fields):
    out = len(weight)
    fields.setdefault("requantizer", constants(out))
    return ir.Conv2d("conv", inputs, shape, form, 1.0, weight=np.asarray(weight, dtype=np.int64),
                     weight_format=Signed(8), weight_scale=np.ones(out), **fields)


def output_of(node, images):
    """What a node makes of images, as float64 torch tensors (codes, result)."""
    graph = validate(ir.Graph("one", [input_node(images.shape[1:]), node]))
    codes = torch.from_numpy(images.astype(np.float64) - 128)
    return codes, torch.from_numpy(execute(graph, images).astype(np.float64))


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


# -- bounds -------------------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([Signed(4), Unsigned(3), ESB(4, 1), Signed(8)]), st.booleans())
def test_bounds_are_reached_by_some_input_and_never_passed(seed, form, with_residual):
    random = np.random.default_rng(seed)
    weight = random.integers(-9, 10, (2, 3, 1, 2))
    q = ir.Requantizer(m=random.integers(-50, 51, 2), b=random.integers(-99, 100, 2), s=np.zeros(2, np.int64),
                       n=random.integers(-50, 51, 2) * with_residual)
    stem = ir.Requantize("stem", ("input",), (3, 1, 2), form, 1.0, requantizer=constants(3))
    other = ir.Requantize("other", ("input",), (3, 1, 2), form, 1.0, requantizer=constants(3))
    side = conv_node(np.ones((2, 3, 1, 2)), (2, 1, 1), ("other",), form)
    side = replace(side, name="side")
    node = conv_node(weight, (2, 1, 1), ("stem", "side") if with_residual else ("stem",), Signed(32), requantizer=q)
    found = bounds(validate(ir.Graph("g", [input_node((3, 1, 2)), stem, other, side, node])))["conv"]
    # A linear function is extreme at corners: all 64 of them, with both ends of the residual.
    corners = np.array(list(itertools.product((form.min, form.max), repeat=6))).reshape(-1, 3, 1, 2)
    acc = convolve(corners, weight, (1, 1), (0, 0), (1, 1), 1)[:, :, 0, 0]
    ends = np.array([form.min, form.max])
    sums = acc[None] * q.m + q.b + ends[:, None, None] * q.n
    # A zero of the padding counts as an input value, which only matters where zero is no level's end.
    assert (found.low, found.high) == (acc.min(), acc.max())
    assert (found.sum_low, found.sum_high) == (sums.min(), sums.max())


@pytest.mark.parametrize("low, high, bits", [(0, 0, 1), (-1, 0, 1), (0, 1, 2), (-8, 7, 4), (-9, 7, 5), (-8, 8, 5)])
def test_bits_of_a_bound_are_those_of_twos_complement(low, high, bits):
    assert Bound(low, high, low, high).bits == bits and Bound(low, high, low, high).sum_bits == bits


def test_an_average_pool_is_bounded_by_its_count():
    node = ir.AvgPool2d("pool", ("input",), (1, 1, 1), Signed(8), 1.0, kernel=(2, 3), stride=(1, 1),
                        requantizer=constants(1))
    found = bounds(validate(ir.Graph("g", [input_node((1, 2, 3)), node])))["pool"]
    assert (found.low, found.high) == (-128 * 6, 127 * 6)


def test_overflow_of_the_accumulator_is_refused_and_names_the_bits():
    graph = validate(ir.Graph("g", [input_node((4, 1, 1)), conv_node(np.full((1, 4, 1, 1), 127), (1, 1, 1))]))
    # 4 * 127 * 128 = 65024 below zero: 17 bits.
    assert check(graph, 17)["conv"].bits == 17
    with pytest.raises(GraphError, match=r"^layer conv: its accumulator needs 17 bits and the engine has 16; "
                                         r"use fewer weight or activation bits, or a wider engine$"):
        check(graph, 16)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_random_graphs_stay_within_their_bounds_and_formats(seed):
    random = np.random.default_rng(seed)
    graph = random_graph(random, channels=8, size=8)
    values = execute(graph, random_images(random, graph, 2), keep=True)
    for node in graph.nodes:
        assert node.format.contains(values[node.name]).all()
        assert values[node.name].shape[1:] == tuple(node.shape)


def test_macs_count_products_and_the_additions_of_average_pools():
    conv = conv_node(np.zeros((6, 2, 3, 3)), (6, 5, 4), padding=(1, 1), groups=2)
    pool = ir.AvgPool2d("pool", ("conv",), (6, 1, 1), Signed(8), 1.0, kernel=(5, 4), stride=(1, 1),
                        requantizer=constants(6))
    graph = validate(ir.Graph("g", [input_node((4, 5, 4)), conv, pool]))
    assert macs(conv) == 6 * 2 * 9 * 20 and macs(pool) == 6 * 20 and macs_per_image(graph) == 2160 + 120


# -- validate -----------------------------------------------------------------------------------------------------
def small_graph():
    conv = conv_node(np.ones((4, 3, 3, 3)), (4, 6, 6), form=Signed(8), padding=(1, 1), requantizer=constants(4, s=4))
    pool = ir.MaxPool2d("pool", ("conv",), (4, 3, 3), Signed(8), 1.0)
    fc = ir.Linear("fc", ("pool",), (5, 1, 1), Signed(16), 0.5, weight=np.ones((5, 36), np.int64), weight_format=Signed(8),
                   weight_scale=np.ones(5), requantizer=constants(5))
    return ir.Graph("small", [input_node((3, 6, 6)), conv, pool, fc], info={"recipe": "none", "top1": 12.5})


def damaged(at, **changes):
    graph = small_graph()
    graph.nodes[at] = replace(graph.nodes[at], **changes)
    return graph


DAMAGE = {
    "no nodes": (lambda: ir.Graph("g"), r"graph g: its first node must be an Input"),
    "no input": (lambda: ir.Graph("g", small_graph().nodes[1:]), r"graph g: its first node must be an Input"),
    "name twice": (lambda: damaged(2, name="conv"), r"layer conv: the name is used twice"),
    "unknown input": (lambda: damaged(3, inputs=("nothing",)),
                      r"layer fc: its input 'nothing' is not computed before it"),
    "own input": (lambda: damaged(3, inputs=("fc",)), r"layer fc: its input 'fc' is not computed before it"),
    "two axes": (lambda: damaged(3, shape=(5, 1)), r"layer fc: its shape must be three positive sizes, not \(5, 1\)"),
    "empty": (lambda: damaged(3, shape=(5, 0, 1)), r"layer fc: its shape must be three positive sizes, not \(5, 0, 1\)"),
    "zero scale": (lambda: damaged(1, scale=0.0), r"layer conv: its scale must be positive and finite, not 0.0"),
    "nan scale": (lambda: damaged(1, scale=float("nan")), r"layer conv: its scale must be positive and finite, not nan"),
    "wrong shape": (lambda: damaged(1, shape=(4, 6, 7)),
                    r"layer conv: its shape is \(4, 6, 7\), its inputs give \(4, 6, 6\)"),
    "wrong pool": (lambda: damaged(2, shape=(4, 4, 4)),
                   r"layer pool: its shape is \(4, 4, 4\), its inputs give \(4, 3, 3\)"),
    "pool padding": (lambda: damaged(2, padding=(2, 0)),
                     r"layer pool: padding must be smaller than the kernel, and kernel and stride at least 1"),
    "no requantizer": (lambda: damaged(1, requantizer=None), r"layer conv: it has no requantizer"),
    "m too wide": (lambda: damaged(1, requantizer=constants(4, m=2048)),
                   r"layer conv: requantizer m must lie in -2048..2047"),
    "n too wide": (lambda: damaged(1, requantizer=constants(4, n=-2049)),
                   r"layer conv: requantizer n must lie in -2048..2047"),
    "b too wide": (lambda: damaged(1, requantizer=constants(4, b=2**39)),
                   r"layer conv: requantizer b must lie in -549755813888..549755813887"),
    "s too wide": (lambda: damaged(1, requantizer=constants(4, s=41)), r"layer conv: requantizer s must lie in 0..40"),
    "s negative": (lambda: damaged(1, requantizer=constants(4, s=-1)), r"layer conv: requantizer s must lie in 0..40"),
    "few constants": (lambda: damaged(1, requantizer=constants(3)), r"layer conv: requantizer m must be 4 integers"),
    "real constants": (lambda: damaged(1, requantizer=replace(constants(4), b=np.full(4, 0.5))),
                       r"layer conv: requantizer b must be 4 integers"),
    "table shape": (lambda: damaged(0, table=np.zeros((3, 255), np.int64)),
                    r"layer input: its table must have shape \(3, 256\), not \(3, 255\)"),
    "table levels": (lambda: damaged(0, table=np.full((3, 256), 200)),
                     r"layer input: its table holds values that are not levels of s8"),
    "channels": (lambda: damaged(1, weight=np.ones((4, 2, 3, 3), np.int64)),
                 r"layer conv: 3 input channels do not fit weights of 2 in 1 groups"),
    "groups": (lambda: damaged(1, weight=np.ones((4, 1, 3, 3), np.int64), groups=3),
               r"layer conv: 3 input channels do not fit weights of 1 in 3 groups"),
    "stride": (lambda: damaged(1, stride=(0, 1)), r"layer conv: stride and dilation must be at least 1, padding at least 0"),
    "residual": (lambda: damaged(1, inputs=("input", "input")), r"layer conv: its residual has shape \(3, 6, 6\), not \(4, 6, 6\)"),
    "three inputs": (lambda: damaged(1, inputs=("input",) * 3), r"layer conv: it has 3 inputs"),
    "linear": (lambda: damaged(3, weight=np.ones((5, 35), np.int64)), r"layer fc: its weights take 35 values, its input has 36"),
    "concat": (lambda: ir.Graph("g", [*small_graph().nodes, ir.Concat("all", ("conv", "fc"), (9, 6, 6), Signed(8), 1.0)]),
               r"layer all: all its inputs must share format, scale, height and width"),
    "add": (lambda: ir.Graph("g", [*small_graph().nodes, ir.Add("sum", ("conv", "pool"), (4, 6, 6), Signed(8), 1.0,
                                                               requantizer=constants(4))]),
            r"layer sum: its inputs have different shapes"),
}


def test_the_graph_that_is_damaged_below_is_well_formed():
    assert validate(small_graph()).output.name == "fc"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_graph_is_refused_by_name_and_never_saved(kind, tmp_path):
    make, message = DAMAGE[kind]
    for action in (validate, lambda graph: save(graph, tmp_path / "graph.npz")):
        with pytest.raises(GraphError, match=f"^{message}$"):
            action(make())
    assert list(tmp_path.iterdir()) == []


# -- the file -----------------------------------------------------------------------------------------------------
def assert_same_graph(one, two):
    assert (one.name, one.info, len(one.nodes)) == (two.name, two.info, len(two.nodes))
    for a, b in zip(one.nodes, two.nodes):
        assert type(a) is type(b)
        for key, value in vars(a).items():
            other = getattr(b, key)
            if isinstance(value, ir.Requantizer):
                for name in "mnbs":
                    assert np.array_equal(getattr(value, name), getattr(other, name)), (a.name, name)
            elif isinstance(value, np.ndarray):
                assert np.array_equal(value, other) and value.dtype == other.dtype, (a.name, key)
            else:
                assert value == other and type(value) is type(other), (a.name, key)


@pytest.mark.parametrize("seed", range(50))
def test_a_saved_graph_reads_back_the_same(seed, tmp_path):
    random = np.random.default_rng(seed)
    graph = random_graph(random, channels=12, size=8)
    graph.info.update(recipe="{}", top1=99.25, seed=seed)
    loaded = load(save(graph, tmp_path / "a folder" / "graph.npz"))
    assert_same_graph(graph, loaded)
    images = random_images(random, graph, 2)
    assert np.array_equal(execute(loaded, images), execute(graph, images))
    assert [path.name for path in (tmp_path / "a folder").iterdir()] == ["graph.npz"]


def test_formats_of_all_kinds_survive_the_file(tmp_path):
    graph = small_graph()
    graph.nodes[1] = replace(graph.nodes[1], weight_format=Codebook((-3, -1, 1, 3)), format=ESB(6, 3),
                             scale=float(np.float32(0.1)))
    graph.nodes[2] = replace(graph.nodes[2], format=ESB(6, 3))
    assert_same_graph(graph, load(save(graph, tmp_path / "graph.npz")))


def test_a_file_cut_at_any_place_is_refused(tmp_path):
    content = save(small_graph(), tmp_path / "graph.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in [0, 1, 2, 3, 4, 30, *range(50, len(content), 97), len(content) - 23, len(content) - 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(GraphError, match=r"^.*cut\.npz is not a whole model file \(.*\); export the model again$"):
            load(path)


def test_a_file_with_a_changed_byte_is_refused_or_reads_the_same(tmp_path):
    graph = small_graph()
    content = bytearray(save(graph, tmp_path / "graph.npz").read_bytes())
    path, refused = tmp_path / "changed.npz", 0
    for place in range(0, len(content), 61):
        content[place] ^= 0x55
        path.write_bytes(content)
        content[place] ^= 0x55
        try:
            loaded = load(path)
        except GraphError:
            refused += 1
        else:
            assert_same_graph(graph, loaded)  # the byte was one that zip does not use
    assert refused > 10


def rewritten(path, change):
    """The file with its description changed by `change(meta)`."""
    with np.load(path) as archive:
        arrays = dict(archive)
    meta = json.loads(arrays["meta"].tobytes().decode())
    change(meta)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("change, message", [
    (lambda meta: meta.update(version=VERSION + 1),
     rf"has model version {VERSION + 1} and this program reads {VERSION}; export the model again$"),
    (lambda meta: meta.update(format="esbflow program"), r"is not a model file; make one with `esbflow export`$"),
    (lambda meta: meta["nodes"][2].update(operator="Sigmoid"),
     r"is not a whole model file \('Sigmoid'\); export the model again$"),
    (lambda meta: meta["nodes"][2].update(colour="red"), r"is not a whole model file \(.*colour.*\); export the model again$"),
    (lambda meta: meta["nodes"][1].update(format={"format": "fp4"}),
     r"is not a whole model file \('fp4' is not a format.*\); export the model again$"),
])
def test_a_file_with_another_content_is_refused(change, message, tmp_path):
    path = rewritten(save(small_graph(), tmp_path / "graph.npz"), change)
    with pytest.raises(GraphError, match=message):
        load(path)


def test_a_file_whose_graph_is_not_well_formed_is_refused(tmp_path):
    path = rewritten(save(small_graph(), tmp_path / "graph.npz"), lambda meta: meta["nodes"][3].update(scale=-1.0))
    with pytest.raises(GraphError, match=r"^layer fc: its scale must be positive and finite, not -1.0$"):
        load(path)


@pytest.mark.parametrize("change", [
    lambda meta: meta.pop("name"), lambda meta: meta.pop("nodes"), lambda meta: meta.update(nodes=7),
    lambda meta: meta["nodes"].append("text"), lambda meta: meta["nodes"][1].pop("shape"),
    lambda meta: meta["nodes"][1].update(shape=5), lambda meta: meta["nodes"][1].update(inputs=None),
    lambda meta: meta["nodes"][1].update(weight=None), lambda meta: meta["nodes"][2].update(kernel={"tuple": [2]}),
    lambda meta: meta["nodes"][1].update(format=None), lambda meta: meta["nodes"][1].update(scale="big")])
def test_a_file_that_lacks_something_is_refused(change, tmp_path):
    path = rewritten(save(small_graph(), tmp_path / "graph.npz"), change)
    with pytest.raises(GraphError):
        load(path)


def test_other_files_and_no_file_are_refused(tmp_path):
    with pytest.raises(GraphError, match=r"^there is no model file .*none\.npz; make one with `esbflow train` or `esbflow export`$"):
        load(tmp_path / "none.npz")
    text, array, others = tmp_path / "text.npz", tmp_path / "array.npy", tmp_path / "others.npz"
    text.write_text("hello")
    np.save(array, np.zeros(3))
    np.savez(others, x=np.zeros(3))
    for path in (text, array, others, tmp_path):
        with pytest.raises(GraphError, match=r"is not a whole model file \(.*\); export the model again$"):
            load(path)


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = save(small_graph(), tmp_path / "graph.npz")
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        save(small_graph(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_missing_node_is_named():
    with pytest.raises(KeyError, match=r"no node named 'conv9' in graph 'small'"):
        small_graph()["conv9"]


@pytest.mark.parametrize("operator", ir.OPERATORS.values(), ids=ir.OPERATORS)
def test_every_operator_has_an_executor_and_a_shape_rule(operator):
    from esbflow.graph.execute import EXECUTORS
    from esbflow.graph.validate import _SHAPES

    assert operator in EXECUTORS and operator in _SHAPES


def test_the_documentation_prints_the_table_that_is_tested():
    text = (Path(__file__).parents[2] / "docs" / "integer_graph.md").read_text()
    rows = re.findall(r"^\| (-?\d+) \| (-?\d+) \| (-?\d+) \| (\d+) \| (-?\d+) \| (-?\d+) \| (\w+(?:\.\d)?) \| (-?\d+) \|$", text,
                      re.MULTILINE)
    assert [(*map(int, row[:6]), Format.parse(row[6]), int(row[7])) for row in rows] == ROUNDING
