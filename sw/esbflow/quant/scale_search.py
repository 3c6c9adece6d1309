"""The scale of least squared error for rows of weights: exact for short rows, a dense grid for long ones.

Between two scales at which some weight changes its level, the levels q stay the same, and the best scale of that piece is
the projection (w.q)/(q.q). A row of n weights has at most n times the number of level boundaries such pieces. `sweep`
visits all of them. `grid` visits those of a dense grid of scales, and refines about the best: many in short rows, where
neighbouring pieces differ most. What counts is how many weights are not zero at all useful scales: the others are left out.

Bound of a grid: a scale that is off by a factor 1 + d from the best one has at most 1 + d**2 * (signal-to-noise ratio)
times its error, before it is projected.
"""

import functools
import itertools
import math

import numpy as np
import torch
from torch.nn import functional as F

from esbflow.numbers import ESB, Format, Signed, Unsigned
from esbflow.quant.base import round_to_levels

SWEPT = 2048
"""Changes of level in a row up to which all pieces are visited."""
HELD = 1 << 18
"""Values worked on at a time: what a search makes of so many stays in a CPU's cache."""
LONG, SAMPLE = 2048, 512
"""In rows longer than LONG, SAMPLE weights, half of them the largest, say which scales of a linear format that clip nothing
are worth a look."""
INWARD = 24
"""Scales of the grid that clip the largest weight."""
REFINED, PARTS = 6000, 4
"""The best scales of a grid are refined, so many that their number times the row's length is REFINED, each by PARTS more."""


def least_error_scales(rows: torch.Tensor, form: Format) -> torch.Tensor:
    """The scale (r,) of least squared error of each row of `rows` (r, n) in a format; rows do not depend on each other.

    Looks from scales that clip nearly everything to those at which the largest weight just reaches the smallest level.
    The error is within 1.02 times that of an exhaustive search. A row of zeros gets 1.

    >>> from esbflow.numbers import Signed
    >>> least_error_scales(torch.tensor([[3.0, -1.5, 6.0], [0.0, 0.0, 0.0]]), Signed(4))
    tensor([1.5000, 1.0000])
    """
    # A compiler sees one operator: the search branches on values.
    return _as_operator(rows, str(form)) if torch.compiler.is_compiling() else _least_error_scales(rows, form)


@torch.library.custom_op("esbflow::least_error_scales", mutates_args=())
def _as_operator(rows: torch.Tensor, form: str) -> torch.Tensor:
    return _least_error_scales(rows, Format.parse(form))


@_as_operator.register_fake
def _(rows, form):  # noqa: ARG001 - the operator's own arguments
    return rows.new_empty(len(rows))


def _least_error_scales(rows, form):
    largest = rows.abs().amax(dim=1)
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    held = min(max(rows.shape[1] * len(_sides(form)[0]), rows.shape[1]), HELD)
    few = max(1, HELD // held if held <= SWEPT else HELD // rows.shape[1])
    units = torch.cat([_unit_scales(part / size[:, None], form)
                       for part, size in zip(rows.split(few), safe.split(few))])
    return torch.where(largest > 0, safe * units.to(rows.dtype), torch.ones_like(largest))


def _unit_scales(rows, form):
    """The scales (r,) of rows whose largest magnitude is one: by a sweep, or by a grid. Rows in which few weights are ever
    more than zero are shortened to those."""
    size = rows.shape[1]
    if size * len(_sides(form)[0]) <= SWEPT:
        return sweep(rows, form)
    rows = rows.float()
    scales, left = torch.ones_like(rows[:, 0]), torch.arange(len(rows), device=rows.device)
    if form.contains(0):
        smallest = float(_sides(form)[0][0].min())
        counted = (rows.abs() > smallest / form.max * _least_reach(rows, form)[:, None]).sum(1)
        short = SWEPT // len(_sides(form)[0])
        while short <= size // 2 and len(left):
            now = left[counted[left] <= short]
            if len(now):
                kept = rows[now].abs().topk(short, dim=1).indices
                scales[now] = _unit_scales(rows[now].gather(1, kept), form).to(scales.dtype)
                left = left[counted[left] > short]
            short *= 2
    if len(left):
        scales[left] = grid(rows[left] if len(left) < len(rows) else rows, form)
    return scales


def _least_reach(rows, form):
    """Below which the largest level, per largest weight, need not reach (r,). The largest weight alone costs (1 - reach)**2
    where it is clipped, and a reach below the mean clips too much of all."""
    error = _Rounded(rows, form)(torch.ones_like(rows[:1, 0]).expand(1, len(rows)) / form.max)[1][0]
    return torch.maximum(rows.abs().mean(dim=1) / 2, 1 - error.sqrt())


def sweep(rows: torch.Tensor, form: Format) -> torch.Tensor:
    """The best scale (r,) float64 of all; needs rows.numel() times the number of level boundaries in memory."""
    middles, rises, squares, inner = (table.to(rows.device) for table in _sides(form))
    side = (rows < 0).long()
    size = rows.abs().double()
    scales = size[:, :, None] / middles.T[side]               # at which each weight leaves one level for the next
    powers = torch.where(scales > 0, squares.T[side], 0.0).flatten(1)
    products = (size[:, :, None] * rises.T[side]).flatten(1)
    order = scales.flatten(1).argsort(dim=1, descending=True)
    start = inner[side]
    power = torch.cat([start.square().sum(1, keepdim=True), powers.gather(1, order)], dim=1).cumsum(1)
    product = torch.cat([(rows * start).sum(1, keepdim=True), products.gather(1, order)], dim=1).cumsum(1)
    gain = torch.where((product > 0) & (power > 0), product.square() / power.clamp(min=1e-300), -1.0)
    best = gain.argmax(dim=1, keepdim=True)
    scale = (product.gather(1, best) / power.gather(1, best).clamp(min=1e-300))[:, 0]
    return torch.where(gain.gather(1, best)[:, 0] > 0, scale, torch.ones_like(scale))


def grid(rows: torch.Tensor, form: Format) -> torch.Tensor:
    """The scale (r,) of float32 rows whose largest magnitude is one."""
    fit = (_Sorted if _sorting_pays(rows.shape[1], form) else _Rounded)(rows, form)
    outward = torch.tensor(_outward(form), dtype=rows.dtype, device=rows.device)[:, None].expand(-1, len(rows))
    inward = (_least_reach(rows, form).clamp(max=0.99).log()
              * torch.linspace(1, 0, INWARD + 1, device=rows.device)[:-1, None])
    reach = torch.cat([inward, outward])  # log of the largest level per largest weight
    gaps = F.pad(reach.diff(dim=0), (0, 0, 1, 1)).unfold(0, 2, 1)  # to both neighbours
    if isinstance(form, Signed | Unsigned) and rows.shape[1] > LONG:
        sample = torch.cat([rows.gather(1, rows.abs().topk(SAMPLE // 2, dim=1).indices),
                            rows[:, ::2 * rows.shape[1] // SAMPLE]], dim=1)
        errors = _Rounded(sample, form)(outward.exp() / form.max)[1]
        promising = errors.topk(min(24, len(outward)), dim=0, largest=False).indices
        taken = torch.cat([torch.arange(INWARD, device=rows.device)[:, None].expand(-1, len(rows)), INWARD + promising])
        reach, gaps = reach.gather(0, taken), gaps.gather(0, taken[:, :, None].expand(-1, -1, 2))
    scales, errors = fit(reach.exp() / form.max)
    best = errors.topk(min(len(reach), max(16, REFINED // rows.shape[1])), dim=0, largest=False).indices
    middle, (before, after) = reach.gather(0, best), gaps.gather(0, best[:, :, None].expand(-1, -1, 2)).unbind(2)
    parts = torch.arange(1, PARTS // 2 + 1, device=rows.device)[:, None, None] / PARTS
    near = torch.cat([middle - parts * before, middle + parts * after]).flatten(0, 1)
    found = fit(near.exp() / form.max)
    scales, errors = torch.cat([scales, found[0]]), torch.cat([errors, found[1]])
    return fit(scales.gather(0, errors.argmin(dim=0, keepdim=True)))[0][0]


@functools.cache
def _sides(form: Format) -> tuple:
    """For magnitudes of weights of either sign, (boundaries, 2): the boundaries between levels, ascending; the rise of the
    level's magnitude and of its square there; and (2,) the level next to zero. The shorter side is padded with boundaries
    at infinity."""
    levels, sides = [int(v) for v in form.levels], []
    for sign in (1, -1):
        chain = levels if sign > 0 else [-v for v in reversed(levels)]
        steps = [(a, b) for a, b in itertools.pairwise(chain) if a + b > 0]
        sides.append(([(a + b) / 2 for a, b in steps], [b - a for a, b in steps], [b * b - a * a for a, b in steps],
                      sign * (steps[0][0] if steps else chain[-1])))
    length = max(len(side[0]) for side in sides)
    padded = [[side[i] + [fill] * (length - len(side[i])) for side in sides] for i, fill in enumerate((math.inf, 0, 0))]
    tables = [torch.tensor(values, dtype=torch.float64).T.contiguous() for values in padded]
    return *tables, torch.tensor([side[3] for side in sides], dtype=torch.float64)


@functools.cache
def _outward(form: Format) -> tuple:
    """Logarithms of how far the largest level reaches, per largest weight, from one on: where the largest weight is a
    level, and in steps that are the smaller the more levels there are. Twice a level of linear and ESB sets is a level, so
    that a reach above two is no better than its half there."""
    furthest = 2.0 if isinstance(form, ESB | Signed | Unsigned) else form.max / min(v for v in form.levels if v > 0)
    levels = form.levels[-256:]
    reaches = {math.log(form.max / int(v)) for v in levels if v > 0 and form.max / int(v) <= furthest}
    return tuple(sorted(reaches | set(np.arange(0, math.log(furthest), 1.5 / len(levels)).tolist())))


def _sorting_pays(size: int, form: Format) -> bool:
    """Whether counting between the boundaries of a sorted row is cheaper than rounding each weight of it."""
    return len(form.levels) <= (32 if isinstance(form, Signed | Unsigned) else max(32, size // 12))


class _Sorted:
    """Of the levels that each of `scales` (c, r) gives the rows: the best scale (c, r), and its squared error (c, r). By
    counts and sums of the sorted rows between level boundaries."""

    def __init__(self, rows: torch.Tensor, form: Format):
        self.rows = rows.sort(dim=1).values
        self.sums = F.pad(self.rows.double().cumsum(1), (1, 0))
        self.power = self.rows.double().square().sum(1)
        levels = torch.tensor(form.levels.tolist(), dtype=torch.float64, device=rows.device)
        self.first, self.rises, self.squares = levels[0], levels.diff(), levels.square().diff()
        self.middles = ((levels[1:] + levels[:-1]) / 2).to(rows.dtype)

    def __call__(self, scales: torch.Tensor) -> tuple:
        count = self.rows.shape[1]
        below = torch.searchsorted(self.rows, (scales.T[:, :, None] * self.middles).flatten(1))
        above = self.sums[:, -1:] - self.sums.gather(1, below)
        product = above.unflatten(1, (-1, len(self.middles))) @ self.rises + self.first * self.sums[:, -1:]
        power = (count - below).double().unflatten(1, (-1, len(self.middles))) @ self.squares + self.first ** 2 * count
        useful = (product > 0) & (power > 0)
        best = torch.where(useful, product / power.clamp(min=1e-300), scales.T)
        error = self.power[:, None] - torch.where(useful, product * best, 0)
        return best.T.to(scales.dtype), error.T.clamp(min=0).to(scales.dtype)


class _Rounded:
    """The same by rounding each weight."""

    def __init__(self, rows: torch.Tensor, form: Format):
        self.rows, self.form = rows, form

    def __call__(self, scales: torch.Tensor) -> tuple:
        together = max(1, HELD // self.rows.numel())
        parts = [self._some(part) for part in scales.split(together)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _some(self, scales):
        levels = _rounded(self.rows * (1 / scales)[:, :, None], self.form)
        errors = torch.addcmul(self.rows, levels, scales[:, :, None], value=-1)
        product, power = (errors * levels).sum(-1), levels.square().sum(-1)
        shift = torch.where(power > 0, product / power.clamp(min=1e-30), 0.0)
        shift = torch.where(scales + shift > 0, shift, 0.0)
        return scales + shift, (errors.square_().sum(-1) - shift * product).clamp(min=0)


def _rounded(x: torch.Tensor, form: Format) -> torch.Tensor:
    """`round_to_levels` of float32 but for ties, in place and in fewer passes over memory."""
    if isinstance(form, Signed | Unsigned) and form.bits < 23:
        return x.round_().clamp_(form.min, form.max)
    if isinstance(form, ESB) and form.significand < 22:
        # Adding and taking away a large multiple of x leaves its first k + 1 bits (Dekker, 1971).
        x.clamp_(form.min, form.max)
        large = x * (2.0 ** (23 - form.significand) + 1)
        large.sub_(large - x)
        return torch.where(x.abs() < 2 ** form.significand, x.round(), large)
    return round_to_levels(x, form)
