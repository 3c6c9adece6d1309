"""Two banks of accumulators in block RAM: one is added to while the other is drained."""

from amaranth import Module, Mux, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import DIGIT_BITS, EngineConfig

SHIFT_DIGITS = 3
"""A pass is shifted left by 0 to 3 digits of 4 bits."""


def control_layout(config: EngineConfig):
    """What travels with a pixel through the array."""
    return StructLayout({
        "valid": 1, "first": 1, "bank": 1, "index": range(config.accumulator_depth), "shift": range(SHIFT_DIGITS + 1),
        "post": 1,
    })


class Accumulators(wiring.Component):
    """acc[bank][index][c] = (first ? 0 : acc[bank][index][c]) + (dot[c] << 4*shift).

    `control` comes with its `dots`. One pixel a cycle; the same pixel again after HAZARD_CYCLES at the earliest.
    `post` rises LATENCY cycles after `control`, when a drain may read the sum.

    Members
    -------
    control : In(control_layout);  dots : In(cols * dot_bits)
    post : Out(1)
    drain_bank, drain_index : In;  drain_data : Out(cols * accumulator_width), one cycle later
    overflow : Out(1), for good
    """

    HAZARD_CYCLES = 3
    LATENCY = 2

    def __init__(self, config: EngineConfig, dot_bits: int):
        self._config = config
        self._dot_bits = dot_bits
        super().__init__({
            "control": In(control_layout(config)),
            "dots": In(config.cols * dot_bits),
            "post": Out(1),
            "drain_bank": In(1), "drain_index": In(range(config.accumulator_depth)),
            "drain_data": Out(config.cols * config.accumulator_width),
            "overflow": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        width = config.accumulator_width
        layout = control_layout(config)
        reads, writes = [], []
        for bank in range(2):
            m.submodules[f"bank{bank}"] = memory = Memory(
                shape=unsigned(config.cols * width), depth=config.accumulator_depth, init=[])
            reads.append(memory.read_port())
            writes.append(memory.write_port())

        shifted_control = Signal(layout)
        sum_control = Signal(layout)
        m.d.sync += [shifted_control.eq(self.control), sum_control.eq(shifted_control)]
        for bank, (read, write) in enumerate(zip(reads, writes)):
            adding = self.control.valid & (self.control.bank == bank)
            m.d.comb += [
                read.addr.eq(Mux(adding, self.control.index, self.drain_index)), read.en.eq(1),
                write.addr.eq(sum_control.index), write.en.eq(sum_control.valid & (sum_control.bank == bank)),
            ]
        drained = Signal()
        m.d.sync += drained.eq(self.drain_bank)
        m.d.comb += [
            self.drain_data.eq(Mux(drained, reads[1].data, reads[0].data)),
            self.post.eq(sum_control.valid & sum_control.post),
        ]

        old_row = Signal(config.cols * width)
        m.d.comb += old_row.eq(Mux(shifted_control.bank, reads[1].data, reads[0].data))
        overflows = Signal(config.cols)
        for c in range(config.cols):
            dot = self.dots.word_select(c, self._dot_bits).as_signed()
            # Wide enough to see what falls off at the top.
            shifted = Signal(signed(self._dot_bits + DIGIT_BITS * SHIFT_DIGITS), name=f"shifted_{c}")
            options = [dot << (DIGIT_BITS * k) for k in range(SHIFT_DIGITS + 1)]
            with m.Switch(self.control.shift):
                for k, option in enumerate(options):
                    with m.Case(k):
                        m.d.sync += shifted.eq(option)
            old = Signal(signed(width), name=f"old_{c}")
            total = Signal(signed(max(width, len(shifted)) + 1), name=f"total_{c}")
            stored = Signal(signed(width), name=f"stored_{c}")
            m.d.comb += [
                old.eq(Mux(shifted_control.first, 0, old_row.word_select(c, width).as_signed())),
                total.eq(old + shifted),
            ]
            top = total[width - 1:]
            m.d.sync += [
                stored.eq(total),
                overflows[c].eq(shifted_control.valid & (top != 0) & (top != (1 << len(top)) - 1)),
            ]
            for write in writes:
                m.d.comb += write.data.word_select(c, width).eq(stored)
        with m.If(overflows.any()):
            m.d.sync += self.overflow.eq(1)
        return m
