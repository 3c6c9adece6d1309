"""The integer graph: what a network computes, in integers. Every other part must agree with it bit for bit.

A graph is a list of nodes in execution order; each node names its inputs and produces one tensor of its own name.
Tensors are (channels, height, width) integers of a number format with one real-valued scale; a batch axis
comes first when it is executed. Weights are plain integers: the exporter has snapped them.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.numbers import Format

M_BITS, N_BITS, B_BITS, S_MAX = 12, 12, 40, 40
"""Widths of the requantizer's constants (signed) and the largest shift."""
M_LIMIT, B_LIMIT = (1 << M_BITS - 1) - 1, (1 << B_BITS - 1) - 1
"""The largest m (and n) and the largest b."""
LATER: Any = None
"""What a builder sets later; `validate` refuses a graph in which it is still missing."""


@dataclass(frozen=True, eq=False)
class Requantizer:
    """t = acc*m[c] + r*n[c] + b[c], then the output level nearest to t / 2**s[c], ties toward plus infinity.

    int64 arrays of shape (channels,): m and n signed 12 bit, b signed 40 bit, s in 0..40. n is zero without a residual.
    """

    m: np.ndarray
    b: np.ndarray
    s: np.ndarray
    n: np.ndarray

    @classmethod
    def pass_through(cls, channels: int) -> "Requantizer":
        """That of a layer whose sums are stored as they are."""
        one, zero = np.ones(channels, np.int64), np.zeros(channels, np.int64)
        return cls(m=one, b=zero, s=zero, n=zero)


@dataclass(frozen=True, eq=False)
class Node:
    """`name` is also the name of the tensor it makes, of `shape` (c, h, w), `format` and real `scale` of one step."""

    name: str
    inputs: tuple  # names of nodes
    shape: tuple
    format: Format
    scale: float


@dataclass(frozen=True, eq=False)
class Input(Node):
    """uint8 image (c, h, w) -> `table[c][value]`, a code of 8 bits or fewer where code 0 is real zero."""

    table: np.ndarray = LATER  # int64 (c, 256)


def zeros_behind(sizes, windows, reach, stride, padding) -> tuple[int, ...]:
    """Along each axis: how far `windows` of `reach` go beyond a map of `sizes` with `padding` before it.

    >>> zeros_behind((6, 6), (3, 2), (3, 3), (2, 2), (0, 0))
    (1, 0)
    """
    return tuple(max(0, (count - 1) * step + length - before - size)
                 for size, count, length, step, before in zip(sizes, windows, reach, stride, padding))


@dataclass(frozen=True, eq=False)
class Conv2d(Node):
    """acc = conv2d(inputs[0], weight); inputs[1], if given, is the residual r.

    padding : zeros before the first row and column. Behind the last there are as many as the node's shape asks for:
        often as many as before, but one more where a stride of two does not fit (`behind` counts them).
    """

    weight: np.ndarray = LATER  # int64 (out, in/groups, kernel_y, kernel_x)
    weight_format: Format = LATER
    weight_scale: np.ndarray = LATER  # float64 (out,), kept for reports
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)
    dilation: tuple = (1, 1)
    groups: int = 1
    requantizer: Requantizer = LATER

    def behind(self, source: tuple) -> tuple[int, ...]:
        """Rows and columns of zeros behind an input of shape (c, h, w) that windows reach."""
        reach = tuple((k - 1) * d + 1 for k, d in zip(self.weight.shape[2:], self.dilation))
        return zeros_behind(source[1:], self.shape[1:], reach, self.stride, self.padding)


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """acc = weight @ flatten(inputs[0]), flattened as (c, h, w); the result has shape (out, 1, 1)."""

    weight: np.ndarray = LATER  # int64 (out, c*h*w)
    weight_format: Format = LATER
    weight_scale: np.ndarray = LATER
    requantizer: Requantizer = LATER


@dataclass(frozen=True, eq=False)
class MaxPool2d(Node):
    """Maximum of decoded values; padding never wins.

    padding : before the first row and column. Behind the last there is as much as the node's shape asks for, so that it says
        whether ceil_mode was used, or "same" padding; each window begins in the map.
    """

    kernel: tuple = (2, 2)
    stride: tuple = (2, 2)
    padding: tuple = (0, 0)

    def behind(self, source: tuple) -> tuple[int, ...]:
        """Rows and columns behind an input of shape (c, h, w) that windows reach."""
        return zeros_behind(source[1:], self.shape[1:], self.kernel, self.stride, self.padding)


@dataclass(frozen=True, eq=False)
class AvgPool2d(Node):
    """acc = sum over the window, padding counts as zero; 1/count is in the requantizer's m and s."""

    kernel: tuple = (2, 2)
    stride: tuple = (2, 2)
    padding: tuple = (0, 0)
    requantizer: Requantizer = LATER


@dataclass(frozen=True, eq=False)
class Add(Node):
    """acc = inputs[0], r = inputs[1]."""

    requantizer: Requantizer = LATER


@dataclass(frozen=True, eq=False)
class Requantize(Node):
    """acc = inputs[0]: change of format or scale, ReLU, or a batch norm that nothing could absorb."""

    requantizer: Requantizer = LATER


@dataclass(frozen=True, eq=False)
class Concat(Node):
    """Channels of all inputs in order; they share format and scale."""


@dataclass(frozen=True, eq=False)
class Upsample(Node):
    """Nearest neighbour, by integer factors."""

    factor: tuple = (2, 2)


LOOKUP_ENTRIES = 256
"""Of a Lookup's table: one for each integer of 8 bits."""


@dataclass(frozen=True, eq=False)
class Lookup(Node):
    """table[x & 255]: any function of one integer of up to 8 bits, the same for all channels. An entry that no level of the
    input asks for is a level of the format like the others.

    A negative x finds its entry in the upper half of the table, as a two's complement.
    """

    table: np.ndarray = LATER  # int64 (256,), levels of `format`

    def rises(self, form: Format) -> bool:
        """Whether no larger level of `form` becomes a smaller entry, so that maxima before and after it are the same."""
        return not (np.diff(self.table[form.levels & LOOKUP_ENTRIES - 1]) < 0).any()


OPERATORS = {cls.__name__: cls for cls in (
    Input, Conv2d, Linear, MaxPool2d, AvgPool2d, Add, Requantize, Concat, Upsample, Lookup)}


@dataclass(eq=False)
class Graph:
    """Nodes in execution order; the first is the Input. The last is the output, unless `outputs` names several.

    `info` holds strings and numbers for reports (recipe, accuracy, class names). `outputs` is {name of an output: name of
    its node}, of two or more, in order.
    """

    name: str
    nodes: list = field(default_factory=list)
    info: dict = field(default_factory=dict)
    outputs: dict = field(default_factory=dict)

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node named {name!r} in graph {self.name!r}")

    def unused(self, name: str) -> str:
        """`name`, with underscores behind it if a node has it already."""
        known = {node.name for node in self.nodes}
        while name in known:
            name += "_"
        return name

    @property
    def input(self) -> Input:
        """The first node."""
        return self.nodes[0]

    @property
    def output(self) -> Node:
        """The only output.

        Raises
        ------
        GraphError
            if there are several.
        """
        if self.outputs:
            raise GraphError(f"graph {self.name} has {len(self.outputs)} outputs, {', '.join(self.outputs)}, where one is "
                             "expected")
        return self.nodes[-1]

    @property
    def results(self) -> dict:
        """{name: Node} of the output, or of all of several."""
        return {name: self[node] for name, node in (self.outputs or {self.nodes[-1].name: self.nodes[-1].name}).items()}

    @property
    def ends(self) -> set:
        """Names of the nodes that are outputs."""
        return set(self.outputs.values()) or {self.nodes[-1].name}
