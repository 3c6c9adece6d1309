"""Additive powers of two: every level a sum of few powers of two, with a learned clip.

Source: Li et al., "Additive Powers-of-Two Quantization", ICLR 2020, sections 2.2 and 2.3; the level sets are those of the
released code. The published weights are standardised (mean and deviation) before they are rounded; here only the deviation
is taken out and put back, so that trained weights keep their size and no mean has to be added in hardware.
"""

import itertools

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.numbers import Codebook
from esbflow.quant.methods.dda import optimal_scale
from esbflow.quant.methods.lsq import learned_levels, step_factor
from esbflow.quant.scale_search import least_error_scales
from esbflow.quant.weights import WeightQuantizer, as_rows, exact_scale, like_rows

TERMS = {2: ((1,),), 3: ((1, 2, 4),), 4: ((8, 4, 1), (2,)), 5: ((32, 8, 2), (16, 4, 1))}
"""Powers of two of each term; a level takes one or none of each."""


def apot_levels(bits: int) -> tuple[int, ...]:
    """The non-negative levels of a signed set of `bits` bits, ascending.

    >>> apot_levels(4)
    (0, 1, 2, 3, 4, 6, 8, 10)
    """
    if bits not in TERMS:
        raise BadValue(f"APoT weights have {min(TERMS)} to {max(TERMS)} bits, not {bits}")
    return tuple(sorted({sum(choice) for choice in itertools.product(*((0, *term) for term in TERMS[bits]))}))


class APoTQuantizer(WeightQuantizer):
    """Weights to sums of powers of two times a learned step (a clip), in units of the row's deviation.

    bits : 2..5. Gradients: LSQ's to the step, straight through inside the clip to the weights, none beyond it. A constant
    row is exact, a row of zeros gives zeros.
    """

    def __init__(self, bits: int, per_channel: bool = False, name: str = "weight"):
        levels = apot_levels(bits)
        super().__init__(Codebook(tuple(-v for v in levels[:0:-1]) + levels), per_channel, name)

    def prepare(self, w: torch.Tensor) -> None:
        rows = as_rows(w.detach(), self.per_channel)
        deviation = rows.std(dim=1, unbiased=False)
        known = deviation > 1e-6 * rows.abs().amax(dim=1)
        start = least_error_scales(rows, self.form) / torch.where(known, deviation, 1)
        self.step = nn.Parameter(torch.where(known, start, torch.full_like(start, optimal_scale(self.form))))

    def row_scale(self, rows: torch.Tensor) -> torch.Tensor:
        scale = rows.std(dim=1, unbiased=False) * self.step.abs().clamp(min=1e-9)
        return exact_scale(rows, scale, self.form)

    def values(self, w: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            held = self.scale(w)
            deviation = like_rows(as_rows(w, self.per_channel).std(dim=1, unbiased=False), w)
        # The step's value is in `held`; only its gradient passes here.
        step = like_rows(self.step.abs(), w) * deviation
        count = w[0].numel() if self.per_channel else w.numel()
        return learned_levels(w, held + (step - step.detach()), self.form, step_factor(count, self.form))
