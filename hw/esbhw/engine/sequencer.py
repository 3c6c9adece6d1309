"""Carries out passes: brings a weight tile into the array, then streams a tile's pixels through it."""

from dataclasses import dataclass

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.data import View
from amaranth.lib.wiring import In, Out

from esbflow import engine_facts as facts
from esbflow import instructions
from esbflow.engine_config import CODE_BITS, EngineConfig
from esbhw.engine.accumulators import control_layout
from esbhw.engine.channel_walk import MORE_ROWS, ChannelWalk
from esbhw.engine.fields import instruction_layout
from esbhw.engine.stripe_rows import RowsInside, StripeRows
from esbhw.fabric.idioms import own_lut


@dataclass(frozen=True, eq=False)
class _Staged:
    """The pass that preload holds for the stream stage.

    fields : the instruction;  here : there is one;  loaded : and its weights are in the array;  legal : its fields are
    one_row, one_col, one_image : it has one;  is_channel : it is a CHANNEL
    head, weights_here : of the queue's next pass, the instruction, and whether its weights are there
    """

    head: View
    fields: View
    here: Signal
    loaded: Signal
    legal: Value
    one_row: Signal
    one_col: Signal
    one_image: Signal
    is_channel: Value
    weights_here: Value


class Sequencer(wiring.Component):
    """Two stages, so that the next pass's weights move while this pass streams.

    Preload takes a PASS off the queue in cycle p once its weights are there. It writes the codebook (BOOK_CYCLES, if the
    PASS brings one) and moves the tile (tile_load_cycles, and load_tail until the array has it); the stream stage can take
    the pass two cycles after that (p + 2 if it keeps the weights). A pass taken in cycle a issues its rows*cols pixels
    (n) in a+1 .. a+n, the next is taken in a + max(n, HAZARD_CYCLES) at the earliest, and preload takes the next PASS in
    a+1. With `EngineConfig.batch_tiles` these are images*rows*cols pixels.

    A CHANNEL is a pass through the channel unit: its taps come from a slot as a tile does, in tap_load_cycles, and it takes
    rows*cols columns of up to three words. An output comes with some of them only, and HAZARD_CYCLES counts outputs.

    Members
    -------
    i : In(stream of 256 bits)
    slot_address : Out(range(weight_slots * tile_rows))
    load_en, book : Out(1);  load_index : Out(range(max(2, tile_rows))): one cycle behind the address
    book_en : Out(1);  book_address : Out(5);  book_data : Out(weight_bits): the codebook's entries
    read_half : Out(1);  read_address : Out(20);  inside, signed : Out(ways): the word of the pixel issued in this cycle; the
        latter for each of `ways` slices that have a stripe of their own, else for all
    swap : Out(1), SWAP_LATENCY after a pass was taken: with the pixel's digits at the activation buffer's output
    control : Out(control_layout(config)), the pixel issued in this cycle
    weights_here, activations_here, bank_free : In(1), a token is there
    take_weights, post_weights, take_activations, post_activations, take_accumulators : Out(1)
    with a channel unit: channel_load_en, channel_swap : Out(1), as load_en and swap
    more_address : Out(20 * MORE_ROWS);  more_inside, more_signed : Out(ways * MORE_ROWS): the other words of the column
    issue, pass_done, stall_REASON : Out(1), for the counters;  preloading : Out(1), a sign of progress
        With `EngineConfig.batch_tiles` pass_done comes a cycle after a pass's last pixel.
    field_fault : Out(1), for good;  layer, fault_layer : Out(12)
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        slots = config.weight_slots * config.tile_rows
        ways = config.slices if config.stripes else 1
        super().__init__({
            "i": In(stream.Signature(instructions.INSTRUCTION_BITS)),
            "slot_address": Out(range(slots)),
            "load_en": Out(1), "load_index": Out(range(max(2, config.tile_rows))), "book": Out(1),
            "book_en": Out(1), "book_address": Out(CODE_BITS + 1), "book_data": Out(facts.weight_bits(config)),
            "read_half": Out(1), "read_address": Out(20), "inside": Out(ways), "signed": Out(ways),
            "swap": Out(1), "control": Out(control_layout(config)),
            "weights_here": In(1), "take_weights": Out(1), "post_weights": Out(1),
            "activations_here": In(1), "take_activations": Out(1), "post_activations": Out(1),
            "bank_free": In(1), "take_accumulators": Out(1),
            "issue": Out(1), "pass_done": Out(1),
            "stall_instruction": Out(1), "stall_weights": Out(1), "stall_activations": Out(1),
            "stall_accumulators": Out(1), "stall_hazard": Out(1), "preloading": Out(1),
            "field_fault": Out(1), "layer": Out(12), "fault_layer": Out(12),
            **({"channel_load_en": Out(1), "channel_swap": Out(1), "more_address": Out(20 * MORE_ROWS),
                "more_inside": Out(MORE_ROWS * ways), "more_signed": Out(MORE_ROWS * ways)} if config.channel_unit else {}),
        })

    def elaborate(self, platform):
        m = Module()
        self._stream(m, self._preload(m))
        return m

    def _preload(self, m) -> _Staged:
        """Takes a pass off the queue once its weights are there, checks it, and brings them into the array."""
        config = self._config
        layout = instruction_layout("PASS", config)
        head = Signal(layout)
        staged = Signal(layout)
        # Of the pass that is staged.
        one_row = Signal()
        one_col = Signal()
        one_image = Signal()
        have_staged = Signal()
        loaded = Signal()
        weights_here = ~head.wait_weights | self.weights_here
        # What may be wrong with it.
        no_row = Signal()
        no_col = Signal()
        beyond = Signal()
        wrong_channel = Signal()
        m.d.comb += [
            head.eq(self.i.payload),
            self.i.ready.eq(~have_staged & weights_here & ~self.field_fault),
            self.book.eq(staged.book),
        ]
        # Of the pass that comes, and of the one that is staged: is it a CHANNEL?
        comes, is_channel = Const(0, 1), Const(0, 1)
        if config.channel_unit:
            comes, is_channel = head.opcode == instructions.CHANNEL, Signal(name="is_channel")
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += is_channel.eq(comes)
        entries = Signal(len(staged.codebook))
        stepping = Signal()
        booking = Signal()
        step, index, reading, waiting, entry = self._places(m, staged, is_channel, stepping, booking, entries)
        legal = ~no_row & ~no_col & ~beyond & ~wrong_channel
        with m.If(self.i.valid & self.i.ready):
            m.d.comb += self.take_weights.eq(head.wait_weights)
            m.d.sync += [
                staged.eq(head), have_staged.eq(1), loaded.eq(head.keep), entries.eq(head.codebook),
                booking.eq(~head.keep & head.load_book & ~comes),
                stepping.eq(~head.keep & (comes | ~head.load_book)),
                no_row.eq(head.rows == 0), no_col.eq(head.cols == 0),
                beyond.eq((head.slot >= config.weight_slots) | (head.shift > config.largest_shift)),
                wrong_channel.eq(comes & ~self._legal_channel(head)),
                one_row.eq(head.rows == 1), one_col.eq(head.cols == 1),
            ]
            if config.batch_tiles:
                m.d.sync += [no_row.eq((head.rows == 0) | (head.images == 0)), one_image.eq(head.images == 1)]
        with m.If(have_staged & ~legal):
            m.d.sync += [self.field_fault.eq(1), self.fault_layer.eq(staged.layer)]
        with m.If(booking):
            m.d.sync += [entry.eq(entry + 1), entries.eq(entries >> facts.BOOK_ENTRY_BITS)]
            with m.If(entry == facts.BOOK_CYCLES - 1):
                m.d.sync += [booking.eq(0), stepping.eq(1), entry.eq(0)]
        self._step(m, staged, is_channel, stepping, step, waiting, loaded)
        m.d.sync += [self.load_en.eq(reading & ~is_channel), self.load_index.eq(index)]
        if config.channel_unit:
            m.d.sync += self.channel_load_en.eq(reading & is_channel)
        return _Staged(head, staged, have_staged, loaded, legal, one_row, one_col, one_image, is_channel, weights_here)

    def _places(self, m, staged, is_channel, stepping, booking, entries) -> tuple:
        """(step, row of the slot that it reads, whether it does, is the array late, entry of the codebook): what of a tile
        moves in this cycle. A row of a set in each cycle; then nothing until the set's time is over."""
        config = self._config
        set_cycles, set_rows = config.set_cycles, max(1, config.tile_rows // config.table_sets)
        row_bits, set_bits = (set_rows - 1).bit_length(), (config.table_sets - 1).bit_length()
        step = Signal(range(config.tile_load_cycles + 1))
        waiting = Signal()
        index = Signal((config.tile_rows - 1).bit_length())
        within = (set_cycles - 1).bit_length()
        entry = Signal(range(facts.BOOK_CYCLES))
        reading = Signal()
        m.d.comb += [
            index.eq(Mux(is_channel, step, Cat(step[:row_bits], step[within:within + set_bits]))),
            reading.eq(stepping & (is_channel | (step[row_bits:within] == 0))),
            self.slot_address.eq(Cat(index, staged.slot)),
            self.preloading.eq(stepping | booking | waiting),
            self.book_en.eq(booking), self.book_address.eq(Cat(entry, staged.book)),
            self.book_data.eq(entries),
        ]
        return step, index, reading, waiting, entry

    def _step(self, m, staged, is_channel, stepping, step, waiting, loaded) -> None:
        """Steps through a tile or taps, and waits until the array has them."""
        config = self._config
        tail = Signal(range(facts.load_tail(config) + 1))
        # A register says that the step is the last: comparing is a step earlier.
        last_step = Signal()
        cycles = (config.tap_load_cycles, config.tile_load_cycles)
        ends = last_step | Mux(is_channel, *(count == 1 for count in cycles))
        with m.If(stepping):
            m.d.sync += [step.eq(step + 1), last_step.eq(step == Mux(is_channel, *(max(0, count - 2) for count in cycles)))]
            with m.If(ends):
                m.d.sync += [last_step.eq(0), stepping.eq(0), step.eq(0),
                             loaded.eq(is_channel | (not facts.load_tail(config))),
                             waiting.eq(~is_channel & (facts.load_tail(config) > 0))]
                m.d.comb += self.post_weights.eq(staged.post_weights)
        with m.If(waiting):
            m.d.sync += tail.eq(tail + 1)
            with m.If(tail == facts.load_tail(config) - 1):
                m.d.sync += [waiting.eq(0), tail.eq(0), loaded.eq(1)]

    def _stream(self, m, staged: _Staged) -> None:
        """Issues the pixels of a pass, then takes the next."""
        config = self._config
        now = Signal(instruction_layout("PASS", config))
        running = Signal()
        y = Signal(signed(12))
        x = Signal(signed(12))
        x_start = Signal(signed(12))
        address = Signal(signed(20))
        row_address = Signal(signed(20))
        pixel = Signal(range(config.accumulator_depth + 1))
        take = Signal()
        last_col = _last(m, "col", take, running, staged.fields.cols, staged.one_col, now.cols)
        last_row = _last(m, "row", take, running & last_col, staged.fields.rows, staged.one_row, now.rows)
        last, last_pixel, next_y = [last_col, last_row], last_col & last_row, y + now.stride_y
        if config.batch_tiles:
            # The next image lies behind this one, in the buffer as in the accumulators; only the map's rows begin anew.
            next_y = Mux(last_row, now.y, next_y)
            last.append(_last(m, "image", take, running & last_pixel, staged.fields.images, staged.one_image, now.images))
            last_pixel = last_pixel & last[-1]
        column_inside = (x >= 0) & (x < now.in_cols)
        row_inside, stripes = self._inside(m, staged, now, take, y, column_inside)
        walk_take = take
        emit = Const(1, 1)  # does this column bring an output?
        if config.channel_unit:
            if config.batch_tiles:
                walk_take = Signal()
            emit = self._walk_channel(m, staged.head, now, walk_take, running, last_col, last_row, column_inside, row_inside,
                                      stripes)
        self._take(m, staged, take, walk_take, running, last, emit)
        row_end = row_address + now.row_step
        # The next accumulator is acc_gap + 1 further: one carry chain, with the 1 from below.
        gap = now.acc_gap & emit.replicate(len(now.acc_gap))
        onward = Cat(Const(1, 1), pixel) + Cat(emit, gap)
        m.d.sync += [
            x.eq(Mux(take, staged.fields.x, Mux(last_col, x_start, x + now.stride_x))),
            address.eq(Mux(take, staged.fields.address, Mux(last_col, row_end, address + now.stride_x))),
            pixel.eq(Mux(take, staged.fields.acc_first, onward[1:])),
        ]
        with m.If(take | last_col):
            m.d.sync += [y.eq(Mux(take, staged.fields.y, next_y)),
                         row_address.eq(Mux(take, staged.fields.address, row_end))]
        # A pixel behind the end of a bank, or a pass that does not end with an output.
        with m.If(running & ((emit & pixel[-1]) | (last_pixel & ~emit))):
            m.d.sync += [self.field_fault.eq(1), self.fault_layer.eq(now.layer)]
        with m.If(take):
            m.d.sync += [now.eq(staged.fields), staged.here.eq(0), staged.loaded.eq(0), x_start.eq(staged.fields.x)]
        done = running & last_pixel
        if config.batch_tiles:  # the end of three loops is known late for what counts passes
            done = Signal()
            m.d.sync += done.eq(running & last_pixel)
        m.d.comb += [
            self.issue.eq(running), self.pass_done.eq(done), self.layer.eq(now.layer),
            self.read_half.eq(now.half), self.read_address.eq(address),
            self.post_activations.eq(running & last_pixel & now.post_activations),
            self.control.valid.eq(running & emit), self.control.first.eq(now.first), self.control.bank.eq(now.bank),
            self.control.index.eq(pixel), self.control.shift.eq(now.shift),
            self.control.post.eq(last_pixel & now.post_accumulators),
        ]
        self._swap(m, staged, take)

    def _swap(self, m, staged: _Staged, take) -> None:
        """The tile becomes active together with its first pixel's digits: see ACTIVATION_LATENCY."""
        swapped = Signal()
        m.d.sync += [swapped.eq(take & ~staged.fields.keep & ~staged.is_channel), self.swap.eq(swapped)]
        if self._config.channel_unit:
            channel_swapped = Signal()
            m.d.sync += [channel_swapped.eq(take & ~staged.fields.keep & staged.is_channel),
                         self.channel_swap.eq(channel_swapped)]

    def _take(self, m, staged: _Staged, take, walk_take, running, last: list, emit) -> None:
        """When the next pass begins, and what holds it up.

        walk_take : `take` itself, or the same for the channel walk
        last : the loops' registers that all say when the pass is at its last pixel
        """
        last_pixel = Cat(*last).all() if self._config.batch_tiles else last[0] & last[1]
        second = Signal()  # of the pass that runs it is the second output or a later one
        third = Signal()  # the third or a later one
        # After a pass of 1 or 2 outputs come bubbles, until its first pixel may be added to again.
        two_bubbles = Signal()  # the first of two
        bubble = Signal()  # the last one
        idle = Signal(init=1)  # neither a column nor a bubble
        # The pass at hand is complete and its tokens are here; those stay, nobody else takes them.
        able = Signal()
        rests = idle | bubble
        if self._config.batch_tiles:  # three registers give last_pixel
            rests = Signal(init=1)
        free = rests | (last_pixel & third)
        if walk_take is not take:
            m.d.comb += walk_take.eq(own_lut(
                m, "taking", lambda rests, last, third, able: (rests | (last.all() & third)) & able,
                rests=rests, last=Cat(*last), third=third, able=able))
        activations_here = ~staged.fields.wait_activations | self.activations_here
        bank_free = ~staged.fields.wait_accumulators | self.bank_free
        m.d.comb += [
            take.eq(free & able),
            self.take_activations.eq(take & staged.fields.wait_activations),
            self.take_accumulators.eq(take & staged.fields.wait_accumulators),
            self.stall_hazard.eq(two_bubbles | bubble),
            self.stall_instruction.eq(idle & ~staged.here & ~(self.i.valid & ~staged.weights_here)),
            self.stall_weights.eq(idle & Mux(staged.here, ~staged.loaded, self.i.valid & ~staged.weights_here)),
            self.stall_activations.eq(idle & staged.loaded & ~activations_here),
            self.stall_accumulators.eq(idle & staged.loaded & activations_here & ~bank_free),
        ]
        short_end = running & last_pixel & ~third
        m.d.sync += able.eq(staged.loaded & staged.legal & activations_here & bank_free & ~take)
        m.d.sync += [
            second.eq(running & ~last_pixel & (second | emit)), third.eq(running & ~last_pixel & (third | (second & emit))),
            two_bubbles.eq(short_end & ~second), bubble.eq(two_bubbles | (short_end & second)),
            idle.eq(free & ~take), running.eq(take | (running & ~last_pixel)),
        ]
        if self._config.batch_tiles:
            m.d.sync += rests.eq((free & ~take) | two_bubbles | (short_end & second))

    def _inside(self, m, staged: _Staged, now, take, y, column_inside) -> tuple:
        """(whether the pixel's row is on the map, of each slice where those work on stripes; StripeRows or None)"""
        config = self._config
        if not config.stripes:
            row_inside = (y >= 0) & (y < now.in_rows)
            m.d.comb += [self.inside.eq(column_inside & row_inside), self.signed.eq(now.signed)]
            return row_inside, None
        m.submodules.stripe_rows = stripes = StripeRows(config.slices)
        m.d.comb += [stripes.accept.eq(self.i.valid & self.i.ready), stripes.take.eq(take),
                     stripes.stripe.eq(staged.head.stripe), stripes.rows.eq(staged.fields.in_rows)]
        m.submodules.rows_inside = rows = RowsInside(config.slices, len(y))
        m.d.comb += [rows.low.eq(stripes.low), rows.high.eq(stripes.high), rows.y.eq(y),
                     self.inside.eq(column_inside.replicate(config.slices) & rows.inside),
                     self.signed.eq(now.signed.replicate(config.slices))]
        return rows.inside, stripes

    def _legal_channel(self, head):
        """Whether a CHANNEL's own fields are what the unit has."""
        if not self._config.channel_unit:
            return Const(1, 1)
        fields = View(instruction_layout("CHANNEL", self._config), head.as_value())
        return (fields.tap_rows != 0) & (fields.tap_cols != 0) & (fields.part < self._config.channel_blocks)

    def _walk_channel(self, m, head, now, take, running, last_col, last_row, column_inside, row_inside, stripes):
        """Connects the walk of the other words; gives whether the column brings an output."""
        m.submodules.channel_walk = walk = ChannelWalk(self._config)
        if stripes:
            m.d.comb += [walk.low.eq(stripes.low), walk.high.eq(stripes.high)]
        fields = View(instruction_layout("CHANNEL", self._config), now.as_value())
        m.d.comb += [
            walk.accept.eq(self.i.valid & self.i.ready), walk.head.eq(head), walk.take.eq(take), walk.now.eq(now),
            walk.step.eq(running), walk.last_col.eq(last_col), walk.column_inside.eq(column_inside),
            walk.row_inside.eq(row_inside), self.signed.eq(walk.signed),
            self.more_address.eq(walk.address), self.more_inside.eq(walk.inside), self.more_signed.eq(walk.signs),
            self.control.channel.eq(walk.channel), self.control.window.part.eq(fields.part),
            self.control.window.tap_cols.eq(fields.tap_cols), self.control.window.maximum.eq(fields.maximum),
        ]
        if self._config.batch_tiles:
            m.d.comb += walk.last_row.eq(last_row)
        return walk.emit


def _last(m, name: str, start, step, first_limit, first_is_one, limit) -> Value:
    """A loop's register "this is its last value". It begins with `start`, goes on with `step` and begins anew after it.

    Parameters
    ----------
    first_limit, first_is_one : how often it runs after `start`, and whether that is once;  limit : the same later
    """
    # Counts up to -2: a carry chain that subtracts would take a LUT a bit more.
    width = len(limit)
    turn, last, one = Signal(width, name=f"{name}_turn"), Signal(name=f"last_{name}"), Signal(name=f"one_{name}")
    ending = turn == (1 << width) - 3
    with m.If(start):
        m.d.sync += [turn.eq(~first_limit), last.eq(first_is_one), one.eq(first_is_one)]
    with m.Elif(step):
        m.d.sync += [turn.eq(Mux(last, ~limit, turn + 1)), last.eq(Mux(last, one, ending))]
    return last


assert facts.HAZARD_CYCLES == 3  # two bubbles at most
