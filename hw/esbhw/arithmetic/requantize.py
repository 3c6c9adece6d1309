"""One requantizer lane: the exact sum, the maximum over a window, one rounding, and four bits of the level."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import DIGIT_BITS, SHIFTED_RESIDUAL_BITS, EngineConfig
from esbflow.requantizer import (
    DIGIT_STEP,
    FACTOR_BITS,
    RESIDUAL_BITS,
    ROWS_A_STAGE,
    Stages,
    constant_fields,
    level_bits,
    multiplicand_bits,
)
from esbhw.arithmetic.requantizer_control import OCTAVES, WINDOW_BITS, controls_layout
from esbhw.fabric.adder_rows import Term, add_row, plain
from esbhw.fabric.comparator import greater
from esbhw.fabric.idioms import pick
from esbhw.fabric.multiplier_rows import digit_row, digits


def constants_layout(config: EngineConfig) -> StructLayout:
    """Constants of one channel as they lie in a 128-bit beat, lowest bits first, as esbflow.requantizer.fold gives them."""
    return StructLayout({name: signed(bits) if name in ("m", "n") else bits for name, bits in constant_fields(config)})


class RequantizeLane(wiring.Component):
    """A digit of the level nearest to max(acc*m + r*n + b) / 2**s, ties toward plus infinity, clamped to the format.

    The maximum runs over the values of a window, whose constants are equal; levels grow with their sums. The clock of
    every register is gated by `enable`, and nothing has a reset. All inputs come at their stage's cycle, see Stages and
    RequantizerControl, which gives `enable`, `first` and `controls`.

    Parameters
    ----------
    config : decides the widths, and whether there is a residual and ESB output
    acc_signed : how acc is read

    Members
    -------
    enable : In(Stages(config).count), bit i is high in the cycle in which the registers of stage i take a value
    acc : In(accumulator_width), in the cycle of stage `product`
    residual : In(8), two's complement, in cycle 0;  constants : In(constants_layout(config)), in cycle 0
    first : In(1), of a window, in the cycle of stage `held`;  controls : In(controls_layout(config))
    digit : Out(level_bits), bits 4*d.. of the level for digit d; in front of a function table all 8 of the level
    """

    ACC_SIGNED = False

    def __init__(self, config: EngineConfig, acc_signed: bool | None = None):
        self._config = config
        self._stages = Stages(config)
        self._acc_signed = self.ACC_SIGNED if acc_signed is None else acc_signed
        self._bits = level_bits(config)
        super().__init__({
            "enable": In(self._stages.count),
            "acc": In(config.accumulator_width), "residual": In(RESIDUAL_BITS), "constants": In(constants_layout(config)),
            "first": In(1), "controls": In(controls_layout(config)),
            "digit": Out(self._bits),
        })

    def elaborate(self, platform):
        m = Module()
        self._m, self._platform = m, platform
        total, shift = self._shifted_sum() if self._config.requantizer == "shift" else self._sum()
        held = self._maximum(total)
        window, negative, over = self._window(held, shift)
        if self._config.esb_output:
            self._round(window, negative, over)
        else:
            bottom = self._choice(over, negative)
            self._output([(window[i + 1], *bottom(i)) for i in range(self._bits)])
        return m

    def _register(self, value, stage: int, name: str) -> Signal:
        """`value` one cycle later, taken by stage `stage`."""
        q = Signal(len(value), name=f"{name}_{stage}", reset_less=True)
        with self._m.If(self.enable[stage]):
            self._m.d.sync += q.eq(value)
        return q

    def _until(self, value, stage: int, name: str, start: int = 0):
        """`value` of cycle `start`, in the cycle of `stage`."""
        for i in range(start, stage):
            value = self._register(value, i, name)
        return value

    # -- the sum ----------------------------------------------------------------------------------------------
    def _sum(self) -> tuple:
        """(acc*m + r*n + b, a function that gives s in the cycle of a stage)."""
        config, stages = self._config, self._stages
        constants, width = self.constants, config.requantize_width
        bits = multiplicand_bits(config)
        product = stages.product
        acc = Signal(signed(bits) if self._acc_signed else bits, name="acc_wide")
        self._m.d.comb += acc.eq(self.acc.as_signed() if self._acc_signed else self.acc)
        addend_bits = bits + 2
        if config.residual:
            # r*n takes b's lowest bits with it, and the first row of acc*m those that lie above r*n.
            low, middle = FACTOR_BITS + 2, 0
            residual = self._rows(constants.n, digits(self.residual), constants.b[:low], 0, "residual")
            middle = len(residual)
            b = self._until(constants.b[low:], product, "b")
            addend = Cat(residual, b[middle - low:addend_bits - low])
        else:
            low = middle = addend_bits
            b, addend = constants.b[low:], constants.b[:low]
        m = self._until(constants.m, product, "m")
        sums = self._rows(acc, digits(m), addend, product, "product")
        b = self._until(b, stages.total, "b", product)
        taken = [(k, b[k - low]) for k in range(low, width) if not middle <= k < addend_bits]
        places = dict(taken)
        rest = Term(
            Cat(places.get(k, Const(0, 1)) for k in range(width)),
            tuple(((places[k],), lambda a: a) if k in places else None for k in range(width)), (1 << width) - 1)
        total, _ = add_row(self._m, self._platform, [plain(sums), rest], "total", width)
        s = self._until(constants.s, stages.total, "s")
        return self._register(total, stages.total, "total"), s

    def _shifted_sum(self) -> tuple:
        """(+-acc + (+-r << k) + b, s in the cycle of stage `total`)."""
        config, m = self._config, self._m
        constants, width, stage = self.constants, config.requantize_width, self._stages.total
        acc = Signal(width, name="acc_wide")
        m.d.comb += acc.eq(self.acc.as_signed() if self._acc_signed else self.acc)
        negative = self._until(constants.negative, stage, "negative_acc")
        b = self._until(constants.b, stage, "b")
        terms = [Term(acc ^ negative.replicate(width), tuple(((bit, negative), lambda a, g: a ^ g) for bit in acc),
                      (1 << width) - 1), plain(b)]
        if config.residual:
            terms.append(plain(self._shifted_residual()))
        total, _ = add_row(m, self._platform, terms, "total", width)
        return self._register(total, stage, "total"), self._until(constants.s, stage, "s")

    def _shifted_residual(self) -> Signal:
        """(+-r + 128 or 127) << k, in two steps of 0..3 and of 0, 4 or 8 bits, or 0; in the cycle of stage `product`."""
        constants, zeros = self.constants, Const(0, 3)
        # Offset binary, so that a shift brings in no signs.
        offset = self.residual ^ (1 << RESIDUAL_BITS - 1) ^ constants.residual_negative.replicate(RESIDUAL_BITS)
        places = constants.residual_shift
        padded = Cat(zeros, offset[:RESIDUAL_BITS], zeros)
        little = self._register(Cat(pick(places[:2], [padded[j + 3 - k] for k in range(4)])
                                    for j in range(RESIDUAL_BITS + 3)), 0, "residual_little")
        rest = self._register(Cat(places[2:], constants.residual_off), 0, "residual_places")
        padded = Cat(Const(0, 8), little, Const(0, 8))
        shifted = [pick(rest[:2], [padded[j + 8 - 4 * min(k, 2)] for k in range(4)]) for j in range(SHIFTED_RESIDUAL_BITS)]
        return self._register(Mux(rest[2], 0, Cat(shifted)), 1, "residual")

    def _rows(self, multiplicand, parts: list, addend, start: int, name: str):
        """addend + multiplicand * multiplier and the rows' offsets, registered after every ROWS_A_STAGE rows."""
        m, platform, low, count = self._m, self._platform, [], len(parts)
        for k in range(count):
            total = digit_row(m, platform, addend, multiplicand, parts[0], f"{name}_{k}")
            parts = parts[1:]
            low.append(total[:DIGIT_STEP] if parts else total)
            addend = total[DIGIT_STEP:]
            if k % ROWS_A_STAGE == ROWS_A_STAGE - 1:
                stage = start + k // ROWS_A_STAGE
                low = [self._register(Cat(*low), stage, f"{name}_low")]
                if parts:
                    addend = self._register(addend, stage, f"{name}_high")
                    multiplier = self._register(Cat(*parts), stage, f"{name}_multiplier")
                    parts = [multiplier[3 * i:3 * i + 3] for i in range(len(parts))]
                    held = Signal(multiplicand.shape(), name=f"{name}_multiplicand_{k}")
                    m.d.comb += held.eq(self._register(multiplicand, stage, f"{name}_multiplicand"))
                    multiplicand = held
        return low[0]

    def _maximum(self, total):
        """The largest sum of a window so far."""
        held = Signal(len(total), reset_less=True)
        above = greater(self._m, self._platform, total, held, "above")
        with self._m.If(self.enable[self._stages.held] & (self.first | above)):
            self._m.d.sync += held.eq(total)
        return held

    # -- shift and range ---------------------------------------------------------------------------------------
    def _window(self, held, shift) -> tuple:
        """(bits of floor(2*T / 2**shift) from 4*d on, sign, does the level lie beyond the format)."""
        m, stages, width = self._m, self._stages, len(held)
        stage = stages.total
        start = self._register(shift + (self.controls.digit << 2), stage, "start")
        edge = self._register(shift + self.controls.edge, stage, "edge")
        # Beyond the sum every bit is its sign: large shifts are all alike.
        start = self._register(Cat(start[:4], (start[4:6] | start[6].replicate(2))), stage + 1, "start")
        edge = self._register(Cat(edge[:2], edge[2:6] | edge[6].replicate(4)), stage + 1, "edge")

        stage = stages.coarse
        sign = held[-1]
        extended = Cat(held, sign.replicate(64 - width))
        needed = (WINDOW_BITS if self._config.esb_output else self._bits + 1) + 15
        doubled = Cat(Const(0, 1), extended, sign.replicate(16))
        coarse = self._register(Cat(pick(start[4:6], [doubled[j + 16 * k] for k in range(4)]) for j in range(needed)),
                                stage, "coarse")
        differ = [(held[j:min(j + 4, width - 1)] ^ sign.replicate(min(4, width - 1 - j))).any()
                  for j in range(0, width - 1, 4)]
        differ = self._register(Cat(*differ), stage, "differ")
        across = self._register(extended.word_select(edge[2:6], 4), stage, "across")
        negative = self._register(sign, stage, "negative")
        start, edge = self._register(start[:4], stage, "start"), self._register(edge, stage, "edge")

        stage = stages.fine
        middle = Cat(pick(start[2:4], [coarse[j + 4 * k] for k in range(4)]) for j in range(needed - 12))
        fine = Cat(pick(start[:2], [middle[j + k] for k in range(4)]) for j in range(needed - 15))
        above = Signal()
        beyond = Signal()
        m.d.comb += [
            above.eq(Cat(differ[j] & (edge[2:6] < j) for j in range(1, len(differ))).any()),
            beyond.eq(((across ^ negative.replicate(4)) >> edge[:2]).any()),
        ]
        return (self._register(fine, stage, "window"), self._register(negative, stage, "negative"),
                self._register(above | beyond, stage, "over"))

    # -- ESB ---------------------------------------------------------------------------------------------------
    def _round(self, window, negative, over) -> None:
        """Round to the quantum of the octave: add half of it, clear what lies below it.

        Rounding toward plus infinity is the same sum for both signs. The octave is that of the one's complement's
        magnitude: it differs from the true one only where both octaves round to the same level.
        """
        stages, controls = self._stages, self.controls
        stage = stages.magnitude
        magnitude = window[:WINDOW_BITS] ^ negative.replicate(WINDOW_BITS)
        reaches = self._register(Cat(magnitude[j:].any() for j in range(2, WINDOW_BITS)), stage, "reaches")
        full = (magnitude | ~controls.full).all() & controls.esb
        beyond = self._register(over | full, stage, "beyond")
        window, negative = self._register(window, stage, "value"), self._register(negative, stage, "negative")

        stage = stages.octave
        octave = []
        for i in range(1, OCTAVES + 1):
            choices = [reaches[i + 1 + k - 2] for k in range(WINDOW_BITS - i - 1)]
            octave.append(Cat(choices).bit_select(controls.significand, 1) & controls.octaves[i - 1])
        octave = self._register(Cat(*octave), stage, "octave")
        window, negative, beyond = (self._register(value, stage, name) for value, name in (
            (window, "value"), (negative, "negative"), (beyond, "beyond")))

        stage = stages.rounded
        above = Cat(controls.rounds, octave)
        half = above & ~Cat(octave, Const(0, 1))
        rounded = self._register((Cat(window, negative) + half)[:WINDOW_BITS + 1], stage, "rounded")
        octave, negative, beyond = (self._register(value, stage, name) for value, name in (
            (octave, "octave"), (negative, "negative"), (beyond, "beyond")))

        level = Cat(*(rounded[i + 1] & ~octave[i] if i < OCTAVES else rounded[i + 1] for i in range(8)))
        chosen = Mux(controls.high, Mux(controls.sign, rounded[-1].replicate(DIGIT_BITS), level[4:]), level[:4])
        if self._bits > DIGIT_BITS:
            chosen = Cat(chosen, level[DIGIT_BITS:self._bits])
        bottom = self._choice(beyond, negative)
        self._output([(chosen[i], *bottom(i)) for i in range(self._bits)])

    def _choice(self, over, negative):
        """The bits that stand for a level beyond the format's ends, or below zero in an unsigned one."""
        controls = self.controls

        def end(i):
            return over | negative & ~controls.signed, Mux(negative, controls.bottom[i], controls.top[i])
        return end

    def _output(self, bits: list) -> None:
        """Of each bit: its value within the format, whether the level lies beyond, its value at the format's end."""
        stage = self._stages.output
        value = Cat(Mux(clamped, end, inside) for inside, clamped, end in bits)
        self._m.d.comb += self.digit.eq(self._register(value, stage, "digit"))
