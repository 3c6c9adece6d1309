"""SGQuant: low-bit node features of graph neural networks, by component, layer and node degree.

Source: Feng et al., "SGQuant: Squeezing the Last Bit on Graph Neural Networks with Specialized Quantization", ICTAI 2020,
and its published code. Departs from the code: the range is that of the tensor, the bucket or the node itself, not the
mean over nodes, which clips the large rows; networks are trained with the quantizers in place, not only evaluated.
"""

import copy
import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.quant.base import check_finite, straight_through
from esbflow.quant.layers import QuantLinear
from esbflow.quant.methods.registry import weight_quantizer
from esbflow.quant.recipe import pairs
from esbflow.suggest import nearest

RANGES = ("tensor", "bucket", "node")
SPLITS = (4, 8, 16)
"""Degrees at which the next bucket of nodes begins."""
FULL = 32
"""Bits that mean float32: not quantized."""
RANGE_BITS = 2 * 32
"""A range is stored as two float32: scale and lowest value."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What the rows of a tensor are: `node` (rows,) int64 that each belongs to, that node's `degree` (rows,) without a
    self-loop, and how many `nodes` there are. Rows of features are nodes; rows of attention are edges, which belong to
    the node that they lead to."""

    node: torch.Tensor
    degree: torch.Tensor
    nodes: int


@dataclass(frozen=True, eq=False)
class Codes:
    """`codes` int64 (rows, features); real value = codes * scale + low, both float64 (rows, 1)."""

    codes: torch.Tensor
    scale: torch.Tensor
    low: torch.Tensor

    def values(self) -> torch.Tensor:
        """The real values that the codes stand for."""
        return self.codes * self.scale + self.low


def check_bits(bits, splits=SPLITS) -> None:
    """ValueError unless `bits` is 1..8 or 32, or a tuple with one of them for each degree bucket."""
    for width in bits if isinstance(bits, tuple) else (bits,):
        if isinstance(width, bool) or not isinstance(width, int) or not (1 <= width <= 8 or width == FULL):
            raise BadValue(f"features have 1 to 8 bits, or 32 for real numbers, not {width!r}")
    if isinstance(bits, tuple) and len(bits) != len(splits) + 1:
        raise BadValue(f"{len(splits)} split degrees make {len(splits) + 1} buckets, but {len(bits)} widths are given")
    if isinstance(bits, tuple) and FULL in bits and set(bits) != {FULL}:
        raise BadValue("either all degree buckets are real numbers (32 bits) or none is")


class FeatureQuantizer(nn.Module):
    """x -> low + scale * code, code = round((x - low) / scale) in 0 .. 2**bits - 1, scale = (high - low) / (2**bits - 1).

    Parameters
    ----------
    bits : 1..8 or 32 (real numbers), or a tuple of them, one for each degree bucket (topology-aware).
    ranges : "tensor", "bucket" or "node": what shares low and high, the extremes of the values themselves.
    splits : ascending degrees; a node's bucket is the number of them that its degree has reached, so that a degree that
        was never seen falls into the nearest bucket.
    name : for error messages.

    Shapes: x (rows, features) -> same. Gradient: straight through. Values that are all the same have scale 1 and code 0 and
    are exact; so are features of two values at 1 bit, such as the rows of a bag of words.

    Raises
    ------
    ValueError
        if bits, ranges or splits are out of range, or x holds NaN or infinity.

    >>> rows = Rows(torch.arange(2), torch.zeros(2, dtype=torch.int64), 2)
    >>> FeatureQuantizer(2, "node").codes(torch.tensor([[0.0, 1.0, 3.0], [5.0, 5.0, 5.0]]), rows).codes
    tensor([[0, 1, 3],
            [0, 0, 0]])
    """

    splits: torch.Tensor

    def __init__(self, bits, ranges: str = "tensor", splits: tuple = SPLITS, name: str = "features"):
        super().__init__()
        check_bits(bits, splits)
        if ranges not in RANGES:
            raise BadValue(f"ranges must be one of {', '.join(RANGES)}, not {ranges!r}")
        if list(splits) != sorted(set(splits)):
            raise BadValue(f"split degrees must ascend, not {splits}")
        self.bits, self.ranges, self.name = bits, ranges, name
        self.register_buffer("splits", torch.tensor(splits, dtype=torch.int64), persistent=False)

    @property
    def real(self) -> bool:
        """Whether nothing is quantized."""
        return (self.bits[0] if isinstance(self.bits, tuple) else self.bits) == FULL

    @property
    def widest(self) -> int:
        """Bits of the group of nodes that has most."""
        return max(self.bits) if isinstance(self.bits, tuple) else self.bits

    def buckets(self, rows: Rows) -> torch.Tensor:
        """(rows,) the degree bucket of each row."""
        return torch.bucketize(rows.degree, self.splits, right=True)

    def row_bits(self, rows: Rows) -> torch.Tensor:
        """(rows,) bits of each row's codes."""
        if isinstance(self.bits, tuple):
            return torch.tensor(self.bits)[self.buckets(rows)]
        return torch.full_like(rows.degree, self.bits)

    @torch.no_grad()
    def codes(self, x: torch.Tensor, rows: Rows) -> Codes:
        """The integers that are stored, and their ranges."""
        if self.real:
            raise BadValue(f"{self.name} is not quantized, so it has no codes")
        check_finite(x, self.name)
        x = x.double()
        low, high = self._range(x, rows)
        steps = (torch.exp2(self.row_bits(rows).double()) - 1)[:, None]
        scale = (high - low) / steps
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        codes = torch.minimum(torch.floor((x - low) / scale + 0.5), steps)
        return Codes(codes.to(torch.int64), scale, low)

    def forward(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        if self.real:
            return x
        return straight_through(x, self.codes(x, rows).values().to(x.dtype))

    def _range(self, x, rows):
        """low, high (rows, 1) float64 of what each row shares its range with."""
        if x.numel() == 0:
            empty = x.new_zeros(len(x), 1)
            return empty, empty
        low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
        if self.ranges == "tensor" and not isinstance(self.bits, tuple):
            return low.min().expand_as(low), high.max().expand_as(high)
        group = rows.node if self.ranges == "node" else self.buckets(rows)
        groups = rows.nodes if self.ranges == "node" else len(self.splits) + 1
        if self.ranges == "tensor":
            group = torch.zeros_like(group)
        lows = low.new_full((groups,), torch.inf).scatter_reduce(0, group, low[:, 0], "amin")
        highs = high.new_full((groups,), -torch.inf).scatter_reduce(0, group, high[:, 0], "amax")
        return lows[group][:, None], highs[group][:, None]

    def stored_bits(self, rows: Rows, features: int) -> int:
        """Bits of a tensor (rows, features): codes, and one range for each tensor, non-empty bucket or node."""
        if self.real:
            return FULL * len(rows.node) * features
        shared = {"tensor": lambda: min(1, len(rows.node)), "bucket": lambda: len(self.buckets(rows).unique()),
                  "node": lambda: len(rows.node.unique())}[self.ranges]()
        return int(self.row_bits(rows).sum()) * features + RANGE_BITS * shared

    def extra_repr(self) -> str:
        return f"{self.bits} bits, range of each {self.ranges}"


@dataclass(frozen=True)
class GraphRecipe:
    """How a graph network is quantized. Widths are bits, or a tuple of four: one for each degree bucket.

    Parameters
    ----------
    weights : of all dense products, as `esbflow.quant.methods.registry` reads them; None leaves them real.
    input_bits : of the network's input; 1 is exact for rows of two values. Its range is each node's own.
    combination : of features that enter a dense product.
    aggregation : of features that neighbours read.
    attention : of attention coefficients, one an edge.
    overrides : {name pattern: bits}, or such pairs, the first match counts (layer-wise); names as in the network's POINTS.
    ranges : "tensor", "bucket" or "node".
    splits : the degrees between buckets.

    Raises
    ------
    ValueError
        for an unknown width, method or range, naming it.

    >>> GraphRecipe(combination=4, attention=2, overrides=(("layer2_*", (8, 4, 4, 2)),)).bits("layer2_input", "combination")
    (8, 4, 4, 2)
    """

    weights: str | None = "esb4.1"
    input_bits: int = 1
    combination: int | tuple = 4
    aggregation: int | tuple = 4
    attention: int | tuple = 4
    overrides: tuple = ()
    ranges: str = "tensor"
    splits: tuple = SPLITS

    def __post_init__(self):
        object.__setattr__(self, "overrides", pairs("overrides", self.overrides))
        for bits in (self.input_bits, self.combination, self.aggregation, self.attention, *(b for _, b in self.overrides)):
            FeatureQuantizer(bits, self.ranges, self.splits)
        if self.weights is not None:
            weight_quantizer(self.weights)

    @classmethod
    def uniform(cls, bits, weights: str | None = "esb4.1", **fields) -> "GraphRecipe":
        """The same width for all features but the input."""
        return cls(weights, combination=bits, aggregation=bits, attention=bits, **fields)

    def bits(self, name: str, component: str):
        """Bits of the tensor `name`."""
        if component == "input":
            return self.input_bits
        matched = [bits for pattern, bits in self.overrides if fnmatch.fnmatch(name, pattern)]
        return matched[0] if matched else getattr(self, component)


def quantize_graph_network(network: Any, recipe: GraphRecipe) -> nn.Module:
    """A copy of a `networks.message_passing.GraphNetwork` with quantizers at all its points and in its dense products.

    Raises
    ------
    ValueError
        if an override matches no tensor of the network.
    """
    for pattern, _ in recipe.overrides:
        if not any(fnmatch.fnmatch(name, pattern) for name in network.POINTS):
            raise BadValue(f"no tensor matches {pattern!r}; the network stores {', '.join(network.POINTS)}"
                           f"{nearest(pattern, network.POINTS)}")
    network = copy.deepcopy(network)
    for name, component in network.POINTS.items():
        ranges = "node" if component == "input" else recipe.ranges
        network.quantizers[name] = FeatureQuantizer(recipe.bits(name, component), ranges, recipe.splits, name)
    if recipe.weights is not None:
        for name in network.PRODUCTS:
            quantizer = weight_quantizer(recipe.weights, name=f"{name}: weight")
            setattr(network, name, QuantLinear.from_float(getattr(network, name), quantizer))
    return network


def memory(network: Any, topology) -> dict:
    """Bytes of what inference stores, as quantized and in float32 ("..._float"): input, features, attention, weights.

    Tensors are counted dense; the output's scores are not stored. Biases (float32) belong to the weights.
    """
    counted = {kind: [0.0, 0.0] for kind in ("input", "features", "attention", "weights")}
    for name, component in network.POINTS.items():
        rows = topology.edge_rows if component == "attention" else topology.rows
        width = network.widths[name]
        kind = component if component in ("input", "attention") else "features"
        quantizer = network.quantizers[name] if name in network.quantizers else FeatureQuantizer(FULL)
        counted[kind][0] += quantizer.stored_bits(rows, width) / 8
        counted[kind][1] += FULL * len(rows.node) * width / 8
    quantized = {}
    for name in network.PRODUCTS:
        layer = getattr(network, name)
        if hasattr(layer, "weight_quantizer"):
            quantized[id(layer.weight)] = layer.weight_quantizer.stored_bits(layer.weight)
    for parameter in network.parameters():
        counted["weights"][0] += quantized.get(id(parameter), FULL * parameter.numel()) / 8
        counted["weights"][1] += FULL * parameter.numel() / 8
    result = {}
    for kind, (now, real) in counted.items():
        result[kind], result[f"{kind}_float"] = round(now), round(real)
    result["total"] = round(sum(now for now, _ in counted.values()))
    result["total_float"] = round(sum(real for _, real in counted.values()))
    return result


def feature_bits(network: Any, topology) -> float:
    """Bits a value, without ranges, on average over what is stored between input and output, attention included."""
    bits = values = 0
    for name, component in network.POINTS.items():
        if component != "input":
            rows = topology.edge_rows if component == "attention" else topology.rows
            bits += int(network.quantizers[name].row_bits(rows).sum()) * network.widths[name]
            values += len(rows.node) * network.widths[name]
    return round(bits / values, 2)
