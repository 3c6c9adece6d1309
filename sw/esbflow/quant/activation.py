"""Quantizers for activations: one scale per tensor, from running statistics or learned."""

from typing import Any

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.numbers import Format, Signed, Unsigned
from esbflow.quant.base import Quantizer, across_ranks, check_finite, round_to_levels, straight_through
from esbflow.quant.methods.dda import optimal_scale, rectified_scale
from esbflow.quant.methods.lsq import learned_levels, learned_range, step_factor
from esbflow.quant.scale_search import least_error_scales

ACTIVATION_SCALES = ("learned", "ema")
SAMPLES = 100_000
"""Values of one tensor that the search for a scale looks at."""


def sampled(values: torch.Tensor, form: Format) -> torch.Tensor:
    """At most about SAMPLES (n,) of a tensor's values, evenly spread, and rectified for a format without a sign."""
    values = values.reshape(-1)
    values = values[::max(1, len(values) // SAMPLES)]
    return values if form.signed else values.clamp(min=0)


def least_error_scale(values: torch.Tensor, form: Format) -> torch.Tensor:
    """The scale () of least squared error for activations of any shape; 1 for zeros."""
    return least_error_scales(sampled(values, form)[None], form)[0]


def nearest_power(scale: torch.Tensor, values: torch.Tensor, form: Format) -> torch.Tensor:
    """Of the two powers of two about `scale` () the one with the smaller squared error on `values` (n,)."""
    low = torch.exp2(torch.floor(torch.log2(scale)))
    errors = [(round_to_levels(values / power, form) * power - values).square().sum() for power in (low, 2 * low)]
    return torch.where(across_ranks(errors[0]) <= across_ranks(errors[1]), low, 2 * low)


class ActivationQuantizer(Quantizer):
    """x -> scale * level, clamped to the format; its clamp at zero is the ReLU of an unsigned format.

    Parameters
    ----------
    form : Format
    mode : "learned" trains the scale by the gradient of LSQ (Esser et al., 2020: straight through inside the range, the
        end level outside, times 1/sqrt(elements * largest level)); "ema" keeps a running mean of the Gaussian optimum
        for the batch's root mean square. At the first batch in training mode the latter starts there, the former from the
        scale of least squared error.
    momentum : of the running mean.
    name : for error messages.
    power_of_two : the scale is the power of two next to the learned or running one, by its logarithm; at the first batch the
        one of less error.

    Gradient to x: straight through inside the range, zero outside. In eval mode nothing is updated. A tensor that has been
    zero in all batches (a ReLU that nothing reaches, a norm whose gamma is zero) is stored with scale 1, until a batch in
    training mode brings values.

    Raises
    ------
    ValueError
        if a first batch holds NaN or infinity, or if the scale is asked for before any batch was seen.
    """

    step: torch.Tensor
    seen: torch.Tensor
    blank: torch.Tensor

    def __init__(self, form: Format, mode: str = "learned", momentum: float = 0.9, name: str = "activation",
                 power_of_two: bool = False):
        super().__init__(form)
        if mode not in ACTIVATION_SCALES:
            raise BadValue(f"the activation scale must be one of {', '.join(ACTIVATION_SCALES)}, not {mode!r}")
        self.mode = mode
        self.momentum = momentum
        self.name = name
        self.power_of_two = power_of_two
        value = torch.ones(())
        if mode == "learned":
            self.step = nn.Parameter(value)
        else:
            self.register_buffer("step", value)
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))
        self.register_buffer("blank", torch.zeros((), dtype=torch.bool))  # all that was seen was zero
        self._ready = False

    def _has_scale(self) -> bool:
        """Whether a batch was seen, without asking the tensor again: that stops a GPU and a compiler."""
        if not self._ready:
            self._ready = bool(self.seen)
        return self._ready

    @torch.no_grad()
    def observe(self, x: torch.Tensor) -> None:
        """Take a batch's statistics into the scale."""
        check_finite(x, self.name)
        unit = optimal_scale(self.form) if self.form.signed else rectified_scale(self.form)
        values = x if self.form.signed else x.clamp(min=0)
        estimate = across_ranks(values.square().mean()).sqrt() * unit
        if estimate <= 0:
            if not self.seen:
                self.blank.fill_(True)
            return  # nothing was active: keep what there is
        if not self.seen:
            if self.mode == "learned":
                estimate = across_ranks(least_error_scale(values, self.form) if values.any() else estimate)
            if self.power_of_two:
                estimate = nearest_power(estimate, sampled(values, self.form), self.form)
            self.step.copy_(estimate)
            self.seen.fill_(True)
            self.blank.fill_(False)
            self._ready = True
        elif self.mode == "ema":
            self.step.mul_(self.momentum).add_(estimate * (1 - self.momentum))

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        step = self.step.abs().clamp(min=1e-12)
        return straight_through(step, torch.exp2(torch.round(torch.log2(step.detach())))) if self.power_of_two else step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and (self.mode == "ema" or not self._has_scale()):
            self.observe(x)
        scale = self.scale(x)
        factor = step_factor(x[0].numel(), self.form) if self.mode == "learned" else 0.0
        if isinstance(self.form, (Signed, Unsigned)):
            return learned_range(x, scale, self.form, factor)
        return learned_levels(x, scale, self.form, factor)

    def real_scale(self) -> float:
        """The scale as a number.

        Raises
        ------
        ValueError
            before any batch was seen.
        """
        if not (self.seen or self.blank):
            raise BadValue(f"{self.name} has seen no data, so it has no scale: train or calibrate the model first")
        return float(self.scale(self.step).detach())

    def extra_repr(self) -> str:
        return f"{self.form}, {self.mode}"


class InputQuantizer(Quantizer):
    """The network's input: a fixed scale that the normalisation of 8-bit images gives.

    `recipe` and `shape` are those that `quantize` got. They are kept here since copies of a traced model, by copy.deepcopy
    and by pickle, keep no attributes of the model but its layers.
    """

    step: torch.Tensor

    def __init__(self, form: Format, step: float):
        super().__init__(form)
        self.recipe: Any = None
        self.shape: tuple | None = None
        self.register_buffer("step", torch.tensor(step))

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return self.step

    def real_scale(self) -> float:
        """The real size of one step of the input's codes."""
        return float(self.step)
