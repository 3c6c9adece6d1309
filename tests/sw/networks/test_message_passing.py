"""Graph networks: the graph operations against dense ones, and their products in integers."""

import numpy as np
import pytest
import torch

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import DEFAULT_ENGINE, engine
from esbflow.graph.bounds import check
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.graph.file import load, save
from esbflow.networks.agnn import AGNN
from esbflow.networks.gcn import GCN
from esbflow.networks.message_passing import SparseRows, Topology
from esbflow.quant.citation_export import IntegerProduct, integer_network
from esbflow.quant.methods.sgquant import GraphRecipe, quantize_graph_network
from tests.sw.citation_graphs import NETWORKS


# -- the graph ----------------------------------------------------------------------------------------------------
def test_repeated_edges_both_directions_and_self_loops_count_once():
    topology = Topology([(0, 1), (1, 0), (0, 1), (2, 2)], 4)
    assert topology.degree.tolist() == [1, 1, 0, 0]
    assert sorted(zip(topology.target.tolist(), topology.source.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 3)]


def test_aggregation_equals_the_normalised_adjacency_matrix(sixty_nodes):
    data, topology = sixty_nodes
    dense = torch.eye(topology.nodes, dtype=torch.float64)
    for a, b in data.edges:
        dense[a, b] = dense[b, a] = 1
    root = dense.sum(dim=1).rsqrt()
    x = torch.randn(topology.nodes, 5, dtype=torch.float64)
    ours = topology.add_neighbours((x * topology.inverse_root).float()) * topology.inverse_root
    assert torch.allclose(ours.double(), root[:, None] * dense * root @ x, atol=1e-5)


def test_attention_sums_to_one_and_weighs_as_a_dense_matrix_does(sixty_nodes):
    _, topology = sixty_nodes
    scores = torch.randn(len(topology.source), 1) * 50  # large ones must not overflow
    attention = topology.softmax(scores)
    dense = torch.full((topology.nodes, topology.nodes), -torch.inf)
    dense[topology.target, topology.source] = scores[:, 0]
    assert torch.allclose(dense.softmax(dim=1)[topology.target, topology.source], attention[:, 0], atol=1e-6)
    x = torch.randn(topology.nodes, 3)
    assert torch.allclose(topology.weigh_neighbours(attention, x), dense.softmax(dim=1) @ x, atol=1e-5)


def test_sums_of_codes_are_exact_integers(sixty_nodes):
    _, topology = sixty_nodes
    codes = torch.randint(0, 16, (topology.nodes, 8))
    dense = torch.zeros(topology.nodes, topology.nodes, dtype=torch.int64)
    dense[topology.target, topology.source] = 1
    assert torch.equal(topology.add_neighbours(codes.float()).long(), dense @ codes)


@pytest.mark.parametrize("edges, nodes, message", [([(0, 5)], 3, "an edge names node 5, but nodes are 0 to 2"),
                                                   ([(-1, 0)], 3, "an edge names node -1"), ([], 0, "at least one node")])
def test_bad_edges_are_refused(edges, nodes, message):
    with pytest.raises(ValueError, match=message):
        Topology(edges, nodes)


# -- networks -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("recipe", [None, GraphRecipe(), GraphRecipe(ranges="node", combination=(8, 4, 2, 1))])
def test_graphs_without_edges_and_isolated_nodes_give_finite_scores(network, recipe):
    topology = Topology([], 5)
    model = network(6, 3)
    model = (model if recipe is None else quantize_graph_network(model, recipe)).eval()
    features = torch.eye(5, 6)
    features[4] = 0
    scores = model(model.read(features, topology), topology)
    assert scores.shape == (5, 3) and torch.isfinite(scores).all()
    if recipe is None and network is GCN:  # an isolated node sees itself only
        alone = torch.relu(features @ model.lin1.weight.T) @ model.lin2.weight.T
        assert torch.allclose(scores, alone, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_sparse_and_a_dense_input_give_the_same_scores_and_gradients(network, sixty_nodes):
    data, topology = sixty_nodes
    model = network(40, 3).eval()
    features = torch.from_numpy(data.features)
    results = []
    for x in (features, SparseRows(features)):
        model.zero_grad()
        scores = model(x, topology)
        scores.square().sum().backward()
        results.append((scores.detach(), model.lin1.weight.grad.clone()))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_bad_features_are_refused(network, sixty_nodes):
    _, topology = sixty_nodes
    model = quantize_graph_network(network(40, 3), GraphRecipe())
    with pytest.raises(ValueError, match=r"the network takes features of shape \(60, 40\), not \(60, 39\)"):
        model.read(torch.zeros(60, 39), topology)
    with pytest.raises(ValueError, match="the features hold NaN or infinity"):
        model.read(torch.full((60, 40), torch.nan), topology)


# -- products in integers -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["esb4.1", "s8", "twn", "vecq:2"])
@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8, (8, 4, 2, 1)])
def test_the_executed_graph_equals_the_integer_product_in_torch_on_every_value(weights, bits, sixty_nodes):
    _data, topology = sixty_nodes
    model = quantize_graph_network(AGNN(40, 3), GraphRecipe(weights, combination=bits))
    product = IntegerProduct(model.lin2, model.quantizers["layer2_input"], topology.nodes)
    x = torch.randn(topology.nodes, 16)
    codes = model.quantizers["layer2_input"].codes(x, topology.rows).codes
    integers, scale = model.lin2.eval().weight_quantizer.integers(model.lin2.weight)
    assert torch.equal(product.accumulate(codes), codes @ integers.T)
    exact = execute(product.graph, product.images(codes))[0, :, :, 0].T  # the graph itself, signed codes for 8 bits
    assert np.array_equal(exact, ((codes - product.shift) @ integers.T).numpy())
    real = model.quantizers["layer2_input"].codes(x, topology.rows).values() @ (integers * scale).double().T
    assert torch.allclose(product(x, topology.rows).double(), real + model.lin2.bias.double(), atol=1e-5)


def test_extreme_codes_do_not_saturate():
    model = quantize_graph_network(GCN(3000, 2), GraphRecipe("s8", combination=8, input_bits=8))
    with torch.no_grad():
        model.lin1.weight.fill_(1.0)
    product = IntegerProduct(model.lin1, model.quantizers["layer1_input"], 4)
    codes = torch.tensor([[0], [255], [128], [1]]).expand(4, 3000)
    integers = model.lin1.eval().weight_quantizer.integers(model.lin1.weight)[0]
    assert integers.max() == 127
    assert torch.equal(product.accumulate(codes), codes @ integers.T)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("ranges", ["tensor", "bucket", "node"])
def test_a_network_of_integer_products_equals_fake_quantization(network, ranges, sixty_nodes):
    data, topology = sixty_nodes
    torch.manual_seed(0)
    model = quantize_graph_network(network(40, 3), GraphRecipe(ranges=ranges)).double().eval()
    features = torch.from_numpy(data.features).double()  # in float32 the fake product's rounding may move a code at a tie
    fake = model(model.read(features, topology), topology)
    integer = integer_network(model, topology.nodes)
    exact = integer(integer.read(features, topology), topology)
    assert torch.allclose(fake, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_products_are_saved_and_compiled_for_the_engine(bits, sixty_nodes, tmp_path):
    _, topology = sixty_nodes
    model = quantize_graph_network(GCN(40, 3), GraphRecipe(input_bits=bits))
    product = IntegerProduct(model.lin1, model.quantizers["layer1_input"], topology.nodes)
    save(product.graph, tmp_path / "lin1.npz")
    codes = torch.randint(0, 2**bits, (topology.nodes, 40))
    images = product.images(codes)
    assert np.array_equal(execute(load(tmp_path / "lin1.npz"), images), execute(product.graph, images))
    config = engine(DEFAULT_ENGINE)
    check(product.graph, config.accumulator_width)
    assert len(compile_graph(product.graph, config, 1).instructions)


@pytest.mark.parametrize("recipe, message", [(GraphRecipe(None), "lin1: its weights are not quantized"),
                                             (GraphRecipe(combination=32), "lin2: its features are not quantized")])
def test_real_numbers_have_no_integer_form(recipe, message):
    with pytest.raises(GraphError, match=message):
        integer_network(quantize_graph_network(GCN(8, 2), recipe), 4)
    with pytest.raises(GraphError, match="lin1: its features are not quantized"):
        integer_network(GCN(8, 2), 4)


def test_a_broken_weight_is_refused():
    model = quantize_graph_network(GCN(8, 2), GraphRecipe())
    with torch.no_grad():
        model.lin1.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="lin1: weight holds NaN or infinity"):
        integer_network(model, 4)
