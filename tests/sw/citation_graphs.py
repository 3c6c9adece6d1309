"""Small graphs with features and labels, as tests of graph networks need them."""

import os

import numpy as np
import pytest

from esbflow.networks.agnn import AGNN
from esbflow.networks.gcn import GCN
from esbflow.studies.citation_data import GRAPHS, checked

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
