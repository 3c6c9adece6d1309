"""One requantizer lane: the exact sum, one rounding to the nearest level, and the running maximum."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out

from esbhw.arithmetic.multiply import add_level, partial_products

CONSTANTS = StructLayout({"m": signed(12), "n": signed(12), "s": 6, "pad": 2, "b": signed(40)})
"""Constants of one channel as they lie in a 128-bit beat, lowest bits first: m, n, s, b at bit 32."""

FORMAT = StructLayout({"bits": 6, "signed": 1, "esb": 1, "significand": 3, "octaves": 3})
"""The output format of a drain: linear with `bits` bits, or ESB with `significand` fraction bits and levels
(2**(significand+1)-1) << octaves at most."""

RESIDUAL_BITS = 9
LEVEL_BITS = 32


class RequantizeLane(wiring.Component):
    """level nearest to (acc*m + r*n + b) / 2**s, ties toward plus infinity, clamped to the format.

    floor(2x) decides every tie between integer levels, so the sum is shifted by s - 1 and only then rounded: once.
    Latency is LATENCY cycles, throughput one value a cycle, no back-pressure. Inputs need not be held. Registers move with
    `valid` only, so that an idle lane costs neither power nor simulation time.

    Parameters
    ----------
    accumulator_width : bits of acc;  sum_width : bits that hold the exact sum

    Members
    -------
    valid, acc, residual, constants, format : In;  level : Out(signed(33))
    """

    LATENCY = 7

    def __init__(self, accumulator_width: int, sum_width: int):
        self._acc = accumulator_width
        self._sum = sum_width
        super().__init__({
            "valid": In(1), "acc": In(accumulator_width), "residual": In(signed(RESIDUAL_BITS)),
            "constants": In(CONSTANTS), "format": In(FORMAT),
            "level": Out(signed(LEVEL_BITS + 1)),
        })

    def elaborate(self, platform):
        m = Module()
        k = self.constants
        delayed_format = [self.format]
        valids = [self.valid]  # valids[i] is high when stage i + 1 takes a value
        for i in range(6):
            register = Signal(FORMAT, name=f"format_{i}")
            valid = Signal(name=f"valid_{i}")
            m.d.sync += valid.eq(valids[-1])
            with m.If(valids[-1]):
                m.d.sync += register.eq(delayed_format[-1])
            delayed_format.append(register)
            valids.append(valid)

        # Cycles 1..3: all partial products, three adder stages.
        rows = partial_products(Cat(self.acc, Const(0, 1)).as_signed(), k.m) + partial_products(self.residual, k.n) + [k.b]
        with m.If(valids[0]):
            rows = add_level(m, rows, "stage1", "sync", operands=3)
        with m.If(valids[1]):
            rows = add_level(m, rows, "stage2", "sync", operands=3)
        total = Signal(signed(self._sum))
        with m.If(valids[2]):
            m.d.sync += total.eq(sum(rows[1:], start=rows[0]))
        shift = k.s
        for i in range(3):
            register = Signal(6, name=f"shift_{i}")
            with m.If(valids[i]):
                m.d.sync += register.eq(shift)
            shift = register

        # Cycles 4 and 5: doubled = floor(2 * total / 2**s).
        coarse = Signal(signed(self._sum + 1))
        fine = Signal(3)
        with m.If(valids[3]):
            m.d.sync += [coarse.eq((total << 1) >> Cat(Const(0, 3), shift[3:])), fine.eq(shift[:3])]
        doubled = Signal(signed(self._sum + 1))
        with m.If(valids[4]):
            m.d.sync += doubled.eq(coarse >> fine)

        # Cycle 6: the linear level, and a doubled value clamped to what an ESB format of 8 bits can need.
        form = delayed_format[5]
        rounded = Signal(signed(self._sum + 1))
        largest = Signal(signed(LEVEL_BITS + 1))
        smallest = Signal(signed(LEVEL_BITS + 1))
        m.d.comb += [
            rounded.eq((doubled + 1) >> 1),
            largest.eq((Const(1, 1) << (form.bits - form.signed)[:6]) - 1),
            smallest.eq(Mux(form.signed, ~largest, 0)),
        ]
        linear = Signal(signed(LEVEL_BITS + 1))
        clipped = Signal(signed(11))
        with m.If(valids[5]):
            m.d.sync += [
                linear.eq(Mux(rounded > largest, largest, Mux(rounded < smallest, smallest, rounded))),
                clipped.eq(Mux(doubled > 1023, 1023, Mux(doubled < -1023, -1023, doubled))),
            ]

        # Cycle 7: the ESB level of a magnitude; half goes down for negative values, which is up in their order.
        form = delayed_format[6]
        negative = clipped[-1]
        magnitude = Signal(10)
        m.d.comb += magnitude.eq(Mux(negative, -clipped, clipped))
        level = Signal(10)
        candidates = [((magnitude + (1 << n) - negative) >> (n + 1)) << n for n in range(8)]
        m.d.comb += level.eq(candidates[0])
        for n in range(1, 8):
            with m.If((form.octaves >= n) & ((magnitude >> (n + 1) >> form.significand) != 0)):
                m.d.comb += level.eq(candidates[n])
        top = Signal(10)
        m.d.comb += top.eq(((Const(2, 2) << form.significand) - 1) << form.octaves)
        bounded = Mux(level > top, top, level)
        esb = Mux(negative, Mux(form.signed, -bounded, 0), bounded)
        with m.If(valids[6]):
            m.d.sync += self.level.eq(Mux(form.esb, esb, linear))
        return m
