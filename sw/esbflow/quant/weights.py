"""What quantizers of weights share: rows of a tensor, and integers for methods whose levels are real numbers.

Two kinds of methods: a *grid* method rounds to a format's integers times a scale and defines `row_scale` or `encode`; a
*codebook* method has levels of its own and defines `values`. The engine knows integers only, so the levels of the second
kind are snapped to integers, with one scale an output channel, when the network is exported. Accuracy is measured after
that. In the last part of training (`snapped`) the forward pass computes with the snapped values, so that what is trained
is what the engine runs.
"""

import torch

from esbflow.numbers import Format
from esbflow.quant.base import Quantizer, ScaledLevels, check_finite, round_to_levels, straight_through

SNAP_FROM = 0.6
"""The part of training after which codebook methods train what the engine runs."""
SNAP_REFRESH = 64
"""Training steps for which the scales of snapped weights are kept: the search for them is slow."""


def as_rows(w: torch.Tensor, per_channel: bool) -> torch.Tensor:
    """(out, ...) -> (out, n) per channel, else (1, out*n)."""
    return w.reshape(w.shape[0], -1) if per_channel else w.reshape(1, -1)


def like_rows(values: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """One value a row (rows,) -> (rows, 1, ...), to broadcast against w."""
    return values.reshape(-1, *([1] * (w.dim() - 1)))


def exact_scale(rows: torch.Tensor, scale: torch.Tensor, form: Format) -> torch.Tensor:
    """`scale` (rows,), but exact for constant rows, whose deviation says nothing, and 1 for rows of zeros.

    In a format without zero its scale is 1e-30, since it becomes levels all the same: a pruned channel stays silent.
    """
    largest = rows.abs().amax(dim=1)
    constant = rows.std(dim=1, unbiased=False) <= 1e-6 * largest
    # The largest level, or of a negative row the lowest one where the largest has no opposite.
    lowest = -form.min if form.min < 0 and not form.contains(-form.max) else form.max
    level = torch.where(rows[:, 0] < 0, lowest, form.max).to(largest.dtype)
    scale = torch.where(constant, largest / level, scale)
    return torch.where(largest > 0, scale, torch.full_like(scale, 1.0 if form.contains(0) else 1e-30))


def project(rows: torch.Tensor, levels: torch.Tensor, fallback: torch.Tensor) -> torch.Tensor:
    """The scale (rows,) of least squared error for given integer levels: (w.q)/(q.q); `fallback` where that is not
    positive."""
    power = levels.square().sum(dim=1)
    scale = (rows * levels).sum(dim=1) / power.clamp(min=1e-30)
    return torch.where((power > 0) & (scale > 0), scale, fallback)


def snap_rows(rows: torch.Tensor, form: Format) -> ScaledLevels:
    """Integers of `form` and a scale a row that come nearest to real rows.

    Tries every scale that makes the row's largest magnitude an integer up to the format's, then projects. The first (the
    smallest integers) of equally good ones is taken.

    Returns (int64 (r, n), scale (r,)) in float64; a row of zeros gets zeros and scale 1.

    >>> from esbflow.numbers import Signed
    >>> snap_rows(torch.tensor([[0.5, -1.5, 1.5]]), Signed(8))
    ScaledLevels(levels=tensor([[ 1, -3,  3]]), scale=tensor([0.5000], dtype=torch.float64))
    """
    rows = rows.detach().double()
    largest = rows.abs().amax(dim=1)
    safe = torch.where(largest > 0, largest, torch.ones_like(largest))
    best, least = torch.zeros_like(rows), torch.full_like(largest, torch.inf)
    best_scale = torch.ones_like(largest)
    for reach in form.levels[form.levels > 0].tolist():
        scale = safe / reach
        levels = round_to_levels(rows / scale[:, None], form)
        scale = project(rows, levels, scale)
        error = (levels * scale[:, None] - rows).square().sum(dim=1)
        # Larger integers must be better by more than the rounding of float32 weights.
        better = error < least - 1e-12 * safe.square()
        best = torch.where(better[:, None], levels, best)
        best_scale, least = torch.where(better, scale, best_scale), torch.where(better, error, least)
    best = torch.where(largest[:, None] > 0, best, torch.zeros_like(best))
    return ScaledLevels(best.to(torch.int64), torch.where(largest > 0, best_scale, torch.ones_like(best_scale)))


class WeightQuantizer(Quantizer):
    """Base of the methods for weights.

    Parameters
    ----------
    form : Format of the exported integers.
    per_channel : one scale for each index of axis 0, else one for the tensor.
    name : for error messages.

    Shapes: w (out, ...) -> same shape; scale (out, 1, ...) or (1, 1, ...).
    Gradient: straight through to every weight, unless a method says otherwise.

    Raises
    ------
    ValueError
        if w holds NaN or infinity.
    """

    grid = True
    """Whether the values are the form's levels times a scale; else `values` defines them and they are snapped."""

    def __init__(self, form: Format, per_channel: bool = True, name: str = "weight"):
        super().__init__(form)
        self.per_channel = per_channel
        self.name = name
        self.snapped = False
        self._snap_scale: torch.Tensor | None = None
        self._snap_age = 0

    # -- grid methods ---------------------------------------------------------------------------------------
    def row_scale(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows, n) -> (rows,), the real value of one integer step."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its scale comes about")

    def encode(self, rows: torch.Tensor) -> ScaledLevels:
        """(rows, n) -> integer levels (rows, n) as floats, scale (rows,)."""
        scale = self.row_scale(rows)
        return ScaledLevels(round_to_levels(rows / scale[:, None], self.form), scale)

    @torch.no_grad()
    def scale(self, w: torch.Tensor) -> torch.Tensor:
        check_finite(w, self.name)
        return like_rows(self.encode(as_rows(w, self.per_channel)).scale, w)

    # -- all methods ----------------------------------------------------------------------------------------
    def values(self, w: torch.Tensor) -> torch.Tensor:
        """The quantized real values with the method's gradient."""
        with torch.no_grad():
            check_finite(w, self.name)
            levels, scale = self.encode(as_rows(w, self.per_channel))
        return straight_through(w, (levels * scale[:, None]).reshape(w.shape))

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        if not self.snapped:
            return self.values(w)
        values = self.values(w)
        with torch.no_grad():
            if self._snap_scale is None or self._snap_age >= SNAP_REFRESH or not self.training:
                self._snap_scale, self._snap_age = self.integers(w).scale.to(w.dtype), 0
            self._snap_age += 1
            snapped = round_to_levels(values / self._snap_scale, self.form) * self._snap_scale
        return straight_through(values, snapped)

    def advance(self, progress: float) -> None:
        if not self.grid and progress >= SNAP_FROM:
            self.snapped = True

    def forget(self) -> None:
        self._snap_scale = None

    @torch.no_grad()
    def integers(self, w: torch.Tensor) -> ScaledLevels:
        """(int64 levels of w's shape, scale that broadcasts against w) as they are exported."""
        check_finite(w, self.name)
        if self.grid:
            levels, scale = self.encode(as_rows(w, self.per_channel))
        else:
            levels, scale = snap_rows(self.values(w).reshape(w.shape[0], -1), self.form)
        return ScaledLevels(levels.reshape(w.shape).to(torch.int64), like_rows(scale, w))

    spreads = False
    """Whether the method gives a network bits as a whole, so that only their mean over all layers says something."""

    def counted_bits(self, w: torch.Tensor) -> float:
        """Bits of w as papers of the method count them; `stored_bits` unless they leave something out."""
        return self.stored_bits(w)

    def stored_bits(self, w: torch.Tensor) -> float:
        """Bits that the method needs to store w: codes, and scales of 16 bits (one a row)."""
        return w.numel() * self.form.bits + 16 * (w.shape[0] if self.per_channel else 1)

    def extra_repr(self) -> str:
        return f"{self.form}, {'per channel' if self.per_channel else 'per tensor'}"
