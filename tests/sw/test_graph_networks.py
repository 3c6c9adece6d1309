"""Graph networks: the graph operations against dense ones, data and its errors, training, and products in integers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import DEFAULT_ENGINE, engine
from esbflow.graph.bounds import check
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.graph.file import load, save
from esbflow.networks.agnn import AGNN
from esbflow.networks.gcn import GCN
from esbflow.networks.message import SparseRows, Topology
from esbflow.quant.graph_export import IntegerProduct, integer_network
from esbflow.quant.sgquant import GraphRecipe, quantize_graph_network
from esbflow.training import graphs
from esbflow.training.data import DataUnavailable
from esbflow.training.graph_data import GRAPHS, checked, load_graph_data
from esbflow.training.graph_loop import GraphSchedule, accuracy, train_graph

NEEDS_DATA = pytest.mark.skipif(
    not all(os.path.exists(os.path.join(os.environ.get("ESBFLOW_DATA", ""), "planetoid", f"{name}.npz")) for name in GRAPHS),
    reason="ESBFLOW_DATA/planetoid/{cora,citeseer}.npz are not at hand")
NETWORKS = [GCN, AGNN]


def small_data(nodes: int = 60, words: int = 40, classes: int = 3, seed: int = 0):
    """Nodes of three classes with words of their own, joined mostly within the class; the last two nodes are isolated."""
    random = np.random.default_rng(seed)
    labels = np.arange(nodes) % classes
    liked = np.arange(words) % classes == labels[:, None]
    bags = (random.random((nodes, words)) < np.where(liked, 0.4, 0.1)).astype(np.float32)
    pairs = random.integers(0, nodes - 2, (4 * nodes, 2))
    pairs = pairs[(labels[pairs[:, 0]] == labels[pairs[:, 1]]) | (random.random(len(pairs)) < 0.1)]
    order = random.permutation(nodes)
    return checked("small", bags, labels, pairs, order[:15], order[15:30], order[30:])


@pytest.fixture(scope="module")
def small():
    data = small_data()
    return data, Topology(data.edges, len(data.labels))


# -- the graph ----------------------------------------------------------------------------------------------------
def test_repeated_edges_both_directions_and_self_loops_count_once():
    topology = Topology([(0, 1), (1, 0), (0, 1), (2, 2)], 4)
    assert topology.degree.tolist() == [1, 1, 0, 0]
    assert sorted(zip(topology.target.tolist(), topology.source.tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 3)]


def test_aggregation_equals_the_normalised_adjacency_matrix(small):
    data, topology = small
    dense = torch.eye(topology.nodes, dtype=torch.float64)
    for a, b in data.edges:
        dense[a, b] = dense[b, a] = 1
    root = dense.sum(dim=1).rsqrt()
    x = torch.randn(topology.nodes, 5, dtype=torch.float64)
    ours = topology.add_neighbours((x * topology.inverse_root).float()) * topology.inverse_root
    assert torch.allclose(ours.double(), root[:, None] * dense * root @ x, atol=1e-5)


def test_attention_sums_to_one_and_weighs_as_a_dense_matrix_does(small):
    _, topology = small
    scores = torch.randn(len(topology.source), 1) * 50  # large ones must not overflow
    attention = topology.softmax(scores)
    dense = torch.full((topology.nodes, topology.nodes), -torch.inf)
    dense[topology.target, topology.source] = scores[:, 0]
    assert torch.allclose(dense.softmax(dim=1)[topology.target, topology.source], attention[:, 0], atol=1e-6)
    x = torch.randn(topology.nodes, 3)
    assert torch.allclose(topology.weigh_neighbours(attention, x), dense.softmax(dim=1) @ x, atol=1e-5)


def test_sums_of_codes_are_exact_integers(small):
    _, topology = small
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
def test_a_sparse_and_a_dense_input_give_the_same_scores_and_gradients(network, small):
    data, topology = small
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
def test_bad_features_are_refused(network, small):
    _, topology = small
    model = quantize_graph_network(network(40, 3), GraphRecipe())
    with pytest.raises(ValueError, match=r"the network takes features of shape \(60, 40\), not \(60, 39\)"):
        model.read(torch.zeros(60, 39), topology)
    with pytest.raises(ValueError, match="the features hold NaN or infinity"):
        model.read(torch.full((60, 40), torch.nan), topology)


# -- products in integers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["esb4.1", "s8", "twn", "vecq:2"])
@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8, (8, 4, 2, 1)])
def test_the_executed_graph_equals_the_integer_product_in_torch_on_every_value(weights, bits, small):
    data, topology = small
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
def test_a_network_of_integer_products_equals_fake_quantization(network, ranges, small):
    data, topology = small
    torch.manual_seed(0)
    model = quantize_graph_network(network(40, 3), GraphRecipe(ranges=ranges)).double().eval()
    features = torch.from_numpy(data.features).double()  # in float32 the fake product's rounding may move a code at a tie
    fake = model(model.read(features, topology), topology)
    integer = integer_network(model, topology.nodes)
    exact = integer(integer.read(features, topology), topology)
    assert torch.allclose(fake, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_products_are_saved_and_compiled_for_the_engine(bits, small, tmp_path):
    _, topology = small
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


# -- data ---------------------------------------------------------------------------------------------------------
def arrays(**changed):
    content = dict(features=np.eye(6, 4, dtype=np.float32), labels=np.array([0, 1, 0, 1, 0, -1]),
                   edges=np.array([(0, 1), (2, 3)]), train=np.array([0, 1]), val=np.array([2]), test=np.array([3, 4]))
    return {**content, **changed}


def test_rows_are_normalised_and_rows_without_words_stay():
    data = checked("tiny", **arrays(features=np.array([[1, 1, 0, 0]] * 5 + [[0] * 4], np.float32)))
    assert data.features[0].tolist() == [0.5, 0.5, 0, 0] and data.features[5].tolist() == [0] * 4 and data.classes == 2


@pytest.mark.parametrize("changed, message", [
    (dict(features=np.zeros((0, 4))), "features must have shape"),
    (dict(features=np.zeros(4)), "features must have shape"),
    (dict(features=np.full((6, 4), np.nan)), "the features of node 0 hold NaN or infinity"),
    (dict(labels=np.zeros(5, int)), "labels must be 6 integers"),
    (dict(labels=np.zeros(6)), "labels must be 6 integers"),
    (dict(edges=np.array([(0, 6)])), "edges must hold node numbers from 0 to 5"),
    (dict(train=np.array([], int)), "the train part of the split is empty"),
    (dict(test=np.array([], int)), "the test part of the split is empty"),
    (dict(val=np.array([-1])), "val must hold node numbers from 0 to 5"),
    (dict(test=np.array([5])), "node 5 of test has no label"),
    (dict(val=np.array([1])), "train and val share nodes")])
def test_bad_arrays_are_refused_in_one_sentence(changed, message):
    with pytest.raises(ValueError, match=message):
        checked("tiny", **arrays(**changed))


def test_no_edges_are_a_graph():
    data = checked("tiny", **arrays(edges=np.zeros((0, 2), int)))
    assert Topology(data.edges, 6).degree.tolist() == [0] * 6


def test_unknown_missing_and_damaged_files(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no graph named 'pubmed'; known: cora, citeseer"):
        load_graph_data("pubmed")
    monkeypatch.delenv("ESBFLOW_DATA", raising=False)
    with pytest.raises(DataUnavailable, match=r"the graph cora is not at ESBFLOW_DATA \(not set\)/planetoid/cora.npz"):
        load_graph_data("cora")
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path))
    with pytest.raises(DataUnavailable, match="is not at .*planetoid/cora.npz"):
        load_graph_data("cora")
    path = tmp_path / "planetoid" / "cora.npz"
    path.parent.mkdir()
    np.savez(path, **arrays())
    assert load_graph_data("cora").name == "cora"
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataUnavailable, match="is damaged"):
        load_graph_data("cora")
    np.savez(path, **{k: v for k, v in arrays().items() if k != "test"})
    with pytest.raises(DataUnavailable, match="is damaged .*test"):
        load_graph_data("cora")
    np.savez(path, **arrays(features=np.full((6, 4), np.inf)))
    with pytest.raises(DataUnavailable, match="is damaged: the features of node 0"):
        load_graph_data("cora")


@NEEDS_DATA
@pytest.mark.parametrize("name, nodes, words, classes, edges", [("cora", 2708, 1433, 7, 5278), ("citeseer", 3327, 3703, 6, 4552)])
def test_the_published_graphs(name, nodes, words, classes, edges):
    data = load_graph_data(name)
    topology = Topology(data.edges, nodes)
    assert data.features.shape == (nodes, words) and data.classes == classes
    assert (len(topology.source) - nodes) // 2 == edges  # without Citeseer's 124 self-loops
    assert (len(data.train), len(data.val), len(data.test)) == (20 * classes, 500, 1000)
    stored = quantize_graph_network(GCN(words, classes), GraphRecipe()).read(torch.from_numpy(data.features), topology)
    assert stored.is_sparse and torch.equal(stored.to_dense(), torch.from_numpy(data.features))  # one bit loses nothing


# -- training -----------------------------------------------------------------------------------------------------
def trained(network, data, topology, recipe=None, epochs=60, seed=0):
    torch.manual_seed(seed)
    model = network(data.features.shape[1], data.classes)
    model = model if recipe is None else quantize_graph_network(model, recipe)
    return train_graph(model, data, topology, GraphSchedule(epochs=epochs), seed)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("recipe", [None, GraphRecipe(ranges="node")])
def test_networks_learn_and_the_same_seed_gives_the_same_network(network, recipe, small):
    data, topology = small
    first, second = (trained(network, data, topology, recipe) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert accuracy(first, data, topology) > 55  # a third is chance
    if recipe:
        assert accuracy(integer_network(first, topology.nodes), data, topology) == pytest.approx(
            accuracy(first, data, topology), abs=100 / 30 + 0.1)


def test_training_that_diverges_is_stopped(small):
    data, topology = small
    model = GCN(40, 3)
    with torch.no_grad():
        model.bias2[0] = torch.nan
    with pytest.raises(ValueError, match="the loss is not finite"):
        train_graph(model, data, topology, GraphSchedule(epochs=2))
    with pytest.raises(ValueError, match="epochs and every must be at least 1"):
        GraphSchedule(epochs=0)
    with pytest.raises(ValueError, match="learning rate must be positive"):
        GraphSchedule(rate=0)


def test_a_teacher_pulls_the_network_toward_its_answers(small):
    data, topology = small
    teacher = torch.eye(3)[torch.full((topology.nodes,), 2)]  # class 2 everywhere
    torch.manual_seed(0)
    plain, taught = (GCN(40, 3) for _ in range(2))
    taught.load_state_dict(plain.state_dict())
    before, after = (
        torch.bincount(train_graph(m, data, topology, GraphSchedule(epochs=30, every=30), teacher=t)(
            torch.from_numpy(data.features), topology).argmax(dim=1), minlength=3)[2] for m, t in ((plain, None), (taught, teacher)))
    assert after > before


# -- the command --------------------------------------------------------------------------------------------------
KEYS = {"method", "network", "data", "weights_bits", "activation_bits", "accuracy_float", "accuracy_fake", "accuracy_integer",
        "std_float", "std_fake", "std_integer", "seeds", "bytes", "bytes_float", "memory_ratio", "command", "hardware", "minutes"}


@pytest.fixture
def tiny_cora(monkeypatch, tmp_path):
    data = small_data()
    (tmp_path / "planetoid").mkdir()
    np.savez(tmp_path / "planetoid" / "cora.npz",
             **{k: getattr(data, k) for k in ("features", "labels", "edges", "train", "val", "test")})
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("network", ["gcn", "agnn"])
def test_the_command_writes_results_and_integer_graphs(network, tiny_cora, capsys):
    words = ["--network", network, "--seeds", "2", "--epochs", "4", "--out", str(tiny_cora), "--export", str(tiny_cora / "x")]
    assert graphs.main(words) == 0
    result = json.loads((tiny_cora / f"sgquant-{network}-cora-w4a4.json").read_text())
    assert KEYS <= set(result) and result["seeds"] == 2 and len(result["accuracies"]) == 2
    assert (result["weights_bits"], result["activation_bits"], result["widths"]["layer1_input"]) == (4, 4, 1)
    assert result["accuracy_integer"] == pytest.approx(result["accuracy_fake"], abs=2)
    assert result["memory_ratio"] == pytest.approx(result["bytes_float"] / result["bytes"], abs=0.01)
    shapes = [load(tiny_cora / "x" / f"{name}.npz").output.shape for name in ("lin1", "lin2")]
    assert shapes == [(16, 60, 1), (3, 60, 1)]
    assert json.loads(capsys.readouterr().out)["network"] == network.upper()


def test_the_command_searches_bits(tiny_cora, monkeypatch, capsys):
    monkeypatch.setattr(graphs, "SEARCH", dict(first=4, rounds=1, each=2, explored=20))
    monkeypatch.setattr(graphs, "SEARCH_SEEDS", 1)
    asked = []
    monkeypatch.setattr(graphs.SecondLook, "cost", lambda self, choice: asked.append(choice) or (29.5, 1.0))
    words = ["--seeds", "1", "--epochs", "4", "--search", "--drop", "30", "--out", str(tiny_cora)]
    assert graphs.main(words) == 0
    result = json.loads((tiny_cora / "sgquant-gcn-cora-search.json").read_text())
    assert KEYS <= set(result) and len(result["trials"]) == 6
    best = min(t["memory"] for t in result["trials"] if t["accuracy"] >= result["search"]["reference"] - 30)
    assert result["bytes"] == best and len(asked) == 1 and result["search"]["refused"] == 0
    assert result["command"].endswith("--seeds 1 --search --drop 30.0 --epochs 4")
    monkeypatch.setattr(graphs.SecondLook, "cost", lambda self, choice: (30.5, 1.0))
    (tiny_cora / "sgquant-gcn-cora-search.json").unlink()
    assert graphs.main(words) == 2
    assert "and not in trainings with other seeds" in capsys.readouterr().err
    assert not (tiny_cora / "sgquant-gcn-cora-search.json").exists()


def test_a_second_look_uses_other_seeds_and_judges_by_nodes_that_chose_nothing(tiny_cora, monkeypatch):
    task = graphs.Task.load("cora", "gcn")
    short = GraphSchedule(epochs=3)
    look = graphs.SecondLook(task, 2, 0.5, short, short, seeds=3)
    for half in look.tasks:
        assert not set(half.data.val) & set(half.data.test) and not set(half.data.test) & set(task.data.test)
        assert set(half.data.val) | set(half.data.test) == set(task.data.val)
        assert set(half.data.test) <= set(look.tasks[0].data.val) or half is look.tasks[0]
    seen, scores = [], {}

    def accuracy(self, network, part="test"):
        assert part == "test"
        return scores[id(network)]

    def float_network(self, seed, schedule):
        seen.append((seed, look.tasks.index(self), schedule))
        network = object()
        scores[id(network)], keep[id(network)] = 80.0, network
        return network

    def low_bit_network(self, real, recipe, seed, schedule):
        network = object()
        scores[id(network)], keep[id(network)] = 80.0 - losses[seed], network
        return network

    keep = {}
    for function in (accuracy, float_network, low_bit_network):
        monkeypatch.setattr(graphs.Task, function.__name__, function)
    choice = {"layer1_product": 4, "layer2_input": 4, "layer2_product": 4, "ranges": "node", "weights": "esb4.1"}
    for most, lost, mean, error in (
            (32, [0.5, 0.5, 0.5], 0.5, 0), (32, [0.7, 0, 0], 0.7 / 3, 0.7 / 3), (32, [1.0, 0.6, 0.8], 0.8, 0.2 / 3 ** 0.5),
            (32, [0.9, 0, 0.1, 0.2, 0.1, 0.3], 1.6 / 6, 0.1333),  # 0.33 and 0.28 after three: three more
            (4, [0, 0, 0.9, 0.9, 0, 1.3], 3.1 / 6, 0.2386)):      # still unclear, and there are `most`
        look.most, losses = most, dict(enumerate(lost, start=2))
        seen.clear()
        assert look.cost(choice) == (pytest.approx(mean), pytest.approx(error, abs=1e-4))
        assert seen == [(seed, seed % 2, short) for seed in losses], "as many trainings as it takes"


@pytest.mark.parametrize("words, message", [
    (["--data", "pubmed"], "no graph named 'pubmed'; known: cora, citeseer"),
    (["--network", "gin"], "no graph network named 'gin'; known: gcn, agnn"),
    (["--bits", "9"], "features have 1 to 8 bits"), (["--weights", "u4"], "weights need a signed format"),
    (["--seeds", "0"], "the number of seeds must be at least 1"), (["--epochs", "0"], "epochs and every must be at least 1"),
    (["--bits", "32"], "lin2: its features are not quantized")])
def test_the_command_refuses_bad_input_in_one_sentence(words, message, tiny_cora, capsys):
    if "--epochs" not in words:
        words = [*words, "--epochs", "1"]
    assert graphs.main(words) == 2
    assert message in capsys.readouterr().err.split("\n")[-2]


def test_the_command_says_that_data_are_missing(monkeypatch, capsys):
    monkeypatch.delenv("ESBFLOW_DATA", raising=False)
    assert graphs.main([]) == 2
    assert "ESBFLOW_DATA (not set)" in capsys.readouterr().err


@NEEDS_DATA
def test_cora_in_four_bits_is_as_good_as_in_real_numbers():
    task = graphs.Task.load("cora", "gcn")
    result = graphs.run_seeds(task, GraphRecipe(ranges="node"), 1)
    assert result["accuracy_float"] >= 80 and result["accuracy_integer"] >= result["accuracy_float"] - 1.5
    assert abs(result["accuracy_integer"] - result["accuracy_fake"]) <= 0.2


def test_the_page_holds_the_table_of_the_committed_records():
    docs = Path(__file__).parents[2] / "docs"
    assert graphs.table(docs / "results") in (docs / "graph_networks.md").read_text()
    records = [json.loads(path.read_text()) for path in (docs / "results").glob("sgquant-*.json")]
    assert {(r["network"], r["data"]) for r in records} == {(n, d) for n in ("GCN", "AGNN") for d in ("Cora", "Citeseer")}
    for record in records:
        assert KEYS <= set(record) and record["seeds"] == 10 == len(record["accuracies"])
        if record["weights_bits"] == record["activation_bits"] == 4:
            assert record["accuracy_integer"] >= record["accuracy_float"] - 0.5
