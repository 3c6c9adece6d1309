"""What every quantizer is: a module that rounds real values to a format's levels times a scale.

A method is a subclass that says how the scale (and, for learned bases, the levels) come about. The forward pass gives
the quantized real values, the backward pass a straight-through gradient; `integers` gives what the exporter writes.
"""

from typing import NamedTuple

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.numbers import ESB, Format, Signed, Unsigned


def round_to_levels(x: torch.Tensor, form: Format) -> torch.Tensor:
    """The level nearest to each x (in units of the scale), a tie toward plus infinity, clamped; no gradient.

    >>> from esbflow.numbers import ESB
    >>> round_to_levels(torch.tensor([2.5, 5.0, -5.0, 90.0]), ESB(4, 1))
    tensor([ 3.,  6., -4., 12.])
    """
    if isinstance(form, (Signed, Unsigned)):
        return _half_up(x).clamp(form.min, form.max)
    if isinstance(form, ESB):
        # The step doubles with each octave; rounding up across one lands on the next octave's first level.
        octaves = max(0, 2 ** form.exponent_bits - 2)
        if not octaves:
            return _half_up(x).clamp(form.min, form.max)
        octave = (torch.frexp(x).exponent - (form.significand + 1)).clamp(0, octaves)
        step = torch.exp2(octave.to(x.dtype))
        return (_half_up(x / step) * step).clamp(form.min, form.max)
    return nearest_level(x, torch.tensor(form.levels.tolist(), dtype=x.dtype, device=x.device))


def nearest_level(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The nearest of real, ascending `levels` (n,), a tie toward plus infinity; no gradient."""
    middles = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(x.contiguous(), middles, right=True)]  # copies here what torch would, with a warning


def _half_up(x: torch.Tensor) -> torch.Tensor:
    """Nearest integer, a half upwards. floor(x + 0.5) would round the number just below a half up too."""
    whole = torch.floor(x)
    return whole + (x - whole >= 0.5)


def straight_through(x: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """The value of `quantized`, to the last bit, with the gradient of `x`.

    x + (quantized - x) would round twice: one level would become several floats beside each other.

    >>> [float(y) for y in straight_through(torch.tensor([0.7, 0.1, -3e8]), torch.tensor([0.3, 0.3, 0.3]))]
    [0.30000001192092896, 0.30000001192092896, 0.30000001192092896]
    """
    return quantized.detach() + (x - x.detach())


def check_finite(x: torch.Tensor, name: str) -> None:
    """ValueError if a tensor holds NaN or infinity, naming it. A compiled model leaves that to the loss."""
    if not torch.compiler.is_compiling() and not torch.isfinite(x).all():
        raise BadValue(f"{name} holds NaN or infinity; training has diverged, or the checkpoint is broken")


def across_ranks(value: torch.Tensor) -> torch.Tensor:
    """The mean of a statistic over the processes of data-parallel training; itself where there is one process.

    Every rank must ask for it at the same step, or all of them wait for ever.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value


class ScaledLevels(NamedTuple):
    """Integer levels, and the scale by which they stand for real values."""

    levels: torch.Tensor
    scale: torch.Tensor


class Quantizer(nn.Module):
    """Base of all methods, for weights and for activations.

    Parameters
    ----------
    form : Format, the integers that values become.

    A method whose values are a format's levels times a scale defines `scale(x)`: the real value of one integer step, a
    tensor that broadcasts against x. There are four hooks, which do nothing here:

    `prepare(x)` when a layer gets the quantizer.
    `forget()` before each epoch: drop what was remembered from earlier steps but is not in the state dict, so that a
    resumed run equals an unbroken one.
    `advance(progress)` before each step, progress from 0 to 1: for methods that change in the course of training.
    `penalty()`: a term of the loss, or None.
    """

    def __init__(self, form: Format):
        super().__init__()
        self.form = form

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """The real size of one step, positive, in a shape that broadcasts against x."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its scale comes about")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scale(x)
        return straight_through(x, round_to_levels(x / scale, self.form) * scale)

    @torch.no_grad()
    def integers(self, x: torch.Tensor) -> ScaledLevels:
        """(int64 levels of x's shape, scale) as they are exported."""
        scale = self.scale(x)
        return ScaledLevels(round_to_levels(x / scale, self.form).to(torch.int64), scale)

    def prepare(self, x: torch.Tensor) -> None:
        """Make state that depends on the tensor's shape or starts from its values. Layers call it once."""

    def forget(self) -> None:
        """Drop what is not in the state dict."""

    def advance(self, progress: float) -> None:
        """Training has come to `progress`, from 0 to 1."""

    def penalty(self) -> torch.Tensor | None:
        """What the method adds to the loss."""
        return None

    def extra_repr(self) -> str:
        return str(self.form)
