"""Two banks of accumulators in block RAM: one is added to while the other is drained."""

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib.data import StructLayout
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import Component, In, Out

from esbflow import engine_facts as facts
from esbflow.engine_config import EngineConfig
from esbhw.engine.channel_unit import window_layout
from esbhw.fabric.adder_rows import add_row, plain, selected
from esbhw.fabric.luts import multiplexed
from esbhw.target import share

LOST_COLUMNS = 6
"""Columns whose flags of a lost sum one LUT looks at."""


def control_layout(config: EngineConfig):
    """What travels with a pixel through the array."""
    return StructLayout({
        "valid": 1, "first": 1, "bank": 1, "index": range(config.accumulator_depth),
        "shift": range(config.largest_shift + 1), "post": 1,
        **({"channel": 1, "window": window_layout(config)} if config.channel_unit else {}),
    })


class AccumulatorColumn(Component):
    """The adder of one column: sum = (first ? 0 : old[bank]) + (dot << shift), one register after the shift, one after
    the sum. Gives a drain the old value of the bank that it reads, too.

    Members
    -------
    dot : In(dot_bits);  shift : In(range(largest_shift + 1));  first, bank : In(1), a cycle after `shift`
    old0, old1 : In(accumulator_width), with `first`
    with a channel unit: channel : In(channel_bits), its sum;  use_channel : In(1), take it in place of the dot
    clear : In(1), add nothing; both with `dot`
    total : Out(accumulator_width);  lost : Out(1), with `total`: the sum did not fit
    drain_bank : In(1);  drained : Out(accumulator_width), combinational
    """

    def __init__(self, config: EngineConfig):
        self._width, self._dot_bits = config.accumulator_width, facts.dot_bits(config)
        self._step, self._largest = config.shift_step, config.largest_shift
        self._channel_bits = facts.channel_bits(config) if config.channel_unit else 0
        super().__init__({
            "dot": In(self._dot_bits), "shift": In(range(config.largest_shift + 1)), "first": In(1), "bank": In(1),
            "old0": In(self._width), "old1": In(self._width), "total": Out(self._width), "lost": Out(1),
            "drain_bank": In(1), "drained": Out(self._width),
            **({"channel": In(self._channel_bits), "use_channel": In(1), "clear": In(1)} if self._channel_bits else {}),
        })

    def elaborate(self, platform):
        m = Module()
        width = self._width
        # Wide enough to see what falls off at the top.
        dot = self.dot
        if self._channel_bits:
            wide, other = (Signal(max(self._dot_bits, self._channel_bits), name=name) for name in ("wide", "other"))
            m.d.comb += [wide.eq(self.dot), other.eq(self.channel)]
            dot = multiplexed(m, platform, "choice", wide, other, self.use_channel)
        shifted = Signal(len(dot) + self._step * self._largest, reset_less=True)
        options = [(dot << self._step * k)[:len(shifted)] for k in range(self._largest + 1)]
        for bit in self.shift:
            pairs = zip(options[::2], [*options[1::2], options[-1]][:len(options[::2])])
            options = [zero if zero is one else Mux(bit, one, zero) for zero, one in pairs]
        m.d.sync += shifted.eq(options[0])
        if self._channel_bits:
            with m.If(self.clear):
                m.d.sync += shifted.eq(0)
        old = selected((self.old0, self.old1), self.bank, self.first)
        total, _ = add_row(m, platform, [old, plain(shifted[:width])], "sum", width + 1)
        stored, lost = Signal(width, reset_less=True), Signal(reset_less=True)
        m.d.sync += [stored.eq(total), lost.eq(total[width] | (shifted[width:] != 0 if len(shifted) > width else 0))]
        m.d.comb += [
            self.total.eq(stored), self.lost.eq(lost),
            self.drained.eq(multiplexed(m, platform, "drain", self.old0, self.old1, self.drain_bank)),
        ]
        return m


class Accumulators(Component):
    """acc[bank][index][c] = (first ? 0 : acc[bank][index][c]) + (dot[c] << shift_step*shift), unsigned.

    `control` comes with its `dots`. One pixel a cycle; the same pixel again after HAZARD_CYCLES at the earliest.
    `post` rises ACCUMULATE_LATENCY cycles after `control`, when a drain may read the sum.

    Members
    -------
    control : In(control_layout(config));  dots : In(cols * dot_bits)
    with a channel unit: sums : In(channel_unit * channel_bits), with `control`
    ahead : In(control_layout(config)), the control of the next cycle
    post : Out(1)
    drain_bank : In(1);  drain_index : In(range(accumulator_depth))
    drain_data : Out(cols * accumulator_width), one cycle later
    overflow : Out(1), for good
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "control": In(control_layout(config)),
            "dots": In(config.cols * facts.dot_bits(config)),
            "post": Out(1),
            "drain_bank": In(1), "drain_index": In(range(config.accumulator_depth)),
            "drain_data": Out(config.cols * config.accumulator_width),
            "overflow": Out(1),
            **({"sums": In(config.channel_unit * facts.channel_bits(config)), "ahead": In(control_layout(config))}
               if config.channel_unit else {}),
        })

    def elaborate(self, platform):
        m = Module()
        reads, writes = self._banks(m)
        shifted_control, sum_control = self._controls(m, reads, writes)
        drained = Signal()
        m.d.sync += drained.eq(self.drain_bank)
        m.d.comb += self.post.eq(sum_control.valid & sum_control.post)
        totals, lost = self._columns(m, platform, reads, shifted_control, drained)
        for write in writes:
            m.d.comb += write.data.eq(Cat(*totals))
        self._watch(m, sum_control, lost)
        return m

    def _banks(self, m) -> tuple:
        """Read and write ports of both banks."""
        config, reads, writes = self._config, [], []
        for bank in range(2):
            m.submodules[f"bank{bank}"] = memory = Memory(
                shape=unsigned(config.cols * config.accumulator_width), depth=config.accumulator_depth, init=[])
            reads.append(memory.read_port())
            writes.append(memory.write_port())
        return reads, writes

    def _controls(self, m, reads: list, writes: list) -> tuple:
        """The control beside the shifted dot product, and beside the sum. A bank that adds nothing is read for the drain."""
        layout = control_layout(self._config)
        shifted_control = Signal(layout)
        sum_control = Signal(layout)
        m.d.sync += [shifted_control.eq(self.control), sum_control.eq(shifted_control)]
        for bank, (read, write) in enumerate(zip(reads, writes, strict=True)):
            adding = self.control.valid & (self.control.bank == bank)
            m.d.comb += [
                read.addr.eq(Mux(adding, self.control.index, self.drain_index)), read.en.eq(1),
                write.addr.eq(sum_control.index), write.en.eq(sum_control.valid & (sum_control.bank == bank)),
            ]
        return shifted_control, sum_control

    def _columns(self, m, platform, reads: list, shifted_control, drained) -> tuple:
        """(sums of all columns, for each LOST_COLUMNS of them whether one did not fit)."""
        config = self._config
        width, dot_bits = config.accumulator_width, facts.dot_bits(config)
        totals, lost = [], Signal(config.cols)
        for c in range(config.cols):
            column = share(m, platform, f"column_{c}", "accumulator_column", AccumulatorColumn, config)
            m.d.comb += [
                column.dot.eq(self.dots.word_select(c, dot_bits)), column.shift.eq(self.control.shift),
                column.first.eq(shifted_control.first), column.bank.eq(shifted_control.bank),
                column.old0.eq(reads[0].data.word_select(c, width)), column.old1.eq(reads[1].data.word_select(c, width)),
                column.drain_bank.eq(drained), lost[c].eq(column.lost),
                self.drain_data.word_select(c, width).eq(column.drained),
            ]
            totals.append(column.total)
            if config.channel_unit:
                block, place = divmod(c, config.channel_unit)
                if not place:
                    use, clear = self._of_block(m, block)
                bits = facts.channel_bits(config)
                m.d.comb += [column.channel.eq(self.sums.word_select(place, bits)), column.use_channel.eq(use),
                             column.clear.eq(clear)]
        return totals, tuple(lost[k:k + LOST_COLUMNS].any() for k in range(0, config.cols, LOST_COLUMNS))

    def _of_block(self, m, block: int) -> tuple:
        """(a block of columns takes the channel unit's sums, it takes nothing).

        A pass through that unit adds to the columns of one block. Of several accumulators of a pixel it has chosen one.
        """
        config = self._config
        blocks = config.cols // config.channel_unit
        part = self.ahead.window.part
        own_part = part if config.accumulators_per_pixel == 1 else part[:(blocks - 1).bit_length()]
        use, clear = Signal(name=f"use_channel_{block}"), Signal(name=f"clear_{block}")
        m.d.sync += [use.eq(self.ahead.channel), clear.eq(self.ahead.channel & (own_part != block))]
        return use, clear

    def _watch(self, m, sum_control, lost: tuple) -> None:
        """One level of logic from 128 columns' flags to the one that stops the engine."""
        some = Signal(len(lost))
        valid = Signal()
        m.d.sync += [valid.eq(sum_control.valid), *(some[k].eq(flag) for k, flag in enumerate(lost))]
        with m.If(valid & some.any()):
            m.d.sync += self.overflow.eq(1)
