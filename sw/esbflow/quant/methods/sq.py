"""Stochastic quantization (SQ): only a random part of the filters is quantized at each step, the well-quantized ones first.

Source: Dong et al., "Learning Accurate Low-Bit Deep Neural Networks with Stochastic Quantization", BMVC 2017, section 3. The
part grows to all filters; a wrapper around any other method for weights.
"""

import torch

from esbflow.errors import BadValue
from esbflow.quant.base import ScaledLevels
from esbflow.quant.weights import WeightQuantizer

SELECTIONS = ("constant", "linear", "softmax", "sigmoid")
STAGES = (0.5, 0.75, 0.875, 1.0)
SCHEDULES = ("staged", "ramped")


def selection_weights(errors: torch.Tensor, rule: str) -> torch.Tensor:
    """How likely each filter is drawn, not normalised, from its relative error (m,).

    With f = 1/(e + 1e-7): "constant" is uniform, "linear" f, "softmax" exp(f / max f), "sigmoid" 1/(1 + exp(-f / mean f)).
    f is divided by its maximum or mean where an exponential would overflow.
    """
    fitness = 1 / (errors + 1e-7)
    if rule == "constant":
        return torch.ones_like(errors)
    if rule == "linear":
        return fitness / fitness.sum()
    if rule == "softmax":
        return torch.exp(fitness / fitness.max())
    return torch.sigmoid(fitness / fitness.mean())


class StochasticQuantizer(WeightQuantizer):
    """Another method, applied to a random part of the output channels while training.

    Parameters
    ----------
    inner : the method; its values, integers and hooks are used.
    selection : how channels are drawn without replacement; one of `SELECTIONS`.
    schedule : "staged" quantizes 50, 75, 87.5 and 100 % of the channels in the quarters of training, as published, where
        each stage trains in full; "ramped" goes from 50 to 100 % over the first third and leaves the rest to the
        network as it will be, which short trainings need.

    Eval mode quantizes everything and draws nothing. A layer of one channel is always quantized. Gradient: the inner
    method's for quantized channels, the plain one for the others.
    """

    def __init__(self, inner: WeightQuantizer, selection: str = "linear", schedule: str = "staged"):
        super().__init__(inner.form, inner.per_channel, inner.name)
        if selection not in SELECTIONS:
            raise BadValue(f"selection must be one of {', '.join(SELECTIONS)}, not {selection!r}")
        if schedule not in SCHEDULES:
            raise BadValue(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
        self.inner = inner
        self.selection = selection
        self.schedule = schedule
        self.ratio = STAGES[0]

    def prepare(self, w: torch.Tensor) -> None:
        self.inner.prepare(w)

    def forget(self) -> None:
        self.inner.forget()

    def penalty(self) -> torch.Tensor | None:
        return self.inner.penalty()

    def advance(self, progress: float) -> None:
        super().advance(progress)
        self.inner.advance(progress)
        if self.schedule == "staged":
            self.ratio = STAGES[min(3, int(4 * progress))]
        else:
            self.ratio = min(1.0, 0.5 + progress * 3 / 2)

    @torch.no_grad()
    def chosen(self, w: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        """Boolean (out,): the channels that this step quantizes."""
        count = max(1, round(self.ratio * len(w)))
        size = w.reshape(len(w), -1).abs().sum(dim=1)
        errors = (w - quantized).reshape(len(w), -1).abs().sum(dim=1) / size.clamp(min=1e-30)
        drawn = torch.multinomial(selection_weights(errors * (size > 0), self.selection).float(), count)
        mask = torch.zeros(len(w), dtype=torch.bool, device=w.device)
        mask[drawn] = True
        return mask

    def values(self, w: torch.Tensor) -> torch.Tensor:
        quantized = self.inner(w)
        if not self.training or self.ratio >= 1:
            return quantized
        mask = self.chosen(w, quantized).reshape(-1, *([1] * (w.dim() - 1)))
        return torch.where(mask, quantized, w)

    @torch.no_grad()
    def integers(self, w: torch.Tensor) -> ScaledLevels:
        return self.inner.integers(w)

    def stored_bits(self, w: torch.Tensor) -> float:
        return self.inner.stored_bits(w)

    def extra_repr(self) -> str:
        return f"{self.selection}, {self.schedule}"
