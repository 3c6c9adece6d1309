"""Operators that have no exact integer form: the host computes them in float64, between two programs of the engine.

A tensor on either side is integers, as everywhere in the graph. The real values `integer * scale` go in, and the level that
is nearest to result / scale is stored. So a graph with such nodes has one meaning on every backend; esbflow.split shares it
out.
"""

from dataclasses import dataclass

import numpy as np

from esbflow.graph import ir
from esbflow.graph.errors import GraphError


@dataclass(frozen=True, eq=False)
class Host(ir.Node):
    """A node that the host computes. `low` and `high`, real, clip its result: a ReLU behind it, for one."""

    low: float = -np.inf
    high: float = np.inf

    WHY = "has no exact integer form"
    """Why the engine does not compute it, as reports say it."""

    def shape_of(self, *shapes: tuple) -> tuple[int, int, int]:
        """(c, h, w) of the result for inputs of such shapes; raises ValueError for shapes that do not fit."""
        raise NotImplementedError

    def real(self, *values: np.ndarray) -> np.ndarray:
        """float64 (n, c, h, w) of real inputs (n, c, h, w)."""
        raise NotImplementedError

    def reach(self, *largest: float) -> float:
        """A bound of the result's magnitude, for inputs of such magnitudes."""
        raise NotImplementedError

    def stored(self, *values: np.ndarray) -> np.ndarray:
        """int64 levels of real inputs."""
        return self.format.nearest(np.clip(self.real(*values), self.low, self.high) / self.scale)


@dataclass(frozen=True, eq=False)
class Product(Host):
    """inputs[0] * inputs[1]; the second may have one value a channel, as the gate of squeeze-and-excitation."""

    def shape_of(self, first, second):
        if second not in (first, (first[0], 1, 1)):
            raise GraphError(f"shapes {first} and {second} are not the same, nor is the second one value a channel")
        return first

    def real(self, first, second):
        return first * second

    def reach(self, first, second):
        return first * second


@dataclass(frozen=True, eq=False)
class Softmax(Host):
    """Over the channels of each pixel."""

    def shape_of(self, first):
        return first

    def real(self, x):
        powers = np.exp(x - x.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def reach(self, first):
        return 1.0


@dataclass(frozen=True, eq=False)
class Bilinear(Host):
    """Each side `factor` (y, x) times as long, interpolated between the two nearest pixels of each axis.

    corners : whether the pixels at the corners keep their places (torch's align_corners); else pixels are areas.
    """

    factor: tuple = (2, 2)
    corners: bool = False

    def shape_of(self, first):
        return (first[0], *(size * factor for size, factor in zip(first[1:], self.factor)))

    def real(self, x):
        for axis, factor in zip((2, 3), self.factor):
            size, count = x.shape[axis], x.shape[axis] * factor
            places = np.arange(count, dtype=np.float64)
            places = places * (size - 1) / max(1, count - 1) if self.corners else (places + 0.5) / factor - 0.5
            places = np.clip(places, 0, size - 1)
            before = np.minimum(places.astype(np.int64), max(0, size - 2))
            share = (places - before).reshape([-1 if i == axis else 1 for i in range(4)])
            after = np.minimum(before + 1, size - 1)
            x = np.take(x, before, axis) * (1 - share) + np.take(x, after, axis) * share
        return x

    def reach(self, first):
        return first


@dataclass(frozen=True, eq=False)
class ConvTranspose2d(Host):
    """A transposed convolution with real weights (in, out / groups, kernel_y, kernel_x) and bias (out,)."""

    weight: np.ndarray = ir.LATER
    bias: np.ndarray = ir.LATER
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)
    more: tuple = (0, 0)  # rows and columns at the end: torch's output_padding
    dilation: tuple = (1, 1)
    groups: int = 1

    def _reach(self) -> list:
        return [(k - 1) * d + 1 for k, d in zip(self.weight.shape[2:], self.dilation)]

    def shape_of(self, first):
        if first[0] != len(self.weight) or len(self.bias) != self.weight.shape[1] * self.groups:
            raise GraphError(f"{first[0]} channels do not fit weights of shape {self.weight.shape} in {self.groups} groups")
        return (len(self.bias), *((size - 1) * s - 2 * p + k + m for size, s, p, k, m in zip(
            first[1:], self.stride, self.padding, self._reach(), self.more)))

    def real(self, x):
        n, channels, height, width = x.shape
        out, (sy, sx), (dy, dx), (py, px) = self.shape_of(x.shape[1:]), self.stride, self.dilation, self.padding
        whole = np.zeros((n, out[0], out[1] + 2 * py + sy, out[2] + 2 * px + sx))
        weight = self.weight.astype(np.float64)
        inside, made = channels // self.groups, out[0] // self.groups
        for g in range(self.groups):
            source = x[:, g * inside:(g + 1) * inside]
            for ky in range(weight.shape[2]):
                for kx in range(weight.shape[3]):
                    part = np.einsum("nihw,io->nohw", source, weight[g * inside:(g + 1) * inside, :, ky, kx])
                    whole[:, g * made:(g + 1) * made, ky * dy:ky * dy + (height - 1) * sy + 1:sy,
                          kx * dx:kx * dx + (width - 1) * sx + 1:sx] += part
        return whole[:, :, py:py + out[1], px:px + out[2]] + self.bias.astype(np.float64).reshape(1, -1, 1, 1)

    def reach(self, first):
        sums = np.abs(self.weight.astype(np.float64)).sum(axis=(0, 2, 3)).max()
        return float(first * sums + np.abs(self.bias).max())


@dataclass(frozen=True, eq=False)
class DepthToSpace(Host):
    """Channels to pixels, integers as they are: each pixel becomes a square of `block` x `block`.

    crd : the places of a square are the fastest index of a channel, as in torch's pixel_shuffle and ONNX's mode CRD; else
        the slowest (DCR).
    """

    block: int = 2
    crd: bool = False

    WHY = "moves channels into pixels, which the engine does not"

    def shape_of(self, first):
        if first[0] % self.block ** 2:
            raise GraphError(f"{first[0]} channels are not squares of {self.block} x {self.block} pixels")
        return first[0] // self.block ** 2, first[1] * self.block, first[2] * self.block

    def real(self, x):
        n, _, height, width = x.shape
        channels, b = self.shape_of(x.shape[1:])[0], self.block
        if self.crd:
            parts = x.reshape(n, channels, b, b, height, width).transpose(0, 1, 4, 2, 5, 3)
        else:
            parts = x.reshape(n, b, b, channels, height, width).transpose(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, channels, height * b, width * b)

    def reach(self, first):
        return first


@dataclass(frozen=True, eq=False)
class SpaceToDepth(Host):
    """The inverse of DepthToSpace: each square of `block` x `block` pixels becomes one, of so many times the channels."""

    block: int = 2
    crd: bool = False

    WHY = "moves pixels into channels, which the engine does not"

    def shape_of(self, first):
        if first[1] % self.block or first[2] % self.block:
            raise GraphError(f"a map of {first[1:]} has no squares of {self.block} x {self.block} pixels")
        return first[0] * self.block ** 2, first[1] // self.block, first[2] // self.block

    def real(self, x):
        n, channels, height, width = x.shape
        b = self.block
        parts = x.reshape(n, channels, height // b, b, width // b, b)
        parts = parts.transpose((0, 1, 3, 5, 2, 4) if self.crd else (0, 3, 5, 1, 2, 4))
        return parts.reshape(n, channels * b * b, height // b, width // b)

    def reach(self, first):
        return first


HOST_OPERATORS = {cls.__name__: cls for cls in (Product, Softmax, Bilinear, ConvTranspose2d, DepthToSpace, SpaceToDepth)}


def check(node: Host, where: str, *inputs: ir.Node) -> list:
    """The shapes that a host node may have; raises GraphError for inputs that do not fit it."""
    try:
        return [tuple(node.shape_of(*(tuple(other.shape) for other in inputs)))]
    except (TypeError, ValueError) as error:
        raise GraphError(f"{where}: its inputs do not fit it: {error}") from None


def run(node: Host, graph: ir.Graph, *values: np.ndarray) -> np.ndarray:
    """int64 (n, c, h, w) of a host node, from the integers of its inputs."""
    return node.stored(*(value * graph[name].scale for name, value in zip(node.inputs, values)))
