"""Uniform symmetric quantization by the largest magnitude: the plain 8-bit default of most tools, at any width.

Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018, section 2.
"""

import torch

from esbflow.errors import BadValue
from esbflow.numbers import Signed
from esbflow.quant.weights import WeightQuantizer, exact_scale


class UniformQuantizer(WeightQuantizer):
    """Integers -(2**(bits-1) - 1) .. 2**(bits-1) - 1 times max|w| / (2**(bits-1) - 1).

    bits : 2..16. Nothing is clipped; outliers make all steps coarse, which formats such as "s4", with the scale of least
    error, avoid.
    """

    def __init__(self, bits: int, per_channel: bool = True, name: str = "weight"):
        if not 2 <= bits <= 16:
            raise BadValue(f"uniform weights have 2 to 16 bits, not {bits}")
        super().__init__(Signed(bits), per_channel, name)

    def row_scale(self, rows: torch.Tensor) -> torch.Tensor:
        return exact_scale(rows, rows.abs().amax(dim=1) / self.form.max, self.form)
