"""Engines whose lanes shift: layers with factors that are powers of two keep every integer; others are refused by name."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images, random_weights
from esbflow.graph.validate import validate
from esbflow.numbers import ESB, Signed, Unsigned
from tests.compiler.machine import Machine
from tests.compiler.programs import BOUNDS, one_conv
from tests.sw.graph_nodes import constants

SHIFTING = replace(ENGINES["small8x16"], requantizer="shift")


@pytest.mark.parametrize("number", range(16))
def test_random_graphs_of_powers_of_two_compute_the_graph(number):
    random = np.random.default_rng((11, number))
    while True:
        graph = random_graph(random, powers=True, **BOUNDS["small8x16"])
        try:
            program = compile_graph(graph, SHIFTING, 2)
            break
        except CompileError as error:
            assert "power of two" not in str(error), error
    images = random_images(random, graph, 2)
    assert np.array_equal(Machine(program).run(images), execute(graph, images))


@pytest.mark.parametrize("form", [Signed(8), Unsigned(4), Signed(32), ESB(4, 1), ESB(4, 2, signed=False)])
@pytest.mark.parametrize("i, j, s", [(0, 0, 0), (3, 0, 0), (3, 3, 3), (0, 3, 5), (5, 2, 4), (2, 5, 1), (4, None, 4), (7, 10, 9),
                                     (None, 2, 4)])
def test_every_order_of_the_exponents_is_exact(form, i, j, s):
    """Factors above the accumulator's lowest bit go into the weights; offsets need not be multiples of them."""
    random = np.random.default_rng(5)
    channels = 16
    graph = one_conv(random_weights(random, (channels, 3, 3, 3), "s4"), (3, 5, 5), Signed(4), padding=(1, 1))
    first = replace(graph.nodes[1], requantizer=constants(channels, s=4))
    sign = np.where(np.arange(channels) % 2, -1, 1)
    factors = ir.Requantizer(
        m=sign * (0 if i is None else 1 << i), n=np.roll(sign, 1) * np.where(np.arange(channels) < 3, 0, 0 if j is None else 1 << j),
        s=np.full(channels, s), b=random.integers(-200, 200, channels) << random.integers(0, 4, channels))
    second = ir.Add("sum", ("conv", "conv"), first.shape, form, 1.0, requantizer=factors)
    graph = validate(ir.Graph("two", [graph.nodes[0], first, second]))
    images = random_images(random, graph, 1)
    assert np.array_equal(Machine(compile_graph(graph, SHIFTING)).run(images), execute(graph, images))


def test_a_factor_that_is_no_power_of_two_is_refused_by_name():
    graph = one_conv(np.ones((8, 3, 1, 1)), (3, 4, 4))
    odd = constants(8)
    odd.m[5] = 37
    graph.nodes[1] = replace(graph.nodes[1], requantizer=odd)
    with pytest.raises(CompileError, match="layer conv: engine small8x16 requantizes by shifts and m of channel 5 is 37, no "
                                           r"power of two; train with power-of-two scales \(Recipe\(power_of_two=True\)\), or use an "
                                           "engine with requantizer = multiply$"):
        compile_graph(graph, SHIFTING)


def test_what_an_engine_was_built_without_is_refused_by_name():
    conv = one_conv(np.ones((4, 3, 1, 1)), (3, 4, 4), Signed(4))
    added = ir.Add("sum", ("conv", "conv"), (4, 4, 4), Signed(4), 1.0, requantizer=constants(4, n=1))
    graph = validate(ir.Graph("two", [*conv.nodes, added]))
    with pytest.raises(CompileError, match="layer sum: engine small8x16 is built without a residual operand"):
        compile_graph(graph, replace(ENGINES["small8x16"], residual=False))
    with pytest.raises(CompileError, match=r"layer conv: engine small8x16 is built without ESB output .* gives esb4.1; use"):
        compile_graph(one_conv(np.ones((4, 3, 1, 1)), (3, 4, 4), ESB(4, 1)), replace(ENGINES["small8x16"], esb_output=False))


def test_a_channel_of_one_level_needs_no_power_of_two():
    """Dead channels, and those whose offset is beyond the format's end whatever comes in."""
    graph = one_conv(np.ones((4, 3, 1, 1)), (3, 4, 4), Unsigned(4))
    graph.nodes[1] = replace(graph.nodes[1], requantizer=ir.Requantizer(
        m=np.array([37, 37, 4, 0]), n=np.zeros(4, np.int64), s=np.array([30, 4, 4, 4]), b=np.array([5 << 30, -1 << 39, 0, 99])))
    images = random_images(np.random.default_rng(3), graph, 1)
    outputs = Machine(compile_graph(graph, SHIFTING)).run(images)
    assert np.array_equal(outputs, execute(graph, images))
    assert (outputs[:, 0] == 5).all() and (outputs[:, 1] == 0).all() and (outputs[:, 3] == 6).all()


def test_a_residual_is_shifted_as_far_as_n_reaches():
    conv = one_conv(np.ones((4, 3, 1, 1)), (3, 4, 4), Signed(8))
    fields = constants(4, n=1024, s=10)
    fields.m[:] = 1
    weight = np.zeros((4, 4, 1, 1), np.int64) + 1
    added = ir.Conv2d("sum", ("conv", "conv"), (4, 4, 4), Signed(8), 1.0, weight=weight, weight_format=Signed(8),
                      weight_scale=np.ones(4), requantizer=fields)
    graph = validate(ir.Graph("far", [*conv.nodes, added]))
    images = random_images(np.random.default_rng(4), graph, 1)
    assert np.array_equal(Machine(compile_graph(graph, SHIFTING)).run(images), execute(graph, images)), "10 bits are within"


def test_a_sum_beyond_the_lanes_is_refused_by_name():
    graph = one_conv(np.ones((4, 3, 1, 1)), (3, 4, 4), Signed(8))
    graph.nodes[1] = replace(graph.nodes[1], requantizer=ir.Requantizer(
        m=np.full(4, 1), n=np.zeros(4, np.int64), s=np.full(4, 35), b=np.full(4, 1 << 34)))
    with pytest.raises(CompileError, match=r"layer conv: the sum of channel 0 reaches [0-9]+ and the lanes of engine small8x16 "
                                           "have 30 bits; use a larger scale for its weights"):
        compile_graph(graph, SHIFTING)


@pytest.mark.parametrize("form", [Unsigned(4), Signed(8)])
def test_a_mean_of_any_number_of_pixels_and_a_requantization_need_no_power_of_two(form):
    graph = one_conv(np.ones((4, 3, 1, 1)), (3, 7, 7), form)
    odd = ir.Requantizer(m=np.array([1337, -334, 2047, 0]), n=np.zeros(4, np.int64), s=np.array([16, 12, 14, 3]),
                         b=np.array([1, -999, 12345, 7]))
    pool = ir.AvgPool2d("pool", ("conv",), (4, 1, 1), Signed(8), 1.0, kernel=(7, 7), stride=(7, 7), requantizer=odd)
    again = ir.Requantize("again", ("pool",), (4, 1, 1), Signed(8), 1.0, requantizer=replace(odd, s=np.full(4, 11)))
    graph = validate(ir.Graph("means", [*graph.nodes, pool, again]))
    images = random_images(np.random.default_rng(6), graph, 2)
    assert np.array_equal(Machine(compile_graph(graph, SHIFTING, 2)).run(images), execute(graph, images))


def test_a_sum_that_would_have_to_grow_is_refused_by_name():
    graph = one_conv(np.full((4, 3, 1, 1), 100), (3, 4, 4), Signed(32))
    graph.nodes[1] = replace(graph.nodes[1], requantizer=ir.Requantizer(
        m=np.full(4, 1024), n=np.zeros(4, np.int64), s=np.zeros(4, np.int64), b=np.zeros(4, np.int64)))
    with pytest.raises(CompileError, match="layer conv: engine small8x16 shifts sums to the right only, and those of channel 0 "
                                           "are multiplied by 1024; use a coarser output scale"):
        compile_graph(graph, SHIFTING)
