"""Carries out passes: brings a weight tile into the array, then streams a tile's pixels through it."""

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.data import View
from amaranth.lib.wiring import In, Out

from esbflow import engine_facts as facts
from esbflow import instructions
from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbhw.engine.accumulators import control_layout
from esbhw.engine.channel_walk import MORE_ROWS, ChannelWalk
from esbhw.engine.fields import instruction_layout
from esbhw.engine.tokens import COUNT_BITS


class Sequencer(wiring.Component):
    """Two stages, so that the next pass's weights move while this pass streams.

    Preload takes a PASS off the queue in cycle p once its weights are there. It writes the codebook (BOOK_CYCLES, if the
    PASS brings one) and moves the tile (tile_load_cycles, and load_tail until the array has it); the stream stage can take
    the pass in the cycle after that (p + 1 if it keeps the weights). A pass taken in cycle a issues its rows*cols pixels
    (n) in a+1 .. a+n, the next is taken in a + max(n, HAZARD_CYCLES) at the earliest, and preload takes the next PASS in
    a+1.

    A CHANNEL is a pass through the channel unit: its taps come from a slot as a tile does, in tap_load_cycles, and it takes
    rows*cols columns of up to three words. An output comes with some of them only, and HAZARD_CYCLES counts outputs.

    Members
    -------
    i : In(stream of 256 bits)
    slot_address : Out, and load_en, load_index, book : Out, one cycle behind the address
    book_en, book_address, book_data : Out, the codebook's entries
    read_half, read_address, inside, signed : Out, the word of the pixel issued in this cycle
    swap : Out(1), SWAP_LATENCY after a pass was taken: with the pixel's digits at the activation buffer's output
    control : Out(control_layout), the pixel issued in this cycle
    weights_count, take_weights, post_weights, activations_count, take_activations, post_activations,
    accumulators_count, take_accumulators : token wires
    with a channel unit: channel_load_en, channel_swap : Out, as load_en and swap
    more_address, more_inside, more_signed : Out, the other words of the column
    issue, stalls : Out, for the counters
    field_fault : Out(1), for good;  layer, fault_layer : Out(12)
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        slots = config.weight_slots * config.tile_rows
        super().__init__({
            "i": In(stream.Signature(instructions.INSTRUCTION_BITS)),
            "slot_address": Out(range(slots)),
            "load_en": Out(1), "load_index": Out(range(max(2, config.tile_rows))), "book": Out(1),
            "book_en": Out(1), "book_address": Out(DIGIT_BITS + 1), "book_data": Out(facts.weight_bits(config)),
            "read_half": Out(1), "read_address": Out(20), "inside": Out(1), "signed": Out(1),
            "swap": Out(1), "control": Out(control_layout(config)),
            "weights_count": In(COUNT_BITS), "take_weights": Out(1), "post_weights": Out(1),
            "activations_count": In(COUNT_BITS), "take_activations": Out(1), "post_activations": Out(1),
            "accumulators_count": In(COUNT_BITS), "take_accumulators": Out(1),
            "issue": Out(1), "pass_done": Out(1),
            "stall_instruction": Out(1), "stall_weights": Out(1), "stall_activations": Out(1),
            "stall_accumulators": Out(1), "stall_hazard": Out(1), "preloading": Out(1),
            "field_fault": Out(1), "layer": Out(12), "fault_layer": Out(12),
            **({"channel_load_en": Out(1), "channel_swap": Out(1), "more_address": Out(20 * MORE_ROWS),
                "more_inside": Out(MORE_ROWS), "more_signed": Out(MORE_ROWS)} if config.channel_unit else {}),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        layout = instruction_layout("PASS")
        load_cycles = config.tile_load_cycles

        # -- preload ---------------------------------------------------------------------------------
        head = Signal(layout)
        staged = Signal(layout)
        now = Signal(layout)
        have_staged = Signal()
        loaded = Signal()
        weights_here = ~head.wait_weights | (self.weights_count != 0)
        legal = Signal()
        m.d.comb += [
            head.eq(self.i.payload),
            legal.eq((head.rows != 0) & (head.cols != 0) & (head.slot < config.weight_slots)
                     & (head.shift <= facts.SHIFT_DIGITS)),
            self.i.ready.eq(~have_staged & weights_here & ~self.field_fault),
            self.book.eq(staged.book),
        ]
        # Of the pass that comes, is staged, is under way: is it a CHANNEL?
        comes, is_channel, streams = (fields.opcode == instructions.CHANNEL if config.channel_unit else Const(0, 1)
                                      for fields in (head, staged, now))
        # A row of a set in each cycle; then nothing until the set's time is over.
        set_cycles, set_rows = config.set_cycles, max(1, config.tile_rows // config.table_sets)
        row_bits, set_bits = (set_rows - 1).bit_length(), (config.table_sets - 1).bit_length()
        step = Signal(range(load_cycles + 1))
        stepping, booking, waiting = Signal(), Signal(), Signal()
        index = Signal((config.tile_rows - 1).bit_length())
        within = (set_cycles - 1).bit_length()
        entries = Signal(len(staged.codebook))
        entry = Signal(range(facts.BOOK_CYCLES))
        tail = Signal(range(facts.load_tail(config) + 1))
        reading = Signal()
        m.d.comb += [
            index.eq(Mux(is_channel, step, Cat(step[:row_bits], step[within:within + set_bits]))),
            reading.eq(stepping & (is_channel | (step[row_bits:within] == 0))),
            self.slot_address.eq(Cat(index, staged.slot)),
            self.preloading.eq(stepping | booking | waiting),
            self.book_en.eq(booking), self.book_address.eq(Cat(entry, staged.book)),
            self.book_data.eq(entries),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.comb += self.take_weights.eq(head.wait_weights)
            m.d.sync += [staged.eq(head), have_staged.eq(1), loaded.eq(head.keep), entries.eq(head.codebook),
                         booking.eq(~head.keep & head.load_book & ~comes),
                         stepping.eq(~head.keep & (comes | ~head.load_book))]
            with m.If(~legal | (comes & ~self._legal_channel(head))):
                m.d.sync += [self.field_fault.eq(1), self.fault_layer.eq(head.layer)]
        with m.If(booking):
            m.d.sync += [entry.eq(entry + 1), entries.eq(entries >> facts.BOOK_ENTRY_BITS)]
            with m.If(entry == facts.BOOK_CYCLES - 1):
                m.d.sync += [booking.eq(0), stepping.eq(1), entry.eq(0)]
        with m.If(stepping):
            m.d.sync += step.eq(step + 1)
            with m.If(step == Mux(is_channel, config.tap_load_cycles - 1, load_cycles - 1)):
                m.d.sync += [stepping.eq(0), step.eq(0), loaded.eq(is_channel | (not facts.load_tail(config))),
                             waiting.eq(~is_channel & (facts.load_tail(config) > 0))]
                m.d.comb += self.post_weights.eq(staged.post_weights)
        with m.If(waiting):
            m.d.sync += tail.eq(tail + 1)
            with m.If(tail == facts.load_tail(config) - 1):
                m.d.sync += [waiting.eq(0), tail.eq(0), loaded.eq(1)]
        m.d.sync += [self.load_en.eq(reading & ~is_channel), self.load_index.eq(index)]
        if config.channel_unit:
            m.d.sync += self.channel_load_en.eq(reading & is_channel)

        # -- stream ----------------------------------------------------------------------------------
        running = Signal()
        emit = Const(1, 1)  # does this column bring an output?
        row = Signal(10)
        col = Signal(10)
        y = Signal(signed(12))
        x = Signal(signed(12))
        x_start = Signal(signed(12))
        address = Signal(signed(20))
        row_address = Signal(signed(20))
        pixel = Signal(range(config.accumulator_depth + 1))
        bubbles = Signal(range(facts.HAZARD_CYCLES))
        take = Signal()
        last_col = col == now.cols - 1
        last_pixel = last_col & (row == now.rows - 1)
        inside = Signal()
        m.d.comb += [
            inside.eq((y >= 0) & (y < now.in_rows) & (x >= 0) & (x < now.in_cols)),
            self.inside.eq(inside), self.signed.eq(now.signed),
        ]
        if config.channel_unit:
            emit = self._walk_channel(m, staged, now, take, running, last_col, inside)
        finishing = Signal()
        # A pass of 1 or 2 pixels is followed by bubbles, until its first pixel may be added to again.
        m.d.comb += finishing.eq(Mux(bubbles != 0, bubbles == 1,
                                     running & last_pixel & (pixel >= facts.HAZARD_CYCLES - 1)))
        free = finishing | (~running & (bubbles == 0))
        activations_here = ~staged.wait_activations | (self.activations_count != 0)
        bank_free = ~staged.wait_accumulators | (self.accumulators_count != 0)
        ready = have_staged & loaded & ~self.field_fault
        m.d.comb += [
            take.eq(free & ready & activations_here & bank_free),
            self.take_activations.eq(take & staged.wait_activations),
            self.take_accumulators.eq(take & staged.wait_accumulators),
            self.stall_hazard.eq(bubbles != 0),
            self.stall_instruction.eq(~running & (bubbles == 0) & ~have_staged & ~(self.i.valid & ~weights_here)),
            self.stall_weights.eq(~running & (bubbles == 0) & Mux(have_staged, ~loaded, self.i.valid & ~weights_here)),
            self.stall_activations.eq(~running & (bubbles == 0) & ready & ~activations_here),
            self.stall_accumulators.eq(~running & (bubbles == 0) & ready & activations_here & ~bank_free),
        ]
        with m.If(bubbles != 0):
            m.d.sync += bubbles.eq(bubbles - 1)
        with m.If(running):
            m.d.sync += [col.eq(col + 1), x.eq(x + now.stride_x), address.eq(address + now.stride_x),
                         pixel.eq(pixel + emit)]
            with m.If(last_col):
                m.d.sync += [
                    col.eq(0), row.eq(row + 1), x.eq(x_start), y.eq(y + now.stride_y),
                    row_address.eq(row_address + now.row_step), address.eq(row_address + now.row_step),
                ]
            with m.If(last_pixel):
                m.d.sync += running.eq(0)
                with m.If(pixel < facts.HAZARD_CYCLES - 1):
                    m.d.sync += bubbles.eq(facts.HAZARD_CYCLES - 1 - pixel)
            with m.If((emit & (pixel == config.accumulator_depth)) | (last_pixel & ~emit)):
                m.d.sync += [self.field_fault.eq(1), self.fault_layer.eq(now.layer), running.eq(0)]
        with m.If(take):
            m.d.sync += [
                now.eq(staged), running.eq(1), have_staged.eq(0), loaded.eq(0),
                row.eq(0), col.eq(0), y.eq(staged.y), x.eq(staged.x), x_start.eq(staged.x),
                address.eq(staged.address), row_address.eq(staged.address), pixel.eq(0),
            ]
        m.d.comb += [
            self.issue.eq(running), self.pass_done.eq(running & last_pixel), self.layer.eq(now.layer),
            self.read_half.eq(now.half), self.read_address.eq(address),
            self.post_activations.eq(running & last_pixel & now.post_activations),
            self.control.valid.eq(running & emit), self.control.first.eq(now.first), self.control.bank.eq(now.bank),
            self.control.index.eq(pixel), self.control.shift.eq(now.shift),
            self.control.post.eq(last_pixel & now.post_accumulators),
        ]
        # The tile becomes active together with its first pixel's digits: see ACTIVATION_LATENCY.
        swapped = Signal()
        m.d.sync += [swapped.eq(take & ~staged.keep), self.swap.eq(swapped & ~streams)]
        if config.channel_unit:
            m.d.sync += self.channel_swap.eq(swapped & streams)
        return m

    def _legal_channel(self, head):
        """Whether a CHANNEL's own fields are what the unit has."""
        if not self._config.channel_unit:
            return Const(1, 1)
        fields = View(instruction_layout("CHANNEL"), head.as_value())
        return (fields.tap_rows != 0) & (fields.tap_cols != 0) & (fields.part < self._config.channel_blocks)

    def _walk_channel(self, m, staged, now, take, running, last_col, inside):
        """Connects the walk of the other words; gives whether the column brings an output."""
        m.submodules.channel_walk = walk = ChannelWalk()
        fields = View(instruction_layout("CHANNEL"), now.as_value())
        m.d.comb += [
            walk.take.eq(take), walk.staged.eq(staged), walk.now.eq(now), walk.step.eq(running), walk.last_col.eq(last_col),
            walk.first_inside.eq(inside), self.signed.eq(walk.signed),
            self.more_address.eq(walk.address), self.more_inside.eq(walk.inside), self.more_signed.eq(walk.signs),
            self.control.channel.eq(fields.opcode == instructions.CHANNEL), self.control.window.part.eq(fields.part),
            self.control.window.tap_cols.eq(fields.tap_cols), self.control.window.maximum.eq(fields.maximum),
        ]
        return walk.emit
