"""What all requantizer lanes share: when their stages take values, and their output format, cycle by cycle."""

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbflow.requantizer import LEVEL_BITS, Stages, level_bits
from esbhw.fabric.idioms import delayed, register

FORMAT = StructLayout({"bits": 6, "signed": 1, "esb": 1, "significand": 3, "octaves": 3})
"""The output format of a drain: linear with `bits` bits, or ESB with `significand` fraction bits and levels
(2**(significand+1)-1) << octaves at most, which is below 256."""

WINDOW_BITS = 9
"""Bits below the sign of a doubled level of ESB."""
OCTAVES = 6
"""ESB formats of levels below 256 have 0, 2 or 6 octaves above the first."""


def controls_layout(config: EngineConfig) -> StructLayout:
    """What a stage needs of a value's format."""
    bits = level_bits(config)
    return StructLayout({
        # At stage `total`: levels have `edge` bits below the sign; `digit` of them is wanted, 0 of ESB.
        "edge": 6, "digit": 3,
        # At stage `magnitude`: the format is ESB, and the bits that are all set only where the level rounds beyond the top.
        "esb": 1, "full": WINDOW_BITS,
        # At stage `octave`: bit i-1 says that there is an octave i. At stage `rounded`: there is something to round.
        "significand": 3, "octaves": OCTAVES, "rounds": 1,
        # At stage `output`: the upper digit or a sign is wanted; these bits of the largest and of the smallest level.
        "high": 1, "sign": 1, "signed": 1, "top": bits, "bottom": bits,
    })


class RequantizerControl(wiring.Component):
    """Follows the values through the lanes: enables, and the controls that each stage needs of a value's format.

    Parameters
    ----------
    early : cycles that a value's format and digit come before it

    Members
    -------
    valid, first, last : In(1), with the value, in cycle 0, the latter two of a window
    format : In(FORMAT);  digit : In(3), `early` cycles before
    enable : Out(Stages(config).count);  held : Out(1), `first` in the cycle of stage `held`
    controls : Out(controls_layout(config));  done : Out(1), a digit of a window leaves the lanes in this cycle
    """

    def __init__(self, config: EngineConfig, early: int = 0):
        self._config, self._stages, self._early = config, Stages(config), early
        super().__init__({
            "valid": In(1), "first": In(1), "last": In(1), "format": In(FORMAT), "digit": In(3),
            "enable": Out(self._stages.count), "held": Out(1), "controls": Out(controls_layout(config)), "done": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        self._enables(m)
        at_total = self._line(m)
        self._at_total(m, at_total)
        late = self._stages.output - 2
        if self._config.esb_output:
            at = self._at_rounding(m, at_total, late)
        else:
            at = self._until(m, at_total, late, "format", self._stages.total - 1)
        self._ends(m, at, late)
        return m

    def _until(self, m, value, stage: int, name: str, start: int = 0):
        """`value` of cycle `start`, in the cycle of `stage`."""
        return delayed(m, value, stage - start, name, first=start + self._early)

    def _to_lanes(self, m, value, stage: int, name: str):
        """`value` of the cycle before in the cycle of `stage`. Lanes have up to three levels of LUTs behind these: a
        register with a reset cannot be the end of a shift register, which would be a fourth."""
        return register(m, value, f"{name}_{stage - 1 + self._early}", reset_less=False)

    def _enables(self, m) -> None:
        """Which stages move, and when a digit is done."""
        stages = self._stages
        enables, valid = [], self.valid
        for i in range(stages.count + 1):
            if i == stages.held + 1:  # only a whole window goes on
                valid = valid & self._until(m, self.last, i, "last")
                finished = Signal()
                m.d.comb += finished.eq(valid)
                valid = finished
            enables.append(valid)
            valid = register(m, valid, f"valid_{i}", reset_less=False)
        m.d.comb += [
            self.enable.eq(Cat(*enables[:stages.count])), self.done.eq(enables[stages.count]),
            self.held.eq(self._until(m, self.first, stages.held, "first")),
        ]

    def _line(self, m):
        """The format's fields side by side, a cycle before stage `total`: one delay line brings them to all stages.

        Bits 0..5 are the edge, 6..8 the digit, 9 is the sign; of ESB 10 says that it is, 11..13 are the significand and
        14..16 the octaves.
        """
        form, esb_output = self.format, self._config.esb_output
        esb_here = form.esb if esb_output else 0
        edge = Signal(6)
        m.d.comb += edge.eq(Mux(esb_here, form.significand + form.octaves + 1, form.bits - form.signed))
        fields = Cat(edge, self.digit, form.signed, *((form.esb, form.significand, form.octaves) if esb_output else ()))
        return self._until(m, fields, self._stages.total - 1, "format", -self._early)

    def _at_total(self, m, at) -> None:
        """Controls of stage `total`; `at` is the delay line a cycle before."""
        controls, total = self.controls, self._stages.total
        wanted = Signal(3)
        m.d.comb += wanted.eq(Mux(at[10], 0, at[6:9]) if self._config.esb_output else at[6:9])
        m.d.comb += [controls.edge.eq(self._to_lanes(m, at[:6], total, "edge")),
                     controls.digit.eq(self._to_lanes(m, wanted, total, "digit"))]

    def _at_rounding(self, m, at_total, late: int):
        """Controls of the stages that round to ESB; the result is the delay line in cycle `late`."""
        stages, controls = self._stages, self.controls
        at = self._until(m, at_total, stages.magnitude - 1, "format", stages.total - 1)
        edge, esb, octaves = at[:6], at[10], at[14:17]
        full = Cat((octaves <= i) & (edge >= i) for i in range(WINDOW_BITS))
        stage = stages.magnitude
        m.d.comb += [controls.esb.eq(self._to_lanes(m, esb, stage, "esb")),
                     controls.full.eq(self._to_lanes(m, full, stage, "full"))]
        at = self._until(m, at, stages.octave - 1, "format", stages.magnitude - 1)
        esb, significand, octaves = at[10], at[11:14], at[14:17]
        available = Cat(esb & (octaves >= i) for i in range(1, OCTAVES + 1))
        stage = stages.octave
        m.d.comb += [controls.octaves.eq(self._to_lanes(m, available, stage, "octaves")),
                     controls.significand.eq(self._to_lanes(m, significand, stage, "significand")),
                     controls.rounds.eq(self._until(m, esb, stage + 1, "rounds", stage - 1))]
        return self._until(m, at, late, "format", stages.octave - 1)

    def _ends(self, m, at, late: int) -> None:
        """The wanted bits of the largest and smallest level, two cycles before they are needed."""
        controls, esb_output = self.controls, self._config.esb_output
        edge, digit, is_signed = at[:6], at[6:9], at[9]
        esb, octaves = (at[10], at[14:17]) if esb_output else (0, 0)
        # Bits of the level below this digit's last, and where in it the quantum of the last octave lies.
        inside, quantum = Signal(signed(7)), Signal(signed(7))
        m.d.comb += [inside.eq(edge - (digit << 2)), quantum.eq(octaves - (digit << 2))]
        inside, quantum = (self._until(m, value, late + 1, name, late)
                           for value, name in ((inside, "inside"), (quantum, "quantum")))
        rest = self._until(m, Cat(is_signed, esb, digit), late + 1, "rest", late)
        is_signed, esb, digit = rest[0], rest[1] if esb_output else 0, rest[-3:]
        top, bottom = [], []
        for i in range(level_bits(self._config)):
            top.append((inside > i) & (~esb | (quantum <= i)) if esb_output else inside > i)
            outside = (inside <= i) | (esb & (quantum == i) if esb_output else 0)
            bottom.append(is_signed & outside)
        words = [("top", Cat(*top)), ("bottom", Cat(*bottom)), ("signed", is_signed)]
        if esb_output:
            words += [("high", esb & (digit != 0)), ("sign", digit > 1)]
        for name, value in words:
            m.d.comb += getattr(controls, name).eq(self._until(m, value, late + 2, name, late + 1))


assert LEVEL_BITS // DIGIT_BITS <= 8  # digits are numbered by 3 bits
