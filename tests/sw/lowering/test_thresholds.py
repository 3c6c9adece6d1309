"""Thresholds of low-bit outputs: every sum gets the level of the real line wherever one b does that for all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.lowering.engine_layer import OpenLayer, requantizer
from esbflow.lowering.nodes import Stored
from esbflow.lowering.thresholds import MOST_LEVELS, exact_thresholds
from esbflow.numbers import ESB, Binary, Codebook, Format, Signed, Unsigned
from tests.sw.graph_nodes import seeds
from tests.sw.interchange.models import Model, imported, random_pixels, real, run_qonnx

FORMATS = [Unsigned(1), Unsigned(2), Unsigned(4), Unsigned(8), Signed(2), Signed(4), ESB(2, 0), ESB(4, 1),
           ESB(3, 0, signed=False), Binary(), Codebook((-3, -1, 0, 2))]


def allowed(form, q, wanted, sums) -> tuple:
    """(smallest, largest) b with which every one of the sums is rounded to its wanted level, by its definition."""
    levels, s = form.levels, int(q.s[0])
    places = np.searchsorted(levels, wanted)
    ends = [-(1 << 60), *(int(np.ceil(border * 2.0**s)) for border in (levels[1:] + levels[:-1]) / 2), 1 << 60]
    products = [int(acc) * int(q.m[0]) for acc in sums]
    return (max(ends[place] - product for place, product in zip(places, products, strict=True)),
            min(ends[place + 1] - 1 - product for place, product in zip(places, products, strict=True)))


@settings(max_examples=300, deadline=None)
@given(seeds, st.sampled_from(FORMATS))
def test_b_is_the_nearest_that_rounds_every_sum_right(seed, form):
    random = np.random.default_rng(seed)
    low = int(random.integers(-3000, 1))
    sums = np.arange(low, low + int(random.integers(1, 3000)))
    gain = np.array([random.choice((-1, 1)) * 2.0 ** random.uniform(-12, 3)])
    offset = np.array([random.normal() * 4])
    q = requantizer(gain, offset)
    moved = exact_thresholds(q, gain, offset, form, sums[:1], sums[-1:])
    borders, values = (form.levels[1:] + form.levels[:-1]) / 2, sums * gain[0] + offset[0]
    noise = 2**-22 * (np.abs(borders) + np.abs(offset[0]))
    sums = sums[(np.abs(values[:, None] - borders) > noise).all(axis=1)]  # float32 would not tell the others' levels
    if not len(sums):
        return
    wanted = form.nearest(sums * gain[0] + offset[0])
    found = form.round_shift(sums * moved.m[0] + moved.b[0], np.full(len(sums), moved.s[0]))
    least, most = allowed(form, q, wanted, sums)
    if least <= most:
        assert np.array_equal(found, wanted)
        assert moved.b[0] == np.clip(q.b[0], least, most)
    else:  # too narrow for m: a neighbouring level, or there are sums that far apart in level already
        places, others = (np.searchsorted(form.levels, values) for values in (found, wanted))
        assert np.abs(places - others).max() <= 1 + abs(gain[0]) * 2**-9 * np.abs(sums).max()
    assert np.array_equal(moved.m, q.m) and np.array_equal(moved.s, q.s)


@pytest.mark.parametrize("form", [Unsigned(1), Unsigned(2), ESB(2, 0), Binary()])
def test_few_levels_are_nearly_always_exact(form):
    """Of 500 channels with sums to 2,000 and steps of up to 400 sums; the plain rounding of b is wrong somewhere in many."""
    random = np.random.default_rng(3)
    gain, offset = 2.0 ** random.uniform(-8.6, -3, 500), random.normal(size=500) * 2
    q, sums = requantizer(gain, offset), np.arange(-2000, 2001)
    low, high = np.full(500, -2000), np.full(500, 2000)
    wanted = form.nearest(gain[:, None] * sums + offset[:, None])

    def wrong(q):
        t = sums * q.m[:, None] + q.b[:, None]
        return int((form.round_shift(t, np.broadcast_to(q.s[:, None], t.shape)) != wanted).any(axis=1).sum())

    assert wrong(exact_thresholds(q, gain, offset, form, low, high)) <= 1 < 10 < wrong(q)


def test_what_it_leaves_alone():
    one = np.ones(1, np.int64)
    wide = requantizer(np.array([0.3]), np.array([1.0]))
    assert exact_thresholds(wide, np.array([0.3]), np.array([1.0]), Signed(16), -one, one) is wide
    assert 1 << Signed(8).bits == MOST_LEVELS
    dead = ir.Requantizer(m=0 * one, b=7 * one, s=one, n=0 * one)  # a gain too small for m
    assert exact_thresholds(dead, np.array([1e-9]), np.array([3.5]), Unsigned(2), -one, one).b.tolist() == [7]


def test_sums_of_a_layer_count_zeros_around_the_map():
    source = Stored("x", (2, 4, 4), Format.parse("bin"), 1.0)
    layer = OpenLayer(ir.Conv2d, "c", source, {"weight": np.array([[[[3, -1]], [[0, 2]]]])}, np.ones(1), np.zeros(1))
    assert [sums.tolist() for sums in layer.sums()] == [[-6], [6]]
    layer = OpenLayer(ir.Conv2d, "c", Stored("x", (2, 4, 4), Unsigned(4), 1.0), layer.fields, np.ones(1), np.zeros(1))
    assert [sums.tolist() for sums in layer.sums()] == [[-15], [75]]


@pytest.mark.parametrize("seed", range(6))
def test_two_bit_networks_of_other_tools_are_exact(seed):
    """Convolutions, norms and quantizers of two bits with any scales: before, a sum in some thousands was wrong."""
    random, m = np.random.default_rng((31, seed)), Model((1, 3, 6, 6))

    def norm(x, channels):
        gamma = random.uniform(0.5, 2, channels) * random.choice((-1, 1), channels)
        return m.add("BatchNormalization", x, *(values.astype(np.float32) for values in (
            gamma, random.normal(size=channels), random.normal(size=channels), random.uniform(0.5, 3, channels))))

    x, channels = m.quant("image", 1 / 127, 8, narrow=1), 3
    for out in (16, 16):
        w = m.quant(random.normal(size=(out, channels, 3, 3)), 0.37, 2, narrow=1)
        x, channels = norm(m.add("Conv", x, w, pads=[1, 1, 1, 1]), out), out
        x = m.quant(x, float(random.uniform(0.4, 1.5)), 2, narrow=seed % 2)
    proto = m.proto(x)
    graph, pixels = imported(proto), random_pixels(random, 6, 3, 6, 6)
    found = run_qonnx(proto, real(pixels))[x] / graph.output.scale
    assert np.array_equal(np.rint(found), execute(graph, pixels))
