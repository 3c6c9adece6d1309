"""Powers of two and zero for weights: every product is a shift.

Source: Zhou et al., "Incremental Network Quantization", ICLR 2017, section 2.1, for the set. It is ESB with no fraction
bits; the scale is ESB's.
"""

from esbflow.errors import BadValue
from esbflow.numbers import ESB
from esbflow.quant.methods.esb import ESBWeightQuantizer


class PowerOfTwoQuantizer(ESBWeightQuantizer):
    """0, +-1, +-2, +-4 ... times a scale: ESB(bits, 0).

    bits : 2..5. From 5 bits on nothing is gained: the finest levels lie below any use, the error stays that of 4 bits.
    """

    def __init__(self, bits: int, per_channel: bool = True, scale_mode: str = "refined", name: str = "weight"):
        if not 2 <= bits <= 5:
            raise BadValue(f"power-of-two weights have 2 to 5 bits, not {bits}")
        super().__init__(ESB(bits, 0), per_channel, scale_mode, name=name)
