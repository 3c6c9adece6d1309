"""Carries out passes: brings a weight tile into the array, then streams a tile's pixels through it."""

from amaranth import Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import EngineConfig
from esbhw.engine.accumulators import SHIFT_DIGITS, Accumulators, control_layout
from esbhw.engine.fields import instruction_layout
from esbhw.engine.tokens import COUNT_BITS


class Sequencer(wiring.Component):
    """Two stages, so that the next pass's weights move while this pass streams.

    Preload takes a PASS off the queue in cycle p once its weights are there, and moves the tile in tile_load_cycles
    (T); the stream stage can take the pass from cycle p + T + 1 on (p + 1 if it keeps the weights). A pass taken in
    cycle a issues its rows*cols pixels (n) in a+1 .. a+n, the next is taken in a + max(n, HAZARD_CYCLES) at the
    earliest, and preload takes the next PASS in a+1.

    Members
    -------
    i : In(stream of 256 bits)
    slot_address : Out, and load_en, load_index, codebook : Out, one cycle behind the address
    read_half, read_address, inside, signed : Out, the word of the pixel issued in this cycle
    swap : Out(1), SWAP_LATENCY after a pass was taken: with the pixel's digits at the activation buffer's output
    control : Out(control_layout), the pixel issued in this cycle
    weights_count, take_weights, post_weights, activations_count, take_activations, post_activations,
    accumulators_count, take_accumulators : token wires
    issue, stalls : Out, for the counters
    field_fault : Out(1), for good;  layer, fault_layer : Out(12)
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        slots = config.weight_slots * config.tile_load_cycles
        super().__init__({
            "i": In(stream.Signature(instructions.INSTRUCTION_BITS)),
            "slot_address": Out(range(slots)),
            "load_en": Out(1), "load_index": Out(range(max(2, config.tile_load_cycles))), "codebook": Out(80),
            "read_half": Out(1), "read_address": Out(20), "inside": Out(1), "signed": Out(1),
            "swap": Out(1), "control": Out(control_layout(config)),
            "weights_count": In(COUNT_BITS), "take_weights": Out(1), "post_weights": Out(1),
            "activations_count": In(COUNT_BITS), "take_activations": Out(1), "post_activations": Out(1),
            "accumulators_count": In(COUNT_BITS), "take_accumulators": Out(1),
            "issue": Out(1), "pass_done": Out(1),
            "stall_instruction": Out(1), "stall_weights": Out(1), "stall_activations": Out(1),
            "stall_accumulators": Out(1), "stall_hazard": Out(1), "preloading": Out(1),
            "field_fault": Out(1), "layer": Out(12), "fault_layer": Out(12),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        layout = instruction_layout("PASS")
        load_cycles = config.tile_load_cycles

        # -- preload ---------------------------------------------------------------------------------
        head = Signal(layout)
        staged = Signal(layout)
        have_staged = Signal()
        loaded = Signal()
        step = Signal(range(load_cycles + 1))
        stepping = Signal()
        weights_here = ~head.wait_weights | (self.weights_count != 0)
        legal = Signal()
        m.d.comb += [
            head.eq(self.i.payload),
            legal.eq((head.rows != 0) & (head.cols != 0) & (head.slot < config.weight_slots)
                     & (head.shift <= SHIFT_DIGITS)),
            self.i.ready.eq(~have_staged & weights_here & ~self.field_fault),
            self.slot_address.eq(staged.slot * load_cycles + step if load_cycles & (load_cycles - 1) else
                                 Cat(step[:(load_cycles - 1).bit_length()], staged.slot)),
            self.codebook.eq(staged.codebook), self.preloading.eq(stepping),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.comb += self.take_weights.eq(head.wait_weights)
            m.d.sync += [staged.eq(head), have_staged.eq(1), loaded.eq(head.keep), stepping.eq(~head.keep),
                         step.eq(0)]
            with m.If(~legal):
                m.d.sync += [self.field_fault.eq(1), self.fault_layer.eq(head.layer)]
        with m.If(stepping):
            m.d.sync += step.eq(step + 1)
            with m.If(step == load_cycles - 1):
                m.d.sync += [loaded.eq(1), stepping.eq(0)]
                m.d.comb += self.post_weights.eq(staged.post_weights)
        m.d.sync += [self.load_en.eq(stepping), self.load_index.eq(step)]

        # -- stream ----------------------------------------------------------------------------------
        running = Signal()
        now = Signal(layout)
        row = Signal(10)
        col = Signal(10)
        y = Signal(signed(12))
        x = Signal(signed(12))
        x_start = Signal(signed(12))
        address = Signal(signed(20))
        row_address = Signal(signed(20))
        index = Signal(range(config.accumulator_depth + 1))
        bubbles = Signal(range(Accumulators.HAZARD_CYCLES))
        last_col = col == now.cols - 1
        last_pixel = last_col & (row == now.rows - 1)
        finishing = Signal()
        # A pass of 1 or 2 pixels is followed by bubbles, until its first pixel may be added to again.
        m.d.comb += finishing.eq(Mux(bubbles != 0, bubbles == 1,
                                     running & last_pixel & (index >= Accumulators.HAZARD_CYCLES - 1)))
        free = finishing | (~running & (bubbles == 0))
        activations_here = ~staged.wait_activations | (self.activations_count != 0)
        bank_free = ~staged.wait_accumulators | (self.accumulators_count != 0)
        ready = have_staged & loaded & ~self.field_fault
        take = Signal()
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
                         index.eq(index + 1)]
            with m.If(last_col):
                m.d.sync += [
                    col.eq(0), row.eq(row + 1), x.eq(x_start), y.eq(y + now.stride_y),
                    row_address.eq(row_address + now.row_step), address.eq(row_address + now.row_step),
                ]
            with m.If(last_pixel):
                m.d.sync += running.eq(0)
                with m.If(index < Accumulators.HAZARD_CYCLES - 1):
                    m.d.sync += bubbles.eq(Accumulators.HAZARD_CYCLES - 1 - index)
            with m.If(index == config.accumulator_depth):
                m.d.sync += [self.field_fault.eq(1), self.fault_layer.eq(now.layer), running.eq(0)]
        with m.If(take):
            m.d.sync += [
                now.eq(staged), running.eq(1), have_staged.eq(0), loaded.eq(0),
                row.eq(0), col.eq(0), y.eq(staged.y), x.eq(staged.x), x_start.eq(staged.x),
                address.eq(staged.address), row_address.eq(staged.address), index.eq(0),
            ]
        m.d.comb += [
            self.issue.eq(running), self.pass_done.eq(running & last_pixel), self.layer.eq(now.layer),
            self.read_half.eq(now.half), self.read_address.eq(address), self.signed.eq(now.signed),
            self.inside.eq((y >= 0) & (y < now.in_rows) & (x >= 0) & (x < now.in_cols)),
            self.post_activations.eq(running & last_pixel & now.post_activations),
            self.control.valid.eq(running), self.control.first.eq(now.first), self.control.bank.eq(now.bank),
            self.control.index.eq(index), self.control.shift.eq(now.shift),
            self.control.post.eq(last_pixel & now.post_accumulators),
        ]
        # The tile becomes active together with its first pixel's digits: see ActivationBuffer.LATENCY.
        swapped = Signal()
        m.d.sync += [swapped.eq(take & ~staged.keep), self.swap.eq(swapped)]
        return m
