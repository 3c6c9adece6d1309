"""Bounds of accumulators: never exceeded, and reached where they are exact."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow.graph import ir
from esbflow.graph.bounds import Bound, bounds, check
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import convolve, execute
from esbflow.graph.macs import macs, macs_per_image
from esbflow.graph.random import random_graph, random_images
from esbflow.graph.validate import validate
from esbflow.numbers import ESB, Signed, Unsigned
from tests.sw.graph_nodes import constants, conv_node, input_node, seeds


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
    assert Bound(low, high, low, high).bits == bits


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
