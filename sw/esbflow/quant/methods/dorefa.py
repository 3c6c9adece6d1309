"""DoReFa: weights squeezed by tanh, activations clipped to 0..1, both on uniform grids.

Source: Zhou et al., "DoReFa-Net", 2016, sections 2.3 and 2.4. The published weights forget their size (they always reach
+-1), which only a batch norm behind makes good; here they keep it, by the projection on the real weights.
"""

import torch

from esbflow.numbers import Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.base import ScaledLevels, straight_through
from esbflow.quant.methods.vecq import half_integer_format, round_to_odd
from esbflow.quant.weights import WeightQuantizer, as_rows, like_rows, project


class DoReFaQuantizer(WeightQuantizer):
    """tanh(w) / max|tanh(w)| on 2**bits levels from -1 to 1, odd integers.

    bits : 1..15; one bit is sign(w) * mean|w|. Gradient: through tanh. A row of zeros gives scale 0.
    """

    def __init__(self, bits: int, per_channel: bool = False, name: str = "weight"):
        super().__init__(half_integer_format(bits), per_channel, name)
        self.bits = bits

    def encode(self, rows: torch.Tensor) -> ScaledLevels:
        squeezed = torch.tanh(rows)
        largest = squeezed.abs().amax(dim=1, keepdim=True)
        levels = round_to_odd(squeezed / torch.where(largest > 0, largest, torch.ones_like(largest)) * self.form.max,
                              self.bits)
        return ScaledLevels(levels, project(rows, levels, torch.zeros_like(largest[:, 0])))

    def values(self, w: torch.Tensor) -> torch.Tensor:
        quantized = super().values(w.detach())
        rows = as_rows(w.detach(), self.per_channel)
        with torch.no_grad():
            scale = self.encode(rows).scale * self.form.max
            largest = torch.tanh(rows).abs().amax(dim=1)
            gain = scale / torch.where(largest > 0, largest, torch.ones_like(largest))
        squeezed = torch.tanh(w) * like_rows(gain, w)
        return straight_through(squeezed, quantized)


class DoReFaActivation(ActivationQuantizer):
    """Activations clipped to 0..1, on 2**bits levels: a fixed scale, no statistics.

    Gradient: straight through inside, zero outside.
    """

    def __init__(self, bits: int, name: str = "activation"):
        super().__init__(Unsigned(bits), "ema", name=name)
        self.step.fill_(1 / self.form.max)
        self.seen.fill_(True)

    def observe(self, x: torch.Tensor) -> None:
        """Nothing: the range is fixed."""
