"""Integer graph -> QONNX -> integer graph: equal in every output, for any scales."""

import dataclasses

import numpy as np
import pytest

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.interchange.onnx_file import from_proto
from esbflow.interchange.onnx_import import import_model
from esbflow.interchange.qonnx_export import to_qonnx


def with_random_scales(graph: ir.Graph, random: np.random.Generator) -> ir.Graph:
    """The same integers with arbitrary real scales; pools keep their input's."""
    for i, node in enumerate(graph.nodes):
        scale = float(np.exp(random.normal()))
        if isinstance(node, (ir.MaxPool2d, ir.Concat, ir.Upsample)):
            scale = graph[node.inputs[0]].scale
        graph.nodes[i] = dataclasses.replace(node, scale=scale)
    return graph


def round_trip(graph: ir.Graph, rounding: str = "ROUND") -> ir.Graph:
    return import_model(from_proto(to_qonnx(graph, rounding), "model"))


@pytest.mark.parametrize("rounding", ["ROUND", "FLOOR"])
@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_come_back_equal(seed, rounding):
    random = np.random.default_rng(seed)
    graph = with_random_scales(random_graph(random), random)
    images = random_images(random, graph, 3)
    assert np.array_equal(execute(round_trip(graph, rounding), images), execute(graph, images))
