"""VecQ: half-integer levels; first the codes of least angle to the weights, then the scale of least distance.

Source: Gong et al., "VecQ: Minimal Loss DNN Model Compression With Vectorized Weight Quantization", IEEE Trans. Computers,
2020. The published constants stop at 8 bits and go on with 6/(2**b - 1), which clips at three deviations and makes every
wider quantizer worse than the one of 7 bits; here the optimum is computed for every width (dda.py).
"""

import torch

from esbflow.errors import BadValue
from esbflow.numbers import Codebook, Format
from esbflow.quant.base import ScaledLevels
from esbflow.quant.methods.dda import optimal_scale
from esbflow.quant.weights import WeightQuantizer, exact_scale, project


def half_integer_format(bits: int) -> Format:
    """Odd integers -(2**bits - 1) .. 2**bits - 1: the levels i + 1/2, doubled, as the engine multiplies them.

    Raises
    ------
    ValueError
        if bits is not in 1..15.

    >>> half_integer_format(2).levels
    array([-3, -1,  1,  3])
    """
    if not 1 <= bits <= 15:
        raise BadValue(f"a half-integer grid has 1 to 15 bits, not {bits}")
    top = 2 ** bits - 1
    return Codebook(tuple(range(-top, top + 1, 2)))


def half_integer_spacing(bits: int) -> float:
    """The distance of levels, for unit deviation, of least expected error on Gaussian data.

    >>> round(half_integer_spacing(2), 6)
    0.995687
    """
    return 2 * optimal_scale(half_integer_format(bits))


def round_to_odd(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest odd integer in the range of `half_integer_format(bits)`, a tie upwards; no gradient."""
    top = 2 ** bits - 1
    return (2 * torch.floor(x / 2) + 1).clamp(-top, top)


class VecQQuantizer(WeightQuantizer):
    """Weights to half-integers times a scale: orientation by a Gaussian grid, modulus by projection.

    Parameters
    ----------
    bits : 1..15.
    per_channel : published per tensor; the algebra is the same by rows.
    norm_ratio : scale |w| / |q| as one released port has it, instead of the projection w.q / q.q. It is not the L2
        optimum (error 2 - 2 cos against 1 - cos**2) and only there for comparison.

    The grid has no zero: a row of zeros gets levels of one and scale 0. A constant row is exact.
    """

    def __init__(self, bits: int, per_channel: bool = False, norm_ratio: bool = False, name: str = "weight"):
        super().__init__(half_integer_format(bits), per_channel, name)
        self.bits = bits
        self.norm_ratio = norm_ratio
        self._unit = optimal_scale(self.form)

    def encode(self, rows: torch.Tensor) -> ScaledLevels:
        scale = exact_scale(rows, rows.std(dim=1, unbiased=False) * self._unit, self.form)
        levels = round_to_odd(rows / scale[:, None], self.bits)
        if self.norm_ratio:
            return ScaledLevels(levels, rows.norm(dim=1) / levels.norm(dim=1))
        return ScaledLevels(levels, project(rows, levels, torch.zeros_like(scale)))
