"""Planetoid graphs: their files, and the one sentence about what is wrong with them."""

import numpy as np
import pytest
import torch

from esbflow.networks.gcn import GCN
from esbflow.networks.message_passing import Topology
from esbflow.quant.methods.sgquant import GraphRecipe, quantize_graph_network
from esbflow.studies.citation_data import checked, load_graph_data
from esbflow.training.data import DataUnavailable
from tests.sw.citation_graphs import NEEDS_DATA


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
    with pytest.raises(DataUnavailable, match=r"is not at .*planetoid/cora.npz"):
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
    with pytest.raises(DataUnavailable, match=r"is damaged .*test"):
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
