"""Binary weights: a sign and one scale a row.

Source: Rastegari et al., "XNOR-Net", ECCV 2016, section 3.1 (BWN). sign(0) is +1.
"""

import torch

from esbflow.numbers import Binary
from esbflow.quant.base import ScaledLevels
from esbflow.quant.weights import WeightQuantizer


class BinaryQuantizer(WeightQuantizer):
    """sign(w) * mean|w|: the L2 optimum of one bit. A row of zeros gives scale 0; a constant row is exact."""

    def __init__(self, per_channel: bool = True, name: str = "weight"):
        super().__init__(Binary(), per_channel, name)

    def encode(self, rows: torch.Tensor) -> ScaledLevels:
        return ScaledLevels(torch.where(rows >= 0, 1.0, -1.0).to(rows.dtype), rows.abs().mean(dim=1))
