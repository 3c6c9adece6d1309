"""muL2Q: the uniform grid of least expected squared error on standardised weights, mapped back.

Source: Gong et al., "muL2Q: An Ultra-Low Loss Quantization Method for DNN Compression", IJCNN 2019, algorithm 1 and table I
(its constants are the optimum found by sampling, up to 1.6 % off; here they are computed, for every width). One released
port forgets the half step on reconstruction, which moves every weight by half a level; not so here.
"""

import torch

from esbflow.numbers import Signed
from esbflow.quant.base import ScaledLevels, check_finite, straight_through
from esbflow.quant.methods.dda import optimal_scale
from esbflow.quant.methods.vecq import half_integer_format, round_to_odd
from esbflow.quant.weights import WeightQuantizer, as_rows


class MuL2QQuantizer(WeightQuantizer):
    """Weights to half-integers times the Gaussian optimum times the standard deviation.

    Parameters
    ----------
    bits : 1..15.
    per_channel : published per tensor.
    centred : quantize about the tensor's mean, as published. The engine would need a sum over activations for it, so such
        weights are snapped to 8-bit integers when they are exported. Means are far below the deviation where a batch norm
        follows; without `centred` the integers are the odd ones of the grid itself.

    A row of zeros gives scale 0.
    """

    def __init__(self, bits: int, per_channel: bool = False, centred: bool = False, name: str = "weight"):
        super().__init__(Signed(8) if centred else half_integer_format(bits), per_channel, name)
        self.bits = bits
        self.centred = centred
        self.grid = not centred
        self._unit = optimal_scale(half_integer_format(bits))

    def encode(self, rows: torch.Tensor) -> ScaledLevels:
        return self._levels(rows, torch.zeros(len(rows), dtype=rows.dtype, device=rows.device))

    def _levels(self, rows, middle) -> ScaledLevels:
        deviation = rows.std(dim=1, unbiased=False)
        # A constant row has no deviation to go by: one level stands for it.
        largest = (rows - middle[:, None]).abs().amax(dim=1)
        constant = deviation <= 1e-6 * largest
        scale = torch.where(constant, largest, deviation * self._unit)
        safe = torch.where(scale > 0, scale, torch.ones_like(scale))
        return ScaledLevels(round_to_odd((rows - middle[:, None]) / safe[:, None], self.bits), scale)

    def values(self, w: torch.Tensor) -> torch.Tensor:
        if not self.centred:
            return super().values(w)
        with torch.no_grad():
            check_finite(w, self.name)
            rows = as_rows(w, self.per_channel)
            middle = rows.mean(dim=1)
            levels, scale = self._levels(rows, middle)
            quantized = (levels * scale[:, None] + middle[:, None]).reshape(w.shape)
        return straight_through(w, quantized)
