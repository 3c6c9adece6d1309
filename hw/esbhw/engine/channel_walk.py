"""Where the channel unit's columns lie, and with which of them an output comes; beside the sequencer's own walk."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow import engine_facts as facts
from esbflow import instructions
from esbhw.engine.fields import instruction_layout

MORE_ROWS = facts.TAP_SIDE - 1


class ChannelWalk(wiring.Component):
    """Follows the sequencer's walk over a pass: rows of columns, of each of which a CHANNEL reads up to three words.

    The first word of a column is the sequencer's own. `emit` is high with the columns that bring an output, which is every
    column of a PASS.

    Members
    -------
    take : In(1), the pass that is `staged` begins in the next cycle;  now : In(256), the pass that is under way
    step : In(1);  last_col : In(1), with the last column of a row
    emit : Out(1);  first_inside : In(1), the first word is on the map;  signed : Out(1), of the first word
    address, inside, signs : Out, of the other words: 20, 1 and 1 bits each
    """

    def __init__(self):
        super().__init__({
            "take": In(1), "staged": In(instructions.INSTRUCTION_BITS), "now": In(instructions.INSTRUCTION_BITS),
            "step": In(1), "last_col": In(1), "first_inside": In(1),
            "emit": Out(1), "signed": Out(1),
            "address": Out(20 * MORE_ROWS), "inside": Out(MORE_ROWS), "signs": Out(MORE_ROWS),
        })

    def elaborate(self, platform):
        m = Module()
        layout = instruction_layout("CHANNEL")
        staged, now = Signal(layout), Signal(layout)
        m.d.comb += [staged.eq(self.staged), now.eq(self.now)]
        channel = now.opcode == instructions.CHANNEL

        def lead(fields):
            return Mux(fields.opcode == instructions.CHANNEL, fields.tap_cols - 1, 0)

        skip = Signal(6)  # columns before the next output
        m.d.comb += self.emit.eq(skip == 0)
        with m.If(self.take):
            m.d.sync += skip.eq(lead(staged))
        with m.Elif(self.step):
            m.d.sync += skip.eq(Mux(self.last_col, lead(now), Mux(self.emit, Mux(channel, now.gap, 0), skip - 1)))

        def sign(inside):
            """Of a maximum nothing may be less than what lies outside: no 8 is added there."""
            return now.signed & ~(channel & now.maximum & ~inside)

        m.d.comb += self.signed.eq(sign(self.first_inside))
        x, x_start = Signal(signed(12)), Signal(signed(12))
        with m.If(self.step):
            m.d.sync += x.eq(Mux(self.last_col, x_start, x + now.stride_x))
        with m.If(self.take):
            m.d.sync += [x.eq(staged.x), x_start.eq(staged.x)]
        on_row = (x >= 0) & (x < now.in_cols)
        for k in range(MORE_ROWS):
            y = Signal(signed(13), name=f"y_{k}")
            address, row_address = (Signal(signed(20), name=f"{name}_{k}") for name in ("address", "row_address"))
            with m.If(self.step):
                m.d.sync += address.eq(address + now.stride_x)
                with m.If(self.last_col):
                    m.d.sync += [y.eq(y + now.stride_y), row_address.eq(row_address + now.row_step),
                                 address.eq(row_address + now.row_step)]
            start = (staged.address + (k + 1) * staged.tap_step)[:20]
            with m.If(self.take):
                m.d.sync += [y.eq(staged.y + (k + 1) * staged.tap_step_y), address.eq(start), row_address.eq(start)]
            inside = on_row & (y >= 0) & (y < now.in_rows) & (now.tap_rows > k + 1)
            m.d.comb += [
                self.address.word_select(k, 20).eq(address), self.inside[k].eq(inside), self.signs[k].eq(sign(inside)),
            ]
        return m
