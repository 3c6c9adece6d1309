"""Learned step size quantization (LSQ): the scale is a parameter with a gradient of its own.

Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, sections 2.1 and 2.2.
"""

import math
from typing import Any

import torch
from torch import nn

from esbflow.numbers import Format
from esbflow.quant.base import check_finite, round_to_levels
from esbflow.quant.weights import WeightQuantizer, as_rows, exact_scale, like_rows


def step_factor(count: int, form: Format) -> float:
    """What the step's gradient is multiplied with: 1/sqrt(values that share the step * largest level)."""
    return 1 / math.sqrt(max(1, count) * max(1, form.max))


def damped(x: torch.Tensor, factor: float) -> torch.Tensor:
    """x, with its gradient times `factor`: a step shared by thousands of values gets the sum of their gradients.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> damped(x, 0.1).backward()
    >>> x.grad
    tensor(0.1000)
    """
    return x.detach() + factor * (x - x.detach())


class _Learned(torch.autograd.Function):
    """Levels times step; to x straight through inside the range, to the step (level - x/step) inside, the end outside.
    Where only the `ends` count, the step gets no gradient from inside (PACT)."""

    @staticmethod
    def forward(ctx, x, step, form, factor, ends):
        levels = round_to_levels(x / step, form)
        ctx.save_for_backward(x, step, levels)
        ctx.form, ctx.factor, ctx.ends, ctx.shape = form, factor, ends, step.shape
        return levels * step

    @staticmethod
    def backward(ctx, gradient):
        x, step, levels = ctx.saved_tensors
        # An end counts as outside, as published: the product, as _LearnedRange has it, since x / step is rounded.
        inside = (x > ctx.form.min * step) & (x < ctx.form.max * step)
        to_step = gradient * torch.where(inside, 0 if ctx.ends else levels - x / step, levels)
        return gradient * inside, to_step.sum_to_size(ctx.shape) * ctx.factor, None, None, None


class _LearnedRange(torch.autograd.Function):
    """The same for all integers of a range and one step for the tensor, in few passes over memory: on a CPU they cost
    more than the arithmetic. float32 rounds half up but for the float just below a half; bfloat16 rounds half to even,
    since x + 1/2 would itself be rounded from 64 on."""

    @staticmethod
    def forward(ctx, x, step, low, high, factor, ends):
        size = step.item()
        y = torch.mul(x, 1 / size)
        y = y.round_() if x.dtype == torch.bfloat16 else y.add_(0.5).floor_()
        y = y.clamp_(low, high).mul_(size)
        ctx.save_for_backward(x, y)
        ctx.size, ctx.low, ctx.high, ctx.factor, ctx.ends = size, low, high, factor, ends
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        to_x = torch.ops.aten.hardtanh_backward(gradient, x, ctx.low * ctx.size, ctx.high * ctx.size)
        # sum of gradient * (level - x/step), or nothing, inside and gradient * level outside
        to_step = _inner_difference(gradient, y, to_x, y if ctx.ends else x) / ctx.size * ctx.factor
        return to_x, to_step, None, None, None, None


def _inner_difference(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """sum of a * b less sum of c * d: in float32 by dot, which is several times as fast, if all lie in memory in the same
    order; in bfloat16, where dot is slow and two sums would lose their difference, as one sum."""
    if a.dtype == torch.bfloat16:
        return (a * b).addcmul_(c, d, value=-1).sum()
    return _inner(a, b) - _inner(c, d)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dim() == 4 and not a.is_contiguous():
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)  # channels_last, perhaps
    if a.is_contiguous() and b.is_contiguous():
        return torch.dot(a.view(-1), b.view(-1))
    return (a * b).sum()


def learned_range(x: torch.Tensor, step: torch.Tensor, form: Format, factor: float) -> torch.Tensor:
    """`learned_levels` for Signed and Unsigned formats with one step () for the whole tensor, faster on a CPU."""
    return _range(x, step, form, factor, False)


def clipped_range(x: torch.Tensor, step: torch.Tensor, form: Format, factor: float) -> torch.Tensor:
    """`learned_range`, but the step () gets a gradient from values beyond the range only: their level times the gradient
    (Choi et al., "PACT", 2018, equation 4)."""
    return _range(x, step, form, factor, True)


def _range(x, step, form, factor, ends):
    fast = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    if not fast or torch.compiler.is_compiling():  # fused there anyhow
        return _Learned.apply(x, step, form, factor, ends)
    return _LearnedRange.apply(x, step, form.min, form.max, factor, ends)


def learned_levels(x: torch.Tensor, step: torch.Tensor, form: Format, factor: float) -> torch.Tensor:
    """x rounded to the form's levels times a learned step (broadcast against x), with LSQ's gradients.

    >>> from esbflow.numbers import Unsigned
    >>> x, step = torch.tensor([0.6, 9.0], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    >>> learned_levels(x, step, Unsigned(2), 1.0).sum().backward()
    >>> x.grad.tolist(), round(float(step.grad), 4)
    ([1.0, 0.0], 3.4)
    """
    return _Learned.apply(x, step, form, factor, False)


class LSQWeightQuantizer(WeightQuantizer):
    """Weights to two's-complement integers (or any symmetric format) times a learned step.

    Starts at 2*mean|w|/sqrt(largest level), as published. Published per tensor; per channel is row-wise. A step below
    zero counts by its magnitude; a constant row is exact, a row of zeros gives zeros.
    """

    def __init__(self, form: Format, per_channel: bool = False, name: str = "weight"):
        super().__init__(form, per_channel, name)

    @torch.no_grad()
    def prepare(self, w: torch.Tensor) -> None:
        rows = as_rows(w, self.per_channel)
        start = 2 * rows.abs().mean(dim=1) / math.sqrt(self.form.max)
        self.step = nn.Parameter(torch.where(start > 0, start, torch.ones_like(start)))

    def row_scale(self, rows: torch.Tensor) -> torch.Tensor:
        return exact_scale(rows, self.step.abs().clamp(min=1e-12), self.form)

    def values(self, w: torch.Tensor) -> torch.Tensor:
        return learned_values(self, w)


def learned_values(quantizer: Any, w: torch.Tensor) -> torch.Tensor:
    """Weights by the learned `step` of a quantizer; its value where a row is constant or zero is the exact one."""
    with torch.no_grad():
        check_finite(w, quantizer.name)
        held = like_rows(quantizer.row_scale(as_rows(w, quantizer.per_channel)), w)
    step = like_rows(quantizer.step.abs(), w)
    count = w[0].numel() if quantizer.per_channel else w.numel()
    return learned_levels(w, held + (step - step.detach()), quantizer.form, step_factor(count, quantizer.form))
