"""PACT: activations clipped at a learned level.

Source: Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", 2018, section 3.
"""

import torch

from esbflow.numbers import Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.methods.lsq import clipped_range, damped


class PACTActivation(ActivationQuantizer):
    """min(max(x, 0), clip) on 2**bits levels.

    Parameters
    ----------
    bits : 1..16.
    decay : of the penalty decay * clip**2 / 2, which keeps clips small; published as the weights' decay.

    Gradient: to x straight through inside, to the clip from the values above it. The parameter is the step, clip / (2**bits
    - 1); its gradient is such that SGD moves the clip as it would if that were the parameter, as published. The clip starts
    where the Gaussian optimum of the first batch puts it.
    """

    def __init__(self, bits: int, decay: float = 1e-4, name: str = "activation"):
        super().__init__(Unsigned(bits), "learned", name=name)
        self.decay = decay

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and not self._has_scale():
            self.observe(x)
        return clipped_range(x, self.scale(x), self.form, self._factor)

    def penalty(self) -> torch.Tensor:
        return self.decay / 2 * (damped(self.scale(self.step), self._factor) * self.form.max).square().sum()

    @property
    def _factor(self) -> float:
        return 1 / self.form.max ** 2
