"""Activations of one bit: the engine's constants make the same signs of every sum."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from esbflow.compiler.bipolar import store_bipolar
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.graph.validate import validate
from esbflow.numbers import ESB, Binary, Signed, Unsigned
from tests.compiler.machine import Machine
from tests.sw.graph_nodes import constants, input_node

SUMS = np.arange(-40, 41)


def signs_of(m, n, b, s, residual):
    """What a Requantize, or an Add of a tensor to itself, makes of SUMS: (in the graph, after the pass, that graph)."""
    image = np.arange(81, dtype=np.uint8).reshape(1, 1, 9, 9)
    table = np.zeros((1, 256), np.int64)
    table[0, :81] = SUMS
    q = ir.Requantizer(*(np.array([v], np.int64) for v in (m, b, s, n)))
    source = ir.Input("x", (), (1, 9, 9), Signed(8), 1.0, table=table)
    other = ir.Upsample("r", ("x",), (1, 9, 9), Signed(8), 1.0, factor=(1, 1))
    node = (ir.Add("y", ("x", "r"), (1, 9, 9), Binary(), 1.0, requantizer=q) if residual
            else ir.Requantize("y", ("x",), (1, 9, 9), Binary(), 1.0, requantizer=q))
    graph = validate(ir.Graph("signs", [source, other, node]))
    stored = validate(store_bipolar(graph))
    return execute(graph, image).ravel(), execute(stored, image).ravel(), stored


@pytest.mark.parametrize("m", [-2047, -3, -1, 0, 1, 2, 7, 2047])
def test_every_sum_keeps_its_sign(m):
    for b, s in product((-(1 << 39), -2048, -2047, -7, -6, -1, 0, 1, 6, 7, 13, 2047, (1 << 39) - 1), (0, 1, 12, 40)):
        wanted, found, stored = signs_of(m, 0, b, s, False)
        assert np.array_equal(wanted, np.where(SUMS * m + b >= 0, 1, -1))
        assert np.array_equal(found, wanted), (b, s)
        assert stored.output.format == ESB(2, 0) and len(stored.nodes) == 3


@pytest.mark.parametrize("m, n, b", [(1, -1, 0), (2047, -2047, -1), (-1500, 1501, 0), (3, 2, -7), (0, 5, 5),
                                     (1, 1, (1 << 39) - 1), (1, 1, -(1 << 39))])
@pytest.mark.parametrize("s", [0, 3, 40])
def test_a_sum_with_a_residual_goes_by_way_of_one_bit(m, n, b, s):
    wanted, found, stored = signs_of(m, n, b, s, True)
    assert np.array_equal(wanted, np.where(SUMS * (m + n) + b >= 0, 1, -1))
    assert np.array_equal(found, wanted)
    assert [node.format for node in stored.nodes[2:]] == [Unsigned(1), ESB(2, 0)]
    assert stored.output.name == "y"


def test_a_name_that_is_taken_is_left_alone():
    add = ir.Add("y", ("y_bit", "y_bit"), (1, 2, 2), Binary(), 1.0, requantizer=constants(1, n=1))
    graph = validate(ir.Graph("names", [replace(input_node((1, 2, 2)), name="y_bit"), add]))
    assert [node.name for node in validate(store_bipolar(graph)).nodes] == ["y_bit", "y_bit_", "y"]


def test_graphs_without_such_tensors_stay_as_they_are():
    graph = ir.Graph("plain", [input_node((1, 2, 2))])
    assert store_bipolar(graph) is graph


@pytest.mark.parametrize("number", range(30))
def test_every_integer_of_a_random_graph_stays_the_same(number):
    random = np.random.default_rng((11, number))
    graph = random_graph(random, 4)
    for node in graph.nodes[1:-1]:  # a sign wherever there is a requantizer and nothing needs the format
        readers = [other for other in graph.nodes if node.name in other.inputs]
        if hasattr(node, "requantizer") and not any(isinstance(other, (ir.MaxPool2d, ir.Concat, ir.Upsample)) for other in readers):
            graph.nodes[graph.nodes.index(node)] = replace(node, format=Binary())
    images = random_images(random, validate(graph), 2)
    wanted, found = (execute(g, images, keep=True) for g in (graph, validate(store_bipolar(graph))))
    assert all(np.array_equal(found[name], values) for name, values in wanted.items())


@pytest.mark.parametrize("number", range(8))
def test_a_network_of_signs_runs_on_the_machine(number):
    """Two convolutions with zeros around their maps, a residual and a linear layer, all of one bit, as the importer has
    them from binary networks of other tools."""
    random = np.random.default_rng((12, number))
    c, size = int(random.integers(1, 12)), int(random.integers(3, 9))

    def signs(*shape):
        return random.choice((-1, 1), shape)

    def layer(kind, name, inputs, weight, shape, form=None, **fields):
        q = ir.Requantizer(m=random.integers(-2047, 2048, shape[0]), b=random.integers(-9000, 9000, shape[0]),
                           s=random.integers(0, 12, shape[0]),
                           n=random.integers(-2047, 2048, shape[0]) if len(inputs) > 1 else np.zeros(shape[0], np.int64))
        return kind(name, inputs, shape, form or Binary(), 1.0, weight=weight, weight_format=Binary(),
                    weight_scale=np.ones(len(weight)), requantizer=q, **fields)

    map_shape = (c, size, size)
    graph = validate(ir.Graph("signs", [
        ir.Input("x", (), (2, size, size), Binary(), 1.0, table=signs(2, 256)),
        layer(ir.Conv2d, "a", ("x",), signs(c, 2, 3, 3), map_shape, padding=(1, 1)),
        layer(ir.Conv2d, "b", ("a", "a"), signs(c, c, 3, 3), map_shape, padding=(1, 1)),
        ir.MaxPool2d("pool", ("b",), (c, size // 2, size // 2), Binary(), 1.0),
        layer(ir.Linear, "fc", ("pool",), signs(5, c * (size // 2) ** 2), (5, 1, 1), Signed(16)),
    ]))
    images = random_images(random, graph, 2)
    for name in ("tiny4x4", "base16x16"):
        program = compile_graph(graph, ENGINES[name], 2)
        assert np.array_equal(Machine(program).run(images), execute(graph, images))
