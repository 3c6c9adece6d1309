"""Semi-relaxed quantization (SRQ) and DropBits.

Source: Lee et al., "Cluster-Promoting Quantization with Bit-Drop for Minimizing Network Quantization Loss", ICCV 2021
(arXiv 1911.12990); the probabilities are those of Louizos et al., "Relaxed Quantization", ICLR 2019. Logistic noise about x
makes "which level" a distribution r over levels; the forward pass takes the likeliest, that is the nearest, and the
gradient goes through the mean of the levels under r (multi-class straight-through estimator). It is largest at the
boundaries of cells and smallest at levels, so values gather at levels. No reference code is public; formulas were derived.
"""

import math

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.base import check_finite, round_to_levels
from esbflow.quant.methods.lsq import damped, step_factor
from esbflow.quant.scale_search import least_error_scales
from esbflow.quant.weights import WeightQuantizer, as_rows, like_rows

STRETCH, LOW, HIGH = 2 / 3, -0.1, 1.1
"""Hard-concrete distribution: temperature and stretch (Louizos et al., "Learning Sparse Neural Networks through L0
Regularization", ICLR 2018)."""
BIT_MODES = ("fixed", "drop", "learn")
LEAST_BITS = 2
GATE_RATE = 100
"""Gates learn so many times as fast as weights: at the rates of weights a shell would take dozens of epochs to close."""


def likeliest_level(x: torch.Tensor, step: torch.Tensor, noise: torch.Tensor, low, high, window: int = 2,
                    keep=None) -> torch.Tensor:
    """The nearest of step * (low..high), with the gradient of the mean of levels under logistic noise.

    Parameters
    ----------
    step, noise : positive tensors that broadcast against x; `noise` is the logistic's width tau.
    low, high : smallest and largest integer.
    window : how many levels on each side of the nearest one the mean is taken over.
    keep : function of integer levels that gives the weight (0..1) of each, or None; for learned bit-widths.

    Gradients: to x, to `step` (the chosen integer, and the boundaries), to `noise`, to what `keep` depends on.
    """
    inside = torch.minimum(torch.maximum(x, (low - 0.5) * step), (high + 0.5) * step)
    nearest = round_to_levels((inside / step).detach(), Signed(24)).clamp(low, high)
    weights, levels = [], []
    for offset in range(-window, window + 1):
        level = nearest + offset
        exists = (level >= low) & (level <= high)
        above, below = ((level + 0.5) * step - inside) / noise, ((level - 0.5) * step - inside) / noise
        mass = torch.sigmoid(above) - torch.sigmoid(below)
        mass = mass * exists
        if keep is not None:
            mass = mass * keep(level)
        weights.append(mass)
        levels.append((level * step).detach())
    total = sum(weights).clamp(min=1e-12)
    mean = sum(weight * level for weight, level in zip(weights, levels)) / total
    return (nearest * step + (mean - mean.detach())).to(x.dtype)


def bits_of_level(level: torch.Tensor, signed: bool) -> torch.Tensor:
    """The bit-width from which on a grid has a level: the shell it belongs to.

    >>> bits_of_level(torch.tensor([0., 1., -2., 3., -5.]), True)
    tensor([1., 2., 2., 3., 4.])
    """
    magnitude = torch.where(level < 0, -level - 1, level)
    return torch.frexp(magnitude).exponent + (1.0 if signed else 0.0)


class BitGates(nn.Module):
    """A hard-concrete gate for each shell from `least` + 1 to `bits` bits; closing one closes all beyond it."""

    def __init__(self, bits: int, least: int):
        super().__init__()
        self.bits, self.least = bits, least
        self.log_a = nn.Parameter(torch.full((bits - least,), 2.0))

    def sample(self) -> torch.Tensor:
        """Gates (bits - least,) in 0..1 for one step."""
        u = torch.rand_like(self.log_a).clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + damped(self.log_a, GATE_RATE)) / STRETCH)
        return (s * (HIGH - LOW) + LOW).clamp(0, 1).cumprod(0)

    def open_probability(self) -> torch.Tensor:
        """P(gate > 0) of each shell."""
        return torch.sigmoid(damped(self.log_a, GATE_RATE) - STRETCH * math.log(-LOW / HIGH))

    def chosen_bits(self) -> int:
        """The bit-width whose shells are all open with more than one half."""
        return self.least + int((self.open_probability() > 0.5).long().cumprod(0).sum())


class SRQWeightQuantizer(WeightQuantizer):
    """Weights to integers times a learned step, with the multi-class straight-through estimator.

    Parameters
    ----------
    bits : 2..8, of the widest grid.
    mode : "fixed"; "drop" drops random outer shells in training, each kept with `keep_rate`; "learn" learns the bit-width
        of the layer by a penalty on open shells, and fixes it after 70 % of training.
    keep_rate : of "drop".
    penalty_rate : of "learn"; the loss gets penalty_rate * cost * the sum of P(gate > 0) over the shells, as published:
        more than the expected number of open shells, since a closed one closes all beyond it. Where passes of an engine
        are what costs (`weigh_bits`), it is that of the first shell of the second pass.
    per_channel : one step a row instead of one for the layer.

    The gradients to step, noise and gates are multiplied by LSQ's factor (`lsq.step_factor`): they sum those of all
    weights, and without it training does not begin.

    `cost` says how dear a bit of this layer is, relative to the others (`weigh_bits` sets it; training by a recipe
    takes the cycles of an engine, training/bit_costs.py).
    """

    bits: torch.Tensor

    def __init__(self, bits: int, mode: str = "fixed", per_channel: bool = False, keep_rate: float = 0.8,
                 penalty_rate: float = 0.01, name: str = "weight"):
        if not 2 <= bits <= 8:
            raise BadValue(f"SRQ weights have 2 to 8 bits, not {bits}")
        if mode not in BIT_MODES:
            raise BadValue(f"SRQ's bits must be one of {', '.join(BIT_MODES)}, not {mode!r}")
        super().__init__(Signed(bits), per_channel, name)
        self.mode = mode
        self.keep_rate = keep_rate
        self.penalty_rate = penalty_rate
        self.cost, self.pass_bits = 1.0, None
        self.fixed = mode != "learn"
        self.register_buffer("bits", torch.tensor(bits))
        if mode == "learn":
            self.gates = BitGates(bits, LEAST_BITS)

    @torch.no_grad()
    def prepare(self, w: torch.Tensor) -> None:
        start = least_error_scales(as_rows(w, self.per_channel), self.form)
        self.step = nn.Parameter(start)
        self.noise = nn.Parameter(start / 3)

    def row_scale(self, rows: torch.Tensor) -> torch.Tensor:
        return self.step.detach().abs().clamp(min=1e-12).expand(len(rows))

    def _range(self) -> tuple:
        bits = int(self.bits)
        if self.training and self.mode == "drop":
            while bits > 2 and torch.rand(()) > self.keep_rate:
                bits -= 1
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def values(self, w: torch.Tensor) -> torch.Tensor:
        check_finite(w.detach(), self.name)
        if not self.training:
            return super().values(w)
        factor = step_factor(w.numel() // len(self.step), self.form)
        step = like_rows(damped(self.step.abs().clamp(min=1e-12), factor), w)
        noise = torch.maximum(like_rows(damped(self.noise.abs(), factor), w), step.detach() / 20)
        low, high = self._range()
        keep = None
        if not self.fixed:
            gates = torch.cat([torch.ones(2, device=w.device), damped(self.gates.sample(), factor)])
            open_bits = int((gates > 0).sum())
            low, high = -(2 ** (open_bits - 1)), 2 ** (open_bits - 1) - 1
            keep = lambda level: gates[(bits_of_level(level, True).long() - 1).clamp(0, len(gates) - 1)]  # noqa: E731
        return likeliest_level(w, step, noise, low, high, keep=keep)

    def advance(self, progress: float) -> None:
        super().advance(progress)
        if self.mode == "learn" and not self.fixed and progress >= 0.7:
            self.fix_bits()

    def fix_bits(self) -> None:
        """End the learning of the bit-width; what is trained from here on has the chosen one."""
        self.bits.fill_(self.gates.chosen_bits())
        self.form = Signed(int(self.bits))
        self.fixed = True

    def penalty(self) -> torch.Tensor | None:
        if self.mode != "learn" or self.fixed:
            return None
        shells = self.gates.open_probability()
        if self.pass_bits is not None and self.form.bits > self.pass_bits:
            shells = shells[self.pass_bits - LEAST_BITS]  # of the pass_bits + 1st bit: those beyond it cost nothing more
        return self.penalty_rate * self.cost * shells.sum()

    def get_extra_state(self) -> dict:
        """Whether the bit-width is fixed, for state dicts."""
        return {"fixed": self.fixed}

    def set_extra_state(self, state: dict) -> None:
        """What `get_extra_state` gave."""
        self.fixed = state["fixed"]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.form = Signed(int(self.bits))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.mode}"


def weigh_bits(model: nn.Module, costs: dict, pass_bits: int = 4) -> None:
    """Tell quantizers that learn their bit-width what weights of more than `pass_bits` bits, a second pass of the engine,
    cost in their layer: {layer name: cost}, mean made 1. So a layer keeps all its bits or goes down to `pass_bits`."""
    found = {name: module.weight_quantizer for name, module in model.named_modules()
             if isinstance(getattr(module, "weight_quantizer", None), SRQWeightQuantizer)}
    known = [costs[name] for name in found if name in costs]
    mean = sum(known) / len(known) if any(known) else 1.0
    for name, quantizer in found.items():
        if name in costs:
            quantizer.cost, quantizer.pass_bits = costs[name] / mean, pass_bits


def learns_bits(model: nn.Module) -> bool:
    """Whether some quantizer of the model learns its bit-width."""
    return any(isinstance(module, SRQWeightQuantizer) and module.mode == "learn" for module in model.modules())


class SRQActivation(ActivationQuantizer):
    """Rectified activations to 0 .. 2**bits - 1 times a learned step, with the multi-class straight-through estimator."""

    def __init__(self, bits: int, name: str = "activation"):
        super().__init__(Unsigned(bits), "learned", name=name)
        self.noise_ratio = nn.Parameter(torch.tensor(1 / 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        if not self._has_scale():
            self.observe(x)
        factor = step_factor(x[0].numel(), self.form)
        step = damped(self.step.abs().clamp(min=1e-12), factor)
        noise = damped(self.noise_ratio.abs().clamp(min=1 / 20), factor) * step.detach()
        return likeliest_level(x, step, noise, 0, self.form.max, window=1)
