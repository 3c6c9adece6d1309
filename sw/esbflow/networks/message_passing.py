"""What graph networks share: the graph as torch tensors, and places where stored tensors can be quantized."""

import warnings
from typing import ClassVar

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.quant.methods.sgquant import Rows

SPARSE_BELOW = 0.25
"""Share of non-zeros below which the input is kept sparse."""


class Topology:
    """An undirected graph with one self-loop a node.

    Parameters
    ----------
    edges : int64 (e, 2), pairs in any order; repeated ones and self-loops are dropped.
    nodes : how many there are; those without an edge keep their self-loop.

    Attributes
    ----------
    source, target : int64 (entries,), both directions of each edge and the self-loops, by ascending target.
    degree : int64 (nodes,), without the self-loop.
    inverse_root : float32 (nodes, 1), (degree + 1)**-0.5.
    rows, edge_rows : what rows of features and of attention coefficients are.

    Raises
    ------
    ValueError
        if an edge names a node that does not exist, or there are no nodes.
    """

    def __init__(self, edges, nodes: int):
        edges = torch.as_tensor(edges, dtype=torch.int64).reshape(-1, 2)
        if nodes < 1:
            raise BadValue(f"a graph needs at least one node, not {nodes}")
        if len(edges) and not (0 <= int(edges.min()) and int(edges.max()) < nodes):
            raise BadValue(f"an edge names node {int(edges.max() if edges.max() >= nodes else edges.min())}, "
                             f"but nodes are 0 to {nodes - 1}")
        loops = torch.arange(nodes).repeat(2, 1).T
        both = torch.cat([edges, edges.flip(1), loops])
        entries = torch.unique(both[:, 0] * nodes + both[:, 1])  # sorted by target, then source
        self.nodes = nodes
        self.target, self.source = entries // nodes, entries % nodes
        self.degree = torch.bincount(self.target, minlength=nodes) - 1
        self.inverse_root = (self.degree + 1).float().rsqrt()[:, None]
        self.rows = Rows(torch.arange(nodes), self.degree, nodes)
        self.edge_rows = Rows(self.target, self.degree[self.target], nodes)
        self._ones = torch.sparse_coo_tensor(torch.stack([self.target, self.source]), torch.ones(len(entries)),
                                             (nodes, nodes), is_coalesced=True, check_invariants=False)

    def add_neighbours(self, x: torch.Tensor) -> torch.Tensor:
        """(nodes, f) -> (nodes, f): the sum over each node and its neighbours; additions only."""
        return torch.sparse.mm(self._ones.to(x.dtype), x)

    def weigh_neighbours(self, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Weights (entries, 1), x (nodes, f) -> (nodes, f): the weighted sum."""
        return torch.zeros_like(x).index_add(0, self.target, weights * x[self.source])

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """(entries, 1) -> (entries, 1): positive, and summing to one over what leads to each node."""
        largest = scores.new_full((self.nodes,), -torch.inf).scatter_reduce(0, self.target, scores[:, 0].detach(), "amax")
        grown = (scores - largest[self.target][:, None]).exp()
        total = grown.new_zeros(self.nodes, 1).index_add(0, self.target, grown)
        return grown / total[self.target]


class SparseRows:
    """A constant matrix (rows, columns) of few non-zeros, kept by rows and by columns for products both ways."""

    is_sparse = True

    def __init__(self, x: torch.Tensor):
        row, column = x.nonzero(as_tuple=True)
        self.shape, self.values = x.shape, x[row, column]
        self.by_columns = torch.argsort(column, stable=True)
        self._row, self._column = (_starts(row, x.shape[0]), column), (_starts(column, x.shape[1]), row[self.by_columns])
        with warnings.catch_warnings():  # torch says once that its compressed rows are young
            warnings.simplefilter("ignore", UserWarning)
            self.forward(self.values)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The matrix with these values at its non-zeros."""
        return torch.sparse_csr_tensor(*self._row, values, self.shape, check_invariants=False)

    def transposed(self, values: torch.Tensor) -> torch.Tensor:
        """The transposed matrix with such values of its entries, in their order."""
        return torch.sparse_csr_tensor(*self._column, values[self.by_columns], self.shape[::-1], check_invariants=False)

    def to_dense(self) -> torch.Tensor:
        """The matrix with all its zeros."""
        return self.forward(self.values).to_dense()

    def product(self, weight: torch.Tensor, dropout: float) -> torch.Tensor:
        """X @ weight.T, (rows, out); elements of X are dropped with probability `dropout`."""
        return _SparseProduct.apply(nn.functional.dropout(self.values, dropout), weight, self)


class _SparseProduct(torch.autograd.Function):
    """torch's own backward pass sorts the non-zeros again at each call."""

    @staticmethod
    def forward(ctx, values, weight, x):
        ctx.values, ctx.x = values, x
        return x.forward(values) @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        return None, (ctx.x.transposed(ctx.values) @ gradient).T, None


def _starts(index: torch.Tensor, count: int) -> torch.Tensor:
    starts = torch.zeros(count + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(index, minlength=count).cumsum(0)
    return starts


class GraphNetwork(nn.Module):
    """Base of networks that classify nodes. Everything is real until `quantize_graph_network` fills `quantizers`.

    POINTS names the stored tensors and the component that each is: "input", "combination", "aggregation" or "attention".
    PRODUCTS names the nn.Linear layers and the point that each reads. `engine` may hold, by a product's name, something
    that computes it from real features and `Rows` in integers (`esbflow.quant.citation_export`). `widths` are the columns
    of each stored tensor.
    """

    POINTS: ClassVar[dict] = {}
    PRODUCTS: ClassVar[dict] = {}
    dropout = 0.5

    def __init__(self):
        super().__init__()
        self.quantizers = nn.ModuleDict()
        self.engine = {}
        self.widths = {}

    def store(self, point: str, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """x as it is kept in memory: quantized, if there is a quantizer."""
        return self.quantizers[point](x, rows) if point in self.quantizers else x

    @torch.no_grad()
    def read(self, features: torch.Tensor, topology: Topology) -> torch.Tensor | SparseRows:
        """The input (nodes, f) as `forward` takes it: quantized once, and sparse where that pays.

        Raises
        ------
        ValueError
            if its shape is not the network's, or it holds NaN or infinity.
        """
        name, point = next(iter(self.PRODUCTS.items()))
        width = self.widths[point]
        if features.shape != (topology.nodes, width):
            raise BadValue(f"the network takes features of shape ({topology.nodes}, {width}), not {tuple(features.shape)}")
        if not torch.isfinite(features).all():
            raise BadValue("the features hold NaN or infinity")
        if name in self.engine:
            return features  # the engine's side quantizes it
        stored = self.store(point, features, topology.rows)
        share = float((stored != 0).float().mean()) if stored.numel() else 1.0
        return SparseRows(stored) if share < SPARSE_BELOW else stored

    def combine(self, name: str, x: torch.Tensor | SparseRows, rows: Rows) -> torch.Tensor:
        """The dense product `name` of x (nodes, in) -> (nodes, out), with dropout before it in training."""
        if name in self.engine:
            return self.engine[name](x, rows)
        point = self.PRODUCTS[name]
        if self.POINTS[point] != "input":  # read() has stored the input
            x = self.store(point, x, rows)
        layer = getattr(self, name)
        if not x.is_sparse:
            return layer(nn.functional.dropout(x, self.dropout, self.training))
        weight = layer.weight_quantizer(layer.weight) if hasattr(layer, "weight_quantizer") else layer.weight
        product = x.product(weight, self.dropout if self.training else 0.0)
        return product if layer.bias is None else product + layer.bias


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """A linear layer that starts as Glorot and Bengio (2010) have it, with a bias of zeros."""
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
