"""Elastic significant bits for weights, with scales from the distribution difference aligner.

Source: Gong et al., IEEE TPDS 33(11), 2022. Departs from the released code: no mean is subtracted (the engine would need a
sum over activations), the standard deviation is the biased one (a channel of one weight must not give NaN), and the
optimum is recomputed (see dda.py).
"""

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.numbers import Format
from esbflow.quant.base import round_to_levels, straight_through
from esbflow.quant.methods.dda import optimal_scale
from esbflow.quant.methods.lsq import learned_values
from esbflow.quant.scale_search import least_error_scales
from esbflow.quant.weights import WeightQuantizer, as_rows, exact_scale

SCALE_MODES = ("closed_form", "laplace", "refined", "learned", "pow2")
REFRESH = 64


class ESBWeightQuantizer(WeightQuantizer):
    """Weights to the levels of `form` (ESB or any symmetric set) times one scale per tensor or per output channel.

    Parameters
    ----------
    form : Format
    per_channel : one scale for each index of axis 0, else one for the tensor.
    scale_mode : "closed_form" is the Gaussian optimum times the standard deviation, "laplace" that of a Laplacian;
        "refined" is the scale of least error of the tensor itself, searched over its whole range (scale_search.py), again
        every `refresh` forward passes in training (None: 64, or 128 for more than five bits, whose search takes longer and
        whose scale matters less); "learned" starts there and trains the scale by the gradient of LSQ;
        "pow2" is the power of two of least error, searched as often as "refined".
    name : for error messages.

    With "pow2" and a batch norm behind the layer (`follow`), what is a power of two is the scale times the norm's gain,
    gamma / deviation: as if the norm were folded into the weights before they are quantized. The norm trains as ever.

    Shapes: w (out, ...) -> same shape; scale (out, 1, ...) or (1, 1, ...).
    Gradient: straight through to every weight ("learned": none beyond the ends, where the scale gets it). An all-zero
    channel has scale 1 and integers 0; a constant one is exact.

    Raises
    ------
    ValueError
        if w holds NaN or infinity, or scale_mode is unknown.
    """

    def __init__(self, form: Format, per_channel: bool = True, scale_mode: str = "refined",
                 refresh: int | None = None, name: str = "weight"):
        super().__init__(form, per_channel, name)
        if scale_mode not in SCALE_MODES:
            raise BadValue(f"scale_mode must be one of {', '.join(SCALE_MODES)}, not {scale_mode!r}")
        self.scale_mode = scale_mode
        self.refresh = refresh or (REFRESH if form.bits <= 5 else 2 * REFRESH)
        self._age = 0
        self._held: torch.Tensor | None = None
        self._state: tuple = ()
        self._norm: tuple = ()  # not registered as a child: it is the network's

    def follow(self, norm: nn.Module) -> None:
        """Take in the gain of the batch norm behind the layer, one value a row, wherever a power of two is looked for.

        Raises
        ------
        ValueError
            if there is one scale for the whole tensor, which several gains cannot have in common.
        """
        if not self.per_channel:
            raise BadValue(f"{self.name}: powers of two with a batch norm need a scale for each channel; leave "
                             "per_channel out")
        self._norm = (norm,)

    @property
    def power_of_two(self) -> bool:
        """Whether scales are confined to powers of two."""
        return self.scale_mode == "pow2"

    @torch.no_grad()
    def prepare(self, w: torch.Tensor) -> None:
        if self.scale_mode == "learned":
            self.step = nn.Parameter(self._search(as_rows(w, self.per_channel)))

    @torch.no_grad()
    def scale(self, w: torch.Tensor) -> torch.Tensor:
        if self.scale_mode in ("refined", "pow2") and self._held is not None and (
                self._age < self.refresh if self.training else self._same_weights(w)):
            self._age += 1
            return self._held
        scale = super().scale(w)
        # The tensor itself is kept, not its address alone: memory let go is soon another tensor's, at the same version.
        self._held, self._age, self._state = scale, 1, (w.detach(), self._versions(w))
        return scale

    def _same_weights(self, w: torch.Tensor) -> bool:
        """In eval mode the scale holds as long as the weights, and a norm's gain, stay the same tensors, unwritten."""
        seen, versions = self._state
        return seen.data_ptr() == w.data_ptr() and seen.shape == w.shape and versions == self._versions(w)

    def _versions(self, w: torch.Tensor) -> tuple:
        norms = [tensor for norm in self._norm for tensor in (norm.weight, norm.running_var) if tensor is not None]
        return tuple(tensor._version for tensor in (w, *norms))

    def _gain(self, rows: torch.Tensor) -> torch.Tensor:
        """(rows,): the magnitude of what a batch norm multiplies with; 1 where it is 0, or there is none."""
        gain = torch.ones_like(rows[:, 0])
        for norm in self._norm:
            gain = gain / (norm.running_var + norm.eps).sqrt() * (1 if norm.weight is None else norm.weight.abs())
        return torch.where(gain > 0, gain, torch.ones_like(gain))

    def row_scale(self, rows: torch.Tensor) -> torch.Tensor:
        if self.scale_mode == "learned":
            return exact_scale(rows, self.step.abs().clamp(min=1e-12), self.form)
        if self.scale_mode == "refined":
            return self._search(rows)
        if self.scale_mode == "pow2":
            gain = self._gain(rows)
            rows = rows * gain[:, None]
            return self._power_of_two(rows, self._search(rows)) / gain
        unit = optimal_scale(self.form, "laplace" if self.scale_mode == "laplace" else "gaussian")
        return exact_scale(rows, rows.std(dim=1, unbiased=False) * unit, self.form)

    def values(self, w: torch.Tensor) -> torch.Tensor:
        if self.scale_mode == "learned":
            return learned_values(self, w)
        scale = self.scale(w)
        return straight_through(w, round_to_levels(w.detach() / scale, self.form) * scale)

    def forget(self) -> None:
        """Search for the scale again at the next forward pass: a resumed run must not depend on when the last was."""
        super().forget()
        self._held, self._state = None, ()

    def _power_of_two(self, rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The power of two of least error among the four about the best scale."""
        best = torch.exp2(torch.floor(torch.log2(scale)))
        least = self._error(rows, best)
        for candidate in (best / 2, 2 * best, 4 * best):
            error = self._error(rows, candidate)
            best, least = torch.where(error < least, candidate, best), torch.minimum(error, least)
        return best

    def _error(self, rows, scale):
        return (round_to_levels(rows / scale[:, None], self.form) * scale[:, None] - rows).square().sum(dim=1)

    def _search(self, rows: torch.Tensor) -> torch.Tensor:
        return exact_scale(rows, least_error_scales(rows, self.form), self.form)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scale_mode}"
