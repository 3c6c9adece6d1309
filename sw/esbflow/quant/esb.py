"""Elastic significant bits for weights, with scales from the distribution difference aligner.

Source: Gong et al., IEEE TPDS 33(11), 2022. Departs from the released code: no mean is subtracted (the engine would need a
sum over activations), the standard deviation is the biased one (a channel of one weight must not give NaN), and the
optimum is recomputed (see dda.py).
"""

import torch

from esbflow.numbers import Format
from esbflow.quant.base import Quantizer, check_finite, round_to_levels
from esbflow.quant.dda import optimal_scale

SCALE_MODES = ("closed_form", "refined", "pow2")
_FACTORS = torch.linspace(0.4, 1.5, 23)


class ESBWeightQuantizer(Quantizer):
    """Weights to the levels of `form` (ESB or any symmetric set) times one scale per tensor or per output channel.

    Parameters
    ----------
    form : Format
    per_channel : one scale for each index of axis 0, else one for the tensor.
    scale_mode : "closed_form" is the Gaussian optimum times the standard deviation; "refined" searches 23 scales about
        it on the tensor itself and projects (better for few weights or heavy tails), again every `refresh` forward
        passes in training; "pow2" is the better neighbouring power of two of the closed form.
    name : for error messages.

    Shapes: w (out, ...) -> same shape; scale (out, 1, ...) or (1, 1, ...).
    Gradient: straight through to every weight. An all-zero channel has scale 1 and integers 0; a constant one is exact.

    Raises
    ------
    ValueError
        if w holds NaN or infinity, or scale_mode is unknown.
    """

    def __init__(self, form: Format, per_channel: bool = True, scale_mode: str = "refined", refresh: int = 64,
                 name: str = "weight"):
        super().__init__(form)
        if scale_mode not in SCALE_MODES:
            raise ValueError(f"scale_mode must be one of {', '.join(SCALE_MODES)}, not {scale_mode!r}")
        self.per_channel = per_channel
        self.scale_mode = scale_mode
        self.refresh = refresh
        self.name = name
        self._age = 0
        self._held = None

    def scale(self, w: torch.Tensor) -> torch.Tensor:
        w = w.detach()
        check_finite(w, self.name)
        if self.scale_mode == "refined" and self.training and self._held is not None and self._age < self.refresh:
            self._age += 1
            return self._held
        rows = w.reshape(w.shape[0], -1) if self.per_channel else w.reshape(1, -1)
        scale = self._search(rows) if self.scale_mode == "refined" else self._closed_form(rows)
        scale = scale.reshape(-1, *([1] * (w.dim() - 1)))
        self._held, self._age = scale, 1
        return scale

    def forget(self) -> None:
        """Search for the scale again at the next forward pass: a resumed run must not depend on when the last was."""
        self._held = None

    def _closed_form(self, rows: torch.Tensor) -> torch.Tensor:
        deviation = rows.std(dim=1, unbiased=False)
        largest = rows.abs().amax(dim=1)
        # A constant row has no deviation: its largest level stands for it exactly.
        scale = torch.where(deviation > 1e-6 * largest, deviation * optimal_scale(self.form), largest / self.form.max)
        scale = torch.where(largest > 0, scale, torch.ones_like(scale))
        if self.scale_mode == "pow2":
            low = torch.exp2(torch.floor(torch.log2(scale)))
            errors = [self._error(rows, candidate) for candidate in (low, 2 * low)]
            scale = torch.where(errors[0] <= errors[1], low, 2 * low)
        return scale

    def _error(self, rows, scale):
        return (round_to_levels(rows / scale[:, None], self.form) * scale[:, None] - rows).square().sum(dim=1)

    def _search(self, rows: torch.Tensor) -> torch.Tensor:
        base = self._closed_form(rows)
        best, least = base, self._error(rows, base)
        for factor in _FACTORS.tolist():
            candidate = base * factor
            levels = round_to_levels(rows / candidate[:, None], self.form)
            power = levels.square().sum(dim=1)
            # The best scale for these levels is the projection.
            projected = torch.where(power > 0, (rows * levels).sum(dim=1) / power.clamp(min=1e-30), candidate)
            projected = torch.where(projected > 0, projected, candidate)
            error = self._error(rows, projected)
            better = error < least
            best, least = torch.where(better, projected, best), torch.where(better, error, least)
        return best

    def extra_repr(self) -> str:
        return f"{self.form}, {'per channel' if self.per_channel else 'per tensor'}, {self.scale_mode}"
