"""The dot product of one output channel: shifts, adds and one's complements."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

ACTIVATION_BITS = 5
"""An activation digit in the array: two's complement, so that unsigned and signed 4-bit digits both fit."""
MAGNITUDE_BITS = 4
WEIGHT_BITS = 1 + MAGNITUDE_BITS
"""A weight digit in the array: magnitude in bits 3..0, sign in bit 4."""


class ShiftAddDot(wiring.Component):
    """Sum over r of activation[r] * magnitude[r], with the activation's one's complement where the sign is set.

    A set sign multiplies ~a = -a - 1, so that the result lacks one magnitude for each negative weight; that is a
    constant of the weights, which the compiler adds to the bias. Magnitude bit i gates a copy of the activation with
    weight 2**i; each bit plane is summed by a tree of its own (scheme A: a leaf adds two gated operands), and the four
    planes are joined at the end.

    Latency is `latency(rows)` cycles, throughput one result a cycle; there is no back-pressure and no reset.

    Parameters
    ----------
    rows : int, a power of two, at least 4

    Members
    -------
    activations : In(rows * 5), digit r in bits 5r..5r+4, two's complement
    weights : In(rows * 5), digit r in bits 5r..5r+4, sign and magnitude
    o : Out(signed(dot_bits(rows)))
    """

    def __init__(self, rows: int):
        self._rows = rows
        super().__init__({
            "activations": In(rows * ACTIVATION_BITS),
            "weights": In(rows * WEIGHT_BITS),
            "o": Out(signed(self.dot_bits(rows))),
        })

    @staticmethod
    def latency(rows: int) -> int:
        """Tree levels, two to a pipeline stage, then one stage that joins the planes.

        >>> ShiftAddDot.latency(16)
        3
        """
        return (rows.bit_length() - 1 + 1) // 2 + 1

    @staticmethod
    def dot_bits(rows: int) -> int:
        """Bits of the result: rows * 16 * 15 at most in magnitude.

        >>> ShiftAddDot.dot_bits(16)
        13
        """
        return (rows * 16 * 15).bit_length() + 1

    def elaborate(self, platform):
        m = Module()
        gated = [[] for _ in range(MAGNITUDE_BITS)]
        zero = 1 << ACTIVATION_BITS - 1  # in offset binary, see _tree
        for r in range(self._rows):
            digit = self.activations.word_select(r, ACTIVATION_BITS)
            weight = self.weights.word_select(r, WEIGHT_BITS)
            flipped = Signal(ACTIVATION_BITS, name=f"flipped_{r}")
            m.d.comb += flipped.eq(digit ^ weight[MAGNITUDE_BITS].replicate(ACTIVATION_BITS))
            for i in range(MAGNITUDE_BITS):
                gated[i].append((Mux(weight[i], flipped, 0) + zero)[:ACTIVATION_BITS])
        planes = [self._tree(m, operands, f"plane{i}") for i, operands in enumerate(gated)]
        low = planes[0] + (planes[1] << 1)
        high = planes[2] + (planes[3] << 1)
        joined = Signal(signed(self.dot_bits(self._rows)), reset_less=True)
        m.d.sync += joined.eq(low + (high << 2))
        m.d.comb += self.o.eq(joined)
        return m

    @staticmethod
    def _tree(m, operands, name):
        """The signed sum of `operands`, which are offset binary: their top bits are the wrong way round.

        The sum of two such numbers, one bit wider, is offset binary again. So no adder of the tree extends a sign.
        """
        level = 0
        while len(operands) > 1:
            sums = []
            # Register after every second level, and after the last one.
            registered = level % 2 == 1 or len(operands) == 2
            zero = 1 << ACTIVATION_BITS + level
            for k in range(0, len(operands), 2):
                total = Signal(ACTIVATION_BITS + level + 1, name=f"{name}_level{level}_{k // 2}", init=zero,
                               reset_less=True)
                domain = m.d.sync if registered else m.d.comb
                domain += total.eq(operands[k] + operands[k + 1])
                sums.append(total)
            operands = sums
            level += 1
        return (operands[0] ^ zero).as_signed()
