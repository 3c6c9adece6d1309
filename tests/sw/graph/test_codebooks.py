"""Graphs whose weights are codewords and indices: the same integers, in a smaller file and less memory."""

import numpy as np
import pytest

from esbflow.graph import ir
from esbflow.graph.codebooks import codebook_of
from esbflow.graph.compressed import CodebookNetwork
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.graph.file import load, save
from esbflow.graph.validate import validate
from esbflow.numbers import Signed, Unsigned
from tests.sw.graph_nodes import constants, input_node


def blocks(random, out, row, count, size):
    """Weights (out, row) of `count` different blocks; the last of a row may be cut."""
    book = random.integers(-128, 128, (count, size))
    return book[random.integers(count, size=(out, -(-row // size)))].reshape(out, -1)[:, :row]


@pytest.fixture
def graph():
    """A grouped convolution of blocks of a kernel, one whose weights are all different, and a linear layer."""
    random = np.random.default_rng(1)
    layers = [dict(weight=blocks(random, 32, 36, 16, 9).reshape(32, 4, 3, 3), groups=2, padding=(1, 1)),
              dict(weight=random.integers(-128, 128, (8, 32, 1, 1)))]
    nodes = [input_node((8, 5, 6))]
    for number, fields in enumerate(layers):
        out = len(fields["weight"])
        nodes.append(ir.Conv2d(f"conv{number}", (nodes[-1].name,), (out, 5, 6), Unsigned(8), 1.0, weight_format=Signed(8),
                               weight_scale=np.ones(out), requantizer=constants(out, s=9), **fields))
    nodes.append(ir.Linear("last", ("conv1",), (20, 1, 1), Signed(32), 1.0, weight=blocks(random, 20, 240, 60, 8),
                           weight_format=Signed(8), weight_scale=np.ones(20), requantizer=constants(20)))
    return validate(ir.Graph("books", nodes))


def test_files_and_inference_are_the_graph(graph, tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (3, 8, 5, 6), dtype=np.uint8)
    small = save(graph, tmp_path / "small.npz", codebooks=True)
    assert all(np.array_equal(a.weight, b.weight) for a, b in zip(load(small).nodes[1:], graph.nodes[1:], strict=True))
    expected = execute(graph, images)
    assert len(np.unique(expected)) > 20
    for network in (CodebookNetwork.load(small), CodebookNetwork.of(graph)):
        assert np.array_equal(network.run(images), expected) and network.books.keys() == {"conv0", "last"}
        assert network.weight_bytes < 0.7 * sum(node.weight.size for node in graph.nodes[1:])
        assert all(not any(node.weight.strides) for node in network.graph.nodes if node.name in network.books)
    with pytest.raises(GraphError, match="images must be uint8"):
        CodebookNetwork.of(graph).run(images.astype(float))


@pytest.mark.parametrize("count, kind", [(16, np.uint8), (256, np.uint8), (300, np.uint16)])
def test_indices_are_whole_bytes(count, kind):
    weight = blocks(np.random.default_rng(count), 64, 190 if count == 16 else 192, count, 8)
    found = codebook_of(weight)
    assert found.indices.dtype == kind and found.nbytes < weight.size and np.array_equal(found.weights(), weight)


def test_weights_that_no_codebook_makes_smaller_stay():
    random = np.random.default_rng(3)
    assert codebook_of(random.integers(-128, 128, (40, 90))) is None and codebook_of(np.full((64, 64), 128)) is None


def test_a_damaged_codebook_is_refused(graph, tmp_path):
    path = save(graph, tmp_path / "small.npz", codebooks=True)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["1.indices"] = np.full_like(arrays["1.indices"], 250)
    np.savez(path, **arrays)
    with pytest.raises(GraphError, match="is not a whole model file"):
        load(path)
