"""Citation graphs with their standard split: from ESBFLOW_DATA/planetoid/NAME.npz.

The split is that of Yang et al., "Revisiting Semi-Supervised Learning with Graph Embeddings", ICML 2016: 20 nodes a class
to train, 500 to validate, 1,000 to test. The publisher's files are Python pickles, which run code when they are read, so
they are not downloaded; docs/graph_networks.md shows how the .npz is made.
"""

from dataclasses import dataclass

import numpy as np

from esbflow.errors import BadValue, reason
from esbflow.suggest import no_such
from esbflow.training.data import DataUnavailable, data_folder

GRAPHS = ("cora", "citeseer")
_ARRAYS = ("features", "labels", "edges", "train", "val", "test")


@dataclass(frozen=True, eq=False)
class GraphData:
    """features float32 (n, f), each row divided by its sum (rows of zeros stay); labels int64 (n,), -1 for none; edges int64
    (e, 2); train, val, test: int64 node numbers."""

    name: str
    features: np.ndarray
    labels: np.ndarray
    edges: np.ndarray
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    @property
    def classes(self) -> int:
        """How many classes nodes have."""
        return int(self.labels.max()) + 1


def load_graph_data(name: str) -> GraphData:
    """A citation graph by name.

    Raises
    ------
    ValueError
        for an unknown name.
    DataUnavailable
        if the file is not under ESBFLOW_DATA, or is damaged.
    """
    if name not in GRAPHS:
        raise BadValue(no_such("graph", name, GRAPHS))
    folder = data_folder()
    path = folder / "planetoid" / f"{name}.npz" if folder else None
    if path is None or not path.exists():
        where = path if path else f"ESBFLOW_DATA (not set)/planetoid/{name}.npz"
        raise DataUnavailable(f"the graph {name} is not at {where}; docs/graph_networks.md says how to make that file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _ARRAYS}
    except Exception as error:  # whatever NumPy raises on a damaged archive
        raise DataUnavailable(f"{path} is damaged ({reason(error)}); remove it and make it again") from None
    try:
        return checked(name, **arrays)
    except ValueError as error:
        raise DataUnavailable(f"{path} is damaged: {error}; remove it and make it again") from None


def checked(name: str, features, labels, edges, train, val, test) -> GraphData:
    """A GraphData of the arrays, features normalised.

    Raises
    ------
    ValueError
        if shapes do not fit, features are not finite, a node does not exist, or a part of the split is empty, has a node
        without a label or shares a node with another.
    """
    features = np.asarray(features, dtype=np.float32)
    labels, edges = np.asarray(labels), np.asarray(edges).reshape(-1, 2)
    if features.ndim != 2 or 0 in features.shape:
        raise BadValue(f"features must have shape (nodes, words), not {features.shape}")
    nodes = len(features)
    if labels.shape != (nodes,) or labels.dtype.kind not in "iu":
        raise BadValue(f"labels must be {nodes} integers, one a node")
    if not np.isfinite(features).all():
        raise BadValue(f"the features of node {int(np.argwhere(~np.isfinite(features))[0, 0])} hold NaN or infinity")
    parts = {"edges": edges, "train": np.asarray(train), "val": np.asarray(val), "test": np.asarray(test)}
    for part, numbers in parts.items():
        if numbers.size and (numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= nodes):
            raise BadValue(f"{part} must hold node numbers from 0 to {nodes - 1}")
    for part in ("train", "val", "test"):
        numbers = parts[part]
        if numbers.ndim != 1 or not len(numbers):
            raise BadValue(f"the {part} part of the split is empty")
        if labels[numbers].min() < 0:
            raise BadValue(f"node {int(numbers[labels[numbers] < 0][0])} of {part} has no label")
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if len(np.intersect1d(parts[first], parts[second])):
            raise BadValue(f"{first} and {second} share nodes")
    total = features.sum(axis=1, keepdims=True)
    features = features / np.where(total == 0, 1, total)
    return GraphData(name, features, labels.astype(np.int64),
                     **{part: numbers.astype(np.int64) for part, numbers in parts.items()})
