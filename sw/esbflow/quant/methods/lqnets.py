"""LQ-Nets: levels are all sums of a few learned basis scalars with binary coefficients.

Source: Zhang et al., "LQ-Nets: Learned Quantization for Highly Accurate and Compact Deep Neural Networks", ECCV 2018,
sections 3.2 and 3.3 (quantization error minimization, QEM). Each training step encodes with the current basis, solves for
the best basis of those codes, and moves towards it.
"""

import itertools
import math

import torch

from esbflow.errors import BadValue
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.base import across_ranks, check_finite, nearest_level, straight_through
from esbflow.quant.weights import WeightQuantizer, as_rows

QUANTILE = 0.6745
"""The 0.75 quantile of a normal distribution; bases of activations start from it, as released."""
STARTS = (2.0, 1.7, 1.4, 1.2)
"""Ratios of neighbouring scalars that QEM starts from. It has local optima: from the released 2 alone it ends 5 % above the
least error on Gaussian weights at 3 and 4 bits."""
GAUSSIAN = {2: (0.529, 0.982), 3: (0.451, 0.749, 0.989), 4: (0.296, 0.557, 0.710, 1.130),
            5: (0.240, 0.459, 0.581, 0.893, 0.961), 6: (0.129, 0.258, 0.507, 0.698, 0.867, 1.032)}
"""One more start: the best bases of weights of N(0, 1) that 160 random starts found, 300 up to 4 bits. From 4 bits on no
geometric start reaches them: at 4 bits their mean squared error is 9.86e-3, where the geometric ones end at 1.05e-2."""
MOMENTUM = 0.9
RIDGE = 1e-4


def combinations(bits: int, low: int) -> torch.Tensor:
    """(2**bits, bits) float64: all coefficient vectors of `low` and 1."""
    return torch.tensor(list(itertools.product((low, 1), repeat=bits)), dtype=torch.float64)


def encode(rows: torch.Tensor, basis: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Index into `table` of each value's nearest level. rows (r, n), basis (r, bits) -> int64 (r, n)."""
    levels, order = (basis @ table.T.to(basis.dtype)).sort(dim=1)
    middles = ((levels[:, 1:] + levels[:, :-1]) / 2).contiguous()
    return order.gather(1, torch.searchsorted(middles, rows.contiguous(), right=True))


def solve_basis(rows: torch.Tensor, index: torch.Tensor, basis: torch.Tensor, table: torch.Tensor,
                ridge: float = RIDGE) -> torch.Tensor:
    """The basis (r, bits) of least squared error for given codes, drawn slightly to the present one.

    Only counts and sums per code are needed, not planes of the tensor's size. The ridge keeps the normal equations
    solvable when a plane is constant or two planes coincide.
    """
    codes = table.shape[0]
    count = torch.zeros(len(rows), codes, dtype=torch.float64, device=rows.device)
    total = torch.zeros_like(count)
    count.scatter_add_(1, index, torch.ones_like(rows, dtype=torch.float64))
    total.scatter_add_(1, index, rows.double())
    count, total = across_ranks(count), across_ranks(total)
    table = table.to(rows.device)
    size = rows.shape[1]
    normal = torch.einsum("rc,ci,cj->rij", count, table, table) / size
    right = total @ table / size
    normal += ridge * torch.eye(table.shape[1], dtype=torch.float64, device=rows.device)
    return torch.linalg.solve(normal, right + ridge * basis.double())


class LQWeightQuantizer(WeightQuantizer):
    """Weights to sums of +-basis scalars, one basis for each output channel.

    Parameters
    ----------
    bits : 1..8, the number of basis scalars.
    per_channel : published so; False learns one basis for the layer.

    In training the basis moves a tenth of the way to the optimum at each step and is a buffer, not a parameter; it starts
    at the best of several optima for the weights at hand. For the engine the levels are snapped to 8-bit integers with
    a scale a channel. Gradient: straight through.
    """

    grid = False
    table: torch.Tensor
    basis: torch.Tensor

    def __init__(self, bits: int, per_channel: bool = True, name: str = "weight"):
        if not 1 <= bits <= 8:
            raise BadValue(f"LQ-Nets weights have 1 to 8 bits, not {bits}")
        super().__init__(Signed(8), per_channel, name)
        self.bits = bits
        self.register_buffer("table", combinations(bits, -1), persistent=False)

    @torch.no_grad()
    def prepare(self, w: torch.Tensor) -> None:
        rows = as_rows(w, self.per_channel)
        size = rows.square().mean(dim=1, keepdim=True).sqrt()
        best, least = None, None
        starts = [ratio ** torch.arange(self.bits, dtype=w.dtype, device=w.device) for ratio in STARTS[:self.bits ** 2]]
        starts = [powers / powers.norm() for powers in starts]  # sums of independent signs then have the rows' deviation
        starts += [torch.tensor(GAUSSIAN[self.bits]).to(w)] if self.bits in GAUSSIAN else []
        for start in starts:
            basis = size * start
            for _ in range(50):
                basis = self._improved(rows, basis)
            error = (self._levels(rows, basis) - rows).square().sum(dim=1)
            better = torch.ones_like(error, dtype=torch.bool) if best is None else error < least
            best = basis if best is None else torch.where(better[:, None], basis, best)
            least = error if least is None else torch.where(better, error, least)
        self.register_buffer("basis", best)

    def _levels(self, rows, basis):
        index = encode(rows, basis, self.table)
        return (basis @ self.table.T.to(basis.dtype)).gather(1, index)

    def _improved(self, rows, basis):
        index = encode(rows, basis, self.table)
        better = solve_basis(rows, index, basis, self.table).to(basis.dtype)
        return better.abs()  # a negative scalar is the same plane with its signs turned

    def values(self, w: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            check_finite(w, self.name)
            rows = as_rows(w, self.per_channel)
            index = encode(rows, self.basis, self.table)
            levels = (self.basis @ self.table.T.to(w.dtype)).gather(1, index).reshape(w.shape)
            if self.training:
                better = solve_basis(rows, index, self.basis, self.table).to(w.dtype).abs()
                self.basis.mul_(MOMENTUM).add_(better * (1 - MOMENTUM))
        return straight_through(w, levels)

    def stored_bits(self, w: torch.Tensor) -> float:
        return self.bits * (w.numel() + 16 * len(self.basis))

    def extra_repr(self) -> str:
        return f"{self.bits} planes, {super().extra_repr()}"


class LQActivation(ActivationQuantizer):
    """Activations to sums of learned scalars with coefficients 0 and 1, one basis a layer, moved by QEM in training.

    bits : 1..8. On rectified Gaussian data the optimum is almost the linear grid, so the engine stores linear integers
    with the scale of least error; with `snapped` set the forward pass computes with those.
    Gradient: straight through up to the top level, none above it; none below zero.
    """

    SAMPLE = 65536
    """QEM looks at that many values of a batch, evenly spread."""
    table: torch.Tensor
    basis: torch.Tensor

    def __init__(self, bits: int, name: str = "activation"):
        if not 1 <= bits <= 8:
            raise BadValue(f"LQ-Nets activations have 1 to 8 bits, not {bits}")
        super().__init__(Unsigned(bits), "ema", name=name)
        self.bits = bits
        self.snapped = False
        self.register_buffer("table", combinations(bits, 0), persistent=False)
        self.register_buffer("basis", torch.exp2(torch.arange(bits, dtype=torch.float32)))

    @torch.no_grad()
    def observe(self, x: torch.Tensor) -> None:
        """A step of QEM (fifty at the first batch), then the linear scale nearest to the levels."""
        check_finite(x, self.name)
        flat = x.reshape(-1)
        sample = flat[::max(1, len(flat) // self.SAMPLE)][:self.SAMPLE].clamp(min=0)[None]
        size = across_ranks(sample.square().mean()).sqrt()
        first = not self.seen
        if size <= 0:
            self.blank.fill_(first)
            return
        if first:
            self.blank.fill_(False)
            start = torch.exp2(torch.arange(self.bits, dtype=torch.float32, device=x.device))
            self.basis.copy_(start * (2 * QUANTILE * math.sqrt(2) * size / (2 ** self.bits - 1)))
            self.seen.fill_(True)
        for _ in range(50 if first else 1):
            index = encode(sample, self.basis[None], self.table)
            better = solve_basis(sample, index, self.basis[None], self.table)[0].to(self.basis.dtype).clamp(min=1e-6 * size)
            self.basis.mul_(0 if first else MOMENTUM).add_(better * (1 if first else 1 - MOMENTUM))
        levels = self.levels()
        steps = torch.arange(len(levels), dtype=levels.dtype, device=levels.device)
        self.step.copy_((levels * steps).sum() / steps.square().sum())

    def levels(self) -> torch.Tensor:
        """The levels, ascending."""
        return (self.table.to(self.basis.dtype) @ self.basis).sort().values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.observe(x)
        levels = self.scale(x) * torch.arange(2 ** self.bits, device=x.device) if self.snapped else self.levels()
        clipped = x.clamp(min=0).minimum(levels[-1])
        return straight_through(clipped, nearest_level(clipped.detach(), levels))
