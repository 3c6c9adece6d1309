"""Max pools over sides that no window of the engine covers."""

import numpy as np
import pytest

from esbflow.compiler.errors import CompileError
from esbflow.compiler.large_pools import split_large_pools
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_images
from esbflow.graph.validate import validate
from esbflow.numbers import Signed
from tests.compiler.machine import Machine
from tests.sw.graph_nodes import constants, input_node


def pooled(size, kernel, stride, out, conv=False, padding=(0, 0)):
    """A pool of two channels, of the image or of a convolution; its name's successor is taken."""
    nodes = [input_node((2, *size)), ir.Requantize("pool_parts", ("input",), (2, *size), Signed(8), 1.0, requantizer=constants(2))]
    if conv:
        nodes.append(ir.Conv2d("conv", ("pool_parts",), (2, *size), Signed(8), 1.0, weight=np.ones((2, 2, 1, 1), np.int64),
                               weight_format=Signed(8), weight_scale=np.ones(2), requantizer=constants(2, s=1)))
    nodes.append(ir.MaxPool2d("pool", (nodes[-1].name,), (2, *out), Signed(8), 1.0, kernel=kernel, stride=stride,
                              padding=padding))
    return validate(ir.Graph("pools", nodes))


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("size, kernel, stride, out", [
    ((16, 16), (16, 16), (16, 16), (1, 1)), ((17, 31), (17, 31), (1, 1), (1, 1)), ((40, 6), (40, 3), (40, 2), (1, 2)),
    ((5, 29), (1, 29), (1, 29), (5, 1)), ((112, 20), (112, 20), (112, 20), (1, 1))])
def test_the_maximum_of_a_long_side(size, kernel, stride, out, conv):
    random = np.random.default_rng((5, *size))
    graph = pooled(size, kernel, stride, out, conv)
    images = random_images(random, graph, 2)
    split = validate(split_large_pools(graph))
    assert len(split.nodes) == len(graph.nodes) + 1 and split.output.name == "pool" and len({n.name for n in split.nodes}) == len(
        split.nodes)
    assert max(max(node.kernel) for node in split.nodes if isinstance(node, ir.MaxPool2d)) <= 15
    assert np.array_equal(execute(split, images), execute(graph, images))
    program = compile_graph(graph, ENGINES["base16x16"], 2)
    assert np.array_equal(Machine(program).run(images), execute(graph, images))


@pytest.mark.parametrize("size, kernel, stride, out, padding", [
    ((20, 20), (16, 16), (1, 1), (5, 5), (0, 0)), ((20, 20), (20, 20), (1, 1), (3, 3), (1, 1)),
    ((20, 226), (20, 226), (1, 1), (1, 1), (0, 0))])
def test_other_large_windows_are_refused(size, kernel, stride, out, padding):
    graph = pooled(size, kernel, stride, out, padding=padding)
    with pytest.raises(CompileError, match=r"layer pool.*: the engine pools windows and strides up to 15"):
        compile_graph(graph, ENGINES["base16x16"])


def test_small_pools_stay_as_they_are():
    graph = pooled((15, 15), (15, 15), (15, 15), (1, 1))
    assert split_large_pools(graph) is graph
