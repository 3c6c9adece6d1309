"""Where the channel unit's columns lie, and with which of them an output comes; beside the sequencer's own walk."""

from amaranth import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow import engine_facts as facts
from esbflow import instructions
from esbflow.engine_config import EngineConfig
from esbhw.engine.fields import instruction_layout
from esbhw.engine.stripe_rows import BOUND_BITS, RowsInside

MORE_ROWS = facts.TAP_SIDE - 1


class ChannelWalk(wiring.Component):
    """Follows the sequencer's walk over a pass: rows of columns, of each of which a CHANNEL reads up to three words.

    The first word of a column is the sequencer's own. `emit` is high with the columns that bring an output, which is every
    column of a PASS. What depends on the pass alone is worked out when it is accepted, so that little hangs on `take`.

    Members
    -------
    accept : In(1), the pass `head` is staged in the next cycle;  head : In(256)
    take : In(1), the pass that is staged begins in the next cycle;  now : In(256), the pass that is under way
    step : In(1);  last_col : In(1), with the last column of a row
    last_row : In(1), with an image's last row, where a pass goes over several images
    column_inside : In(1), the column is on the map;  row_inside : In(ways), the row of its first word is: for each of `ways`
        slices that have a stripe of their own, else for all
    low, high : In(ways * BOUND_BITS), with several such slices: as StripeRows
    channel : Out(1), the pass under way is a CHANNEL
    emit : Out(1);  signed : Out(ways), of the first word
    address : Out(20 * MORE_ROWS), of the other words;  inside, signs : Out(ways * MORE_ROWS), one slice after the other
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self._slices = slices = config.slices if config.stripes else 1
        super().__init__({
            "accept": In(1), "head": In(instructions.INSTRUCTION_BITS),
            "take": In(1), "now": In(instructions.INSTRUCTION_BITS), "step": In(1), "last_col": In(1),
            "column_inside": In(1), "row_inside": In(slices),
            "channel": Out(1), "emit": Out(1), "signed": Out(slices),
            "address": Out(20 * MORE_ROWS), "inside": Out(MORE_ROWS * slices), "signs": Out(MORE_ROWS * slices),
            **({"last_row": In(1)} if config.batch_tiles else {}),
            **({"low": In(BOUND_BITS * slices), "high": In(BOUND_BITS * slices)} if slices > 1 else {}),
        })

    def elaborate(self, platform):
        m = Module()
        layout = instruction_layout("CHANNEL", self._config)
        head, now = (Signal(layout) for _ in range(2))
        m.d.comb += [head.eq(self.head), now.eq(self.now)]
        staged, kept = self._of_pass(m, head)
        self._outputs(m, staged, kept)
        m.d.comb += self.channel.eq(kept["channel"])
        m.d.comb += self.signed.eq(self._sign(kept, self._each(self.column_inside) & self.row_inside))
        for k in range(MORE_ROWS):
            y = self._place(m, k, head, now)
            self._inside(m, k, y, now, kept)
        return m

    def _each(self, bit):
        """A bit for each slice that has a stripe of its own."""
        return bit if self._slices == 1 else bit.replicate(self._slices)

    def _sign(self, kept: dict, inside):
        """Whether a word is signed: of a maximum only where it lies on the map."""
        return self._each(kept["plain"]) | (self._each(kept["if_inside"]) & inside)

    def _of_pass(self, m, head) -> tuple:
        """({name: what depends on the pass alone} of the one that is staged, the same of the one under way)."""
        comes = head.opcode == instructions.CHANNEL
        # Columns before a row's first output and between outputs, and whether those are none.
        staged, kept = {}, {}
        for name, value in {"channel": comes, "lead": Mux(comes, head.tap_cols - 1, 0)[:2], "gap": Mux(comes, head.gap, 0),
                            "no_lead": ~comes | (head.tap_cols == 1), "no_gap": ~comes | (head.gap == 0),
                            # Of a maximum nothing may be less than what lies outside: no 8 is added there.
                            "plain": head.signed & ~(comes & head.maximum), "if_inside": head.signed & comes & head.maximum,
                            **{f"row_{k}": head.tap_rows > k + 1 for k in range(MORE_ROWS)},
                            **({f"if_inside_{k}": head.signed & comes & head.maximum & (head.tap_rows > k + 1)
                                for k in range(MORE_ROWS)} if self._slices > 1 else {})}.items():
            staged[name], kept[name] = Signal(len(value), name=f"staged_{name}"), Signal(len(value), name=f"now_{name}")
            with m.If(self.accept):
                m.d.sync += staged[name].eq(value)
            with m.If(self.take):
                m.d.sync += kept[name].eq(staged[name])
        return staged, kept

    def _place(self, m, k: int, head, now) -> Signal:
        """Follows the walk for word k + 1 of the columns: drives its address; the result is its row."""
        y = Signal(signed(13), name=f"y_{k}")
        address, row_address = (Signal(signed(20), name=f"{name}_{k}") for name in ("address", "row_address"))
        start_y, start = Signal(signed(13), name=f"start_y_{k}"), Signal(signed(20), name=f"start_{k}")
        with m.If(self.accept):
            m.d.sync += [start_y.eq(head.y + (k + 1) * head.tap_step_y),
                         start.eq(head.address + (k + 1) * head.tap_step)]
        row_end, next_y = row_address + now.row_step, y + now.stride_y
        if self._config.batch_tiles:
            first_y = Signal.like(y, name=f"first_y_{k}")
            with m.If(self.take):
                m.d.sync += first_y.eq(start_y)
            next_y = Mux(self.last_row, first_y, next_y)
        m.d.sync += address.eq(Mux(self.take, start, Mux(self.last_col, row_end, address + now.stride_x)))
        with m.If(self.take | self.last_col):
            m.d.sync += [y.eq(Mux(self.take, start_y, next_y)), row_address.eq(Mux(self.take, start, row_end))]
        m.d.comb += self.address.word_select(k, 20).eq(address)
        return y

    def _inside(self, m, k: int, y, now, kept: dict) -> None:
        """Whether word k + 1 lies on the map, and whether it is signed there."""
        if self._slices == 1:
            here = self.column_inside & (y >= 0) & (y < now.in_rows) & kept[f"row_{k}"]
            m.d.comb += [self.inside[k].eq(here), self.signs[k].eq(self._sign(kept, here))]
        else:
            m.submodules[f"rows_inside_{k}"] = rows = RowsInside(self._slices, len(y))
            m.d.comb += [rows.low.eq(self.low), rows.high.eq(self.high), rows.y.eq(y)]
            for number in range(self._slices):
                here = self.column_inside & rows.inside[number]
                m.d.comb += [self.inside[number * MORE_ROWS + k].eq(here & kept[f"row_{k}"]),
                             self.signs[number * MORE_ROWS + k].eq(kept["plain"] | (here & kept[f"if_inside_{k}"]))]

    def _outputs(self, m, staged, kept) -> None:
        """`emit` is a register: the columns left before the next output are none."""
        skip, emit = Signal.like(kept["gap"], name="skip"), Signal(name="emits")
        m.d.comb += self.emit.eq(emit)
        onward = Mux(self.last_col, kept["lead"], Mux(emit, kept["gap"], skip - 1))
        emits = Mux(self.last_col, kept["no_lead"], Mux(emit, kept["no_gap"], skip == 1))
        with m.If(self.take | self.step):
            m.d.sync += [skip.eq(Mux(self.take, staged["lead"], onward)), emit.eq(Mux(self.take, staged["no_lead"], emits))]
