"""ReLU6 in an unsigned format: the top level takes the place of the clip."""

import math

import torch

from esbflow.quant.activation import ActivationQuantizer


class StepLimit:
    """A forward pre-hook that keeps an activation quantizer's step at most `limit` / its largest level.

    Then whatever is above the limit rounds to the largest level, and the engine's clamp is the clip. The step is
    projected, not clamped in the graph, so that its gradient can take it away from the limit again.
    """

    def __init__(self, limit: float):
        self.limit = limit

    @torch.no_grad()
    def __call__(self, quantizer: ActivationQuantizer, inputs: tuple) -> None:
        if quantizer.training and not quantizer.seen:
            quantizer.observe(inputs[0])
        largest = self.limit / quantizer.form.max
        if quantizer.power_of_two:
            largest = 2.0 ** math.floor(math.log2(largest))
        if quantizer.step.abs() > largest:  # only then: every change counts as one that autograd must know of
            quantizer.step.clamp_(-largest, largest)


def limit_step(quantizer: ActivationQuantizer, limit: float | None) -> ActivationQuantizer:
    """The quantizer, with its range ending at `limit` if there is one."""
    if limit is not None:
        quantizer.register_forward_pre_hook(StepLimit(limit))
    return quantizer
