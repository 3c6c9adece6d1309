"""ALQ: weights of small groups as sums of +-coordinates, whose number differs from group to group, down to none.

Source: Qu et al., "Adaptive Loss-aware Quantization for Multi-bit Networks", CVPR 2020, and its released code
(zqu1992/ALQ). Here are the representation and its start; `esbflow.training.alq` optimizes it for the loss and prunes.
"""

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.numbers import Signed
from esbflow.quant.base import check_finite
from esbflow.quant.methods.lqnets import combinations, encode
from esbflow.quant.weights import WeightQuantizer

MOST_PLANES = 8
ENOUGH = 1e-6
"""A group gets no further plane once its relative squared error is below this."""
RIDGE = 1e-6
"""Relative to the mean of the normal matrix' diagonal."""


def parts_of(grouping: str) -> int | None:
    """m of the text "subm"; None for the other groupings.

    Raises
    ------
    ValueError
        if the text is no grouping.
    """
    if grouping in ("kernel", "channel", "pixel"):
        return None
    if grouping.startswith("sub") and grouping[3:].isdigit() and int(grouping[3:]) >= 1:
        return int(grouping[3:])
    raise BadValue(f"a grouping is kernel, channel, pixel or sub2 (sub3, ...), not {grouping!r}")


def group_view(w: torch.Tensor, grouping: str) -> torch.Tensor:
    """(out, ...) -> (groups, n), each group's weights in a row.

    "channel": a filter; "kernel": a filter's weights on one input channel; "pixel": a filter's weights at one tap;
    "subm": m equal parts of a filter (the largest divisor of its size that is not above m). Linear layers and 1x1
    kernels have no kernels: "kernel" is "channel" there, and so is "pixel" for linear layers.
    """
    out = len(w)
    if w.dim() > 2 and grouping == "kernel" and w[0, 0].numel() > 1:
        return w.reshape(out * w.shape[1], -1)
    if w.dim() > 2 and grouping == "pixel":
        return w.movedim(1, -1).reshape(-1, w.shape[1])
    size, parts = w[0].numel(), parts_of(grouping) or 1
    while size % parts:
        parts -= 1
    return w.reshape(out * parts, -1)


def from_groups(groups: torch.Tensor, shape: torch.Size, grouping: str) -> torch.Tensor:
    """The inverse of `group_view`: (groups, n) -> (out, ...)."""
    if len(shape) > 2 and grouping == "pixel":
        return groups.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    return groups.reshape(shape)


def solve(target: torch.Tensor, codes: torch.Tensor, signs: torch.Tensor, alive: torch.Tensor,
          weight: torch.Tensor | None = None, present: torch.Tensor | None = None) -> torch.Tensor:
    """Coordinates of least weighted squared error for given planes: (B^T H B)^-1 B^T H target for each group.

    Parameters
    ----------
    target : (g, n). codes : (g, n) index into signs. signs : (2**I, I) of +-1. alive : (g, I), which planes there are.
    weight : (g, n), H's diagonal, or None for ones. present : (g, I) coordinates to which the ridge draws, or None for 0.

    Returns (g, I), zero where not alive. Only sums per code are formed, not planes of the tensor's size.
    """
    weight = torch.ones_like(target) if weight is None else weight
    total = torch.zeros(2, len(target), len(signs), dtype=torch.float64, device=target.device)
    total[0].scatter_add_(1, codes, weight.double())
    total[1].scatter_add_(1, codes, (weight * target).double())
    signs, here = signs.double(), alive.double()
    normal = torch.einsum("gc,ci,cj->gij", total[0], signs, signs) * here[:, :, None] * here[:, None, :]
    right = total[1] @ signs * here
    # A duplicate plane makes the matrix singular; the ridge shares the coordinate between the two.
    ridge = RIDGE * normal.diagonal(dim1=1, dim2=2).amax(dim=1, keepdim=True).clamp(min=1e-30)
    right = right + (ridge * present.double() * here if present is not None else 0)
    normal = normal + torch.diag_embed(torch.where(alive, ridge, torch.ones_like(right)))
    return (torch.linalg.solve(normal, right) * here).to(target.dtype)


class ALQQuantizer(WeightQuantizer):
    """Weights of each group to sums of +-coordinates, with as many planes as pruning has left the group.

    Parameters
    ----------
    planes : 1..8, the most planes of a group; each starts with as many as its weights need.
    grouping : "kernel", "channel", "pixel" or "subm"; see `group_view`.
    name : for error messages.

    State (g groups of n weights, I planes), made by `prepare`:
    codes : uint8 (g, n), the sign planes; bit I-1-i of a code is set where plane i is +1.
    coordinates : parameter (g, I), zero where pruned. alive : bool (g, I).

    The values are what codes and coordinates say, whatever w is. Gradients: straight through to w (so that `weight.grad`
    is the loss' gradient at the quantized weights), and its sum by plane to the coordinates. In training mode with
    `shadow` set (the default), each forward pass first moves every weight's code to the level nearest to w: training
    with shadow weights, as published for the last stage. For the engine values are snapped to 8-bit integers with a
    scale an output channel.

    Raises
    ------
    ValueError
        for another number of planes or grouping, or if w holds NaN or infinity.
    """

    grid = False
    signs: torch.Tensor
    codes: torch.Tensor
    alive: torch.Tensor

    def __init__(self, planes: int, grouping: str = "kernel", name: str = "weight"):
        if not 1 <= planes <= MOST_PLANES:
            raise BadValue(f"ALQ starts with 1 to {MOST_PLANES} planes, not {planes}")
        parts_of(grouping)
        super().__init__(Signed(8), True, name)
        self.planes = planes
        self.grouping = grouping
        self.shadow = True
        self.register_buffer("signs", combinations(planes, -1).float(), persistent=False)

    @torch.no_grad()
    def prepare(self, w: torch.Tensor) -> None:
        """Structured sketching: plane by plane the signs of what is left, all coordinates fitted anew each time."""
        check_finite(w, self.name)
        groups = self.split(w)
        size = groups.square().sum(dim=1)
        codes = torch.zeros(groups.shape, dtype=torch.int64, device=w.device)
        alive = torch.zeros(len(groups), self.planes, dtype=torch.bool, device=w.device)
        coordinates = torch.zeros(alive.shape, dtype=w.dtype, device=w.device)
        self.residuals = [float(size.sum())]
        left = groups
        for i in range(self.planes):
            alive[:, i] = left.square().sum(dim=1) > ENOUGH * size
            codes += (left >= 0).long() * alive[:, i:i + 1] << self.planes - 1 - i
            coordinates = solve(groups, codes, self.signs, alive)
            left = groups - (coordinates @ self.signs.to(w.dtype).T).gather(1, codes)
            self.residuals.append(float(left.square().sum()))
        self.register_buffer("codes", codes.to(torch.uint8))
        self.register_buffer("alive", alive)
        self.coordinates = nn.Parameter(coordinates)
        self.flip()
        self._sort()

    def split(self, w: torch.Tensor) -> torch.Tensor:
        """(out, ...) -> (groups, n)."""
        return group_view(w, self.grouping)

    def levels(self) -> torch.Tensor:
        """(groups, 2**I): what each code stands for."""
        return (self.coordinates * self.alive) @ self.signs.to(self.coordinates.dtype).T

    @torch.no_grad()
    def assign(self, targets: torch.Tensor) -> None:
        """Give each weight the code whose level is nearest to its target (groups, n)."""
        index = encode(targets.detach(), self.coordinates * self.alive, self.signs)
        self.codes.copy_(index & self._bits(self.alive))

    @torch.no_grad()
    def refit(self, targets: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Coordinates of least (weighted) squared error to targets (groups, n) for the present codes; none negative."""
        self.coordinates.copy_(solve(targets, self.codes.long(), self.signs, self.alive, weight, self.coordinates))
        self.flip()

    @torch.no_grad()
    def flip(self) -> None:
        """Turn the signs of planes with negative coordinates, and the coordinates with them; no value changes."""
        negative = self.coordinates < 0
        self.codes.bitwise_xor_(self._bits(negative & self.alive).to(torch.uint8))
        self.coordinates.abs_().mul_(self.alive)

    @torch.no_grad()
    def remove(self, planes: torch.Tensor) -> None:
        """Prune: `planes` is bool (groups, I)."""
        self.alive.logical_and_(~planes)
        self.coordinates.mul_(self.alive)
        self.codes.bitwise_and_(self._bits(self.alive).to(torch.uint8))

    def _bits(self, planes: torch.Tensor) -> torch.Tensor:
        """Bool (groups, I) -> int64 (groups, 1), the codes' bits of these planes."""
        places = torch.arange(self.planes - 1, -1, -1, device=planes.device)
        return (planes.long() << places).sum(dim=1, keepdim=True)

    def _sort(self) -> None:
        """Planes in order of falling coordinates."""
        order = self.coordinates.argsort(dim=1, descending=True, stable=True)
        codes = torch.zeros_like(self.codes)
        for i in range(self.planes):
            codes |= (self.codes >> (self.planes - 1 - order[:, i:i + 1]).to(torch.uint8) & 1) << self.planes - 1 - i
        self.codes.copy_(codes)
        self.coordinates.copy_(self.coordinates.gather(1, order))
        self.alive.copy_(self.alive.gather(1, order))

    def values(self, w: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            check_finite(w, self.name)
            if self.training and self.shadow:
                self.assign(self.split(w))
        values = self.levels().gather(1, self.codes.long())
        # w - w is zero: the values are the levels to the last bit.
        return from_groups(values, w.shape, self.grouping) + (w - w.detach())

    def average_bits(self) -> float:
        """Sign bits a weight."""
        return float(self.alive.sum()) / len(self.alive)

    spreads = True

    def counted_bits(self, w: torch.Tensor) -> float:
        """Signs only."""
        return self.average_bits() * w.numel()

    def stored_bits(self, w: torch.Tensor) -> float:
        """As published: the signs, and for each group 4 bits for its number of planes and 32 for each coordinate."""
        return float(self.alive.sum()) * (self.codes.shape[1] + 32) + 4 * len(self.alive)

    def extra_repr(self) -> str:
        return f"up to {self.planes} planes, {self.grouping}"
