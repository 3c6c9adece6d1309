"""Takes finished accumulators out: requantizes, adds the residual, pools, packs, and orders their stores."""

from dataclasses import dataclass
from functools import partial

from amaranth import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.data import View
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import AXI_BEAT_BITS, DIGIT_BITS, EngineConfig
from esbflow.engine_facts import TRANSFERS
from esbflow.registers import COUNTERS, LOG_BEATS
from esbflow.requantizer import (
    ACCUMULATOR_CYCLES,
    LEVEL_BITS,
    RESIDUAL_BITS,
    Stages,
    drain_latency,
    level_bits,
    table_write_delay,
)
from esbhw.arithmetic.function_table import table_write_layout
from esbhw.arithmetic.requantize import constants_layout
from esbhw.arithmetic.requantizer import Requantizer
from esbhw.arithmetic.requantizer_control import FORMAT
from esbhw.engine.drain_walk import DrainWalk
from esbhw.engine.fields import instruction_layout
from esbhw.engine.fifo import Fifo
from esbhw.engine.transfer import transfer_layout
from esbhw.engine.writer import idle_signs, store_tag_bits
from esbhw.fabric.adder_rows import Term, add_row
from esbhw.fabric.idioms import delayed


class _State:
    """What the drain does. One of `setup`, `decided`, `issuing`, `stamping` and `idle` is high, or a STAMP or END waits for
    the pipeline to run empty or for a place for its order, or there was a fault.

    drains, legal : the instruction at hand is a DRAIN, and its fields are right
    opens : this run is a plane's first;  starting : the walk starts
    able : the next instruction and its tokens are here;  stamps : a STAMP waits for a place for its order
    stamp : the beat that a STAMP packs next, from 1 on
    step, begins, ends : in this cycle a value group is issued, an instruction begins, a DRAIN issues its last group
    """

    def __init__(self):
        self.setup = Signal()
        self.decided = Signal()
        self.issuing = Signal()
        self.stamping = Signal()
        self.idle = Signal(init=1)
        self.drains = Signal()
        self.legal = Signal()
        self.opens = Signal()
        self.starting = Signal()
        self.step = Signal()
        self.begins = Signal()
        self.ends = Signal()
        self.stamp = Signal(range(LOG_BEATS + 2))
        self.able = Signal()
        self.stamps = Signal()


@dataclass(frozen=True, eq=False)
class _Head:
    """The next instruction: there is one, it is a DRAIN, and a 1 for each check that it passes."""

    fields: View
    valid: Signal
    drains: Signal
    legal: Signal


class Drain(wiring.Component):
    """Carries out DRAIN, STAMP and END.

    An instruction is held ready while the one before it runs, and begins at least two cycles after it was taken. A DRAIN
    that begins in cycle p spends 2 cycles before each run of beats that is consecutive in memory, then issues one value
    group (`requantize_lanes` channels of one accumulator pixel) a cycle: digits * planes * out_rows * out_cols *
    (rows / lanes) * kernel_y * kernel_x of them. The beat that a group completes leaves drain_latency(config) cycles
    after the group was issued. The next instruction begins in the cycle after the last group. A STAMP first lets the
    pipeline run empty, then sends one beat a cycle. Back-pressure: no group is issued while the writer has little room.
    Tokens and the instruction are looked at a cycle before the beginning; tokens are taken with it and posted with the last
    group.

    Slices drain in lockstep: what comes from or goes to a slice is that slice's part of a port. Constants are those of all.

    Members
    -------
    i : In(stream of 256 bits)
    acc_bank : Out(1);  acc_index : Out(range(accumulator_depth));  acc_data : In(slices * cols * accumulator_width): the
        accumulators' drain port
    constants_bank : Out(1);  constants_group : Out(range(max(2, tile_channels // requantize_lanes)))
    constants_data : In(requantize_lanes * constants_layout(config).size), a cycle later
    residual_bank : Out(1);  residual_address : Out(20);  residual_low, residual_high : In(slices * rows * 4), a cycle later
    counters : In(32 * len(COUNTERS)), what a STAMP writes
    beats : Out(stream of 128 bits for each slice);  room : In(1)
    transfers : Out(stream of transfer_layout(store_tag_bits(config))), see Writer
    writer_idle : In(idle_signs(config)), as Writer
    done : Out(1), the END instruction was reached and everything is written
    KIND_here : In(1), for each KIND of accumulators, constants and residual a token is there;  take_KIND, post_KIND : Out(1)
    table_write : In(table_write_layout(config)), a function table's rows as they come; only where there is one
    issue : Out(1);  layer : Out(12), of the instruction at hand;  field_fault : Out(1), for good
    waiting : Out(1), a DRAIN could begin but for its tokens; for the benches
    """

    SETUP_CYCLES = 2

    def __init__(self, config: EngineConfig):
        self._config = config
        groups = config.tile_channels // config.requantize_lanes
        super().__init__({
            "i": In(stream.Signature(instructions.INSTRUCTION_BITS)),
            "acc_bank": Out(1), "acc_index": Out(range(config.accumulator_depth)),
            "acc_data": In(config.slices * config.cols * config.accumulator_width),
            "constants_bank": Out(1), "constants_group": Out(range(max(2, groups))),
            "constants_data": In(config.requantize_lanes * constants_layout(config).size),
            "residual_bank": Out(1), "residual_address": Out(20),
            "residual_low": In(config.slices * config.rows * DIGIT_BITS),
            "residual_high": In(config.slices * config.rows * DIGIT_BITS),
            "counters": In(32 * len(COUNTERS)),
            "beats": Out(stream.Signature(config.slices * AXI_BEAT_BITS)), "room": In(1),
            "transfers": Out(stream.Signature(transfer_layout(store_tag_bits(config)))),
            "writer_idle": In(idle_signs(config)), "done": Out(1),
            "accumulators_here": In(1), "take_accumulators": Out(1), "post_accumulators": Out(1),
            "constants_here": In(1), "take_constants": Out(1), "post_constants": Out(1),
            "residual_here": In(1), "take_residual": Out(1), "post_residual": Out(1),
            "issue": Out(1), "layer": Out(12), "field_fault": Out(1), "waiting": Out(1),
            **({"table_write": In(table_write_layout(config))} if config.function_table else {}),
        })

    def elaborate(self, platform):
        m = Module()
        walk = m.submodules.walk = DrainWalk(self._config)
        head = self._prefetch(m)
        now = Signal(instruction_layout("DRAIN", self._config))
        m.d.comb += [self.layer.eq(now.layer), walk.now.eq(now)]
        at = _State()
        order_now, orders_ready, orders_empty = self._orders(m, platform, now, head.fields, at.begins, walk, at.step)
        self._begin(m, now, at, head)
        self._run(m, at, head, walk, order_now, orders_ready)
        snapshot = self._stamp(m, now, at, at.begins & ~head.drains, orders_ready, orders_empty)
        takes = at.begins & head.drains
        m.d.comb += [
            self.take_accumulators.eq(takes), self.take_constants.eq(takes),
            self.take_residual.eq(takes & head.fields.residual),
            self.post_accumulators.eq(at.ends), self.post_constants.eq(at.ends),
            self.post_residual.eq(at.ends & now.residual),
        ]
        done, digits = self._lanes(m, now, walk, at.step)
        self._pack(m, done, digits, at.stamping & self.room, at.stamp, snapshot)
        return m

    def _begin(self, m, now, at: _State, head: _Head) -> None:
        """The next instruction begins once it, and its tokens, which stay, were here a cycle ago."""
        tokens_here = self.accumulators_here & self.constants_here & (~head.fields.residual | self.residual_here)
        m.d.sync += at.able.eq(head.valid & ~at.begins & (~head.drains | tokens_here))
        m.d.comb += [at.begins.eq(at.idle & at.able), self.waiting.eq(at.idle & head.valid & head.drains & ~tokens_here)]
        with m.If(at.begins):
            m.d.sync += [now.eq(head.fields), head.valid.eq(0), at.legal.eq(head.legal.all()), at.drains.eq(head.drains)]

    def _run(self, m, at: _State, head: _Head, walk, order_now, orders_ready) -> None:
        """A DRAIN: two cycles before each run; the second one of a plane's first run orders its stores."""
        m.d.comb += [
            at.step.eq(at.issuing & self.room), at.ends.eq(at.step & walk.end), self.issue.eq(at.step),
            walk.start.eq(at.starting), walk.step.eq(at.step),
        ]
        run_ends, begins = at.step & walk.end_of_run, at.begins & head.drains
        sets_up = ~at.opens | orders_ready
        plane_order = Signal()  # a plane's order waits for a place
        m.d.comb += order_now.eq(plane_order | at.stamps)
        m.d.sync += [
            plane_order.eq((at.setup & at.legal & at.opens) | (plane_order & ~orders_ready)),
            at.starting.eq(begins), at.opens.eq(at.begins | Mux(at.issuing, walk.end_of_plane, at.opens)),
            at.setup.eq(begins | (run_ends & ~walk.end)),
            at.decided.eq(at.setup | (at.decided & at.legal & ~sets_up)),
            at.issuing.eq((at.decided & at.legal & sets_up) | (at.issuing & ~run_ends)),
            at.idle.eq((at.idle & ~at.able) | at.ends | self._stamp_ends(at)),
        ]
        with m.If(at.decided & ~at.legal):
            m.d.sync += self.field_fault.eq(1)

    def _stamp_ends(self, at: _State):
        """Whether a STAMP sends its last beat."""
        return at.stamping & self.room & (at.stamp == LOG_BEATS + 1)

    def _stamp(self, m, now, at: _State, flushes, orders_ready, orders_empty) -> Signal:
        """STAMP and END, which differ in bit 0: the pipeline runs empty first. The result is what a STAMP stores."""
        latency = drain_latency(self._config)
        flushing = Signal()
        ended = Signal()
        count = Signal(range(latency + 1))
        flushed = Signal()
        snapshot = Signal(AXI_BEAT_BITS * LOG_BEATS, reset_less=True)
        m.d.sync += [
            flushing.eq(flushes | (flushing & ~(flushed & (~now.opcode[0] | orders_ready)))),
            at.stamps.eq((flushing & now.opcode[0] & (count == latency - 1)) | (at.stamps & ~orders_ready)),
            flushed.eq(flushing & (flushed | (count == latency - 1))),
            ended.eq(ended | (flushed & flushing & ~now.opcode[0])),
            at.stamping.eq((at.stamps & orders_ready) | (at.stamping & ~self._stamp_ends(at))),
            self.done.eq(ended & orders_empty & self.writer_idle.all()),
        ]
        with m.If(flushing):
            m.d.sync += count.eq(count + 1)
        with m.Else():
            m.d.sync += count.eq(0)
        with m.If(flushed & flushing):
            m.d.sync += [snapshot.eq(Cat(self.counters, Const(0, 1))), snapshot[-32:].eq(now.layer)]
        with m.If(at.stamps):
            m.d.sync += at.stamp.eq(1)
        with m.Elif(at.stamping & self.room):
            m.d.sync += at.stamp.eq(Mux(at.stamp == LOG_BEATS + 1, 0, at.stamp + 1))
        return snapshot

    def _prefetch(self, m) -> _Head:
        """The next instruction in a register."""
        config = self._config
        head = Signal(instruction_layout("DRAIN", config))
        valid = Signal()
        drains = Signal()
        f = Signal(instruction_layout("DRAIN", config))
        m.d.comb += [f.eq(self.i.payload), self.i.ready.eq(~valid)]
        single = Cat(f.kernel_y, f.kernel_x, f.stride_y, f.stride_x, f.pad_y, f.pad_x) == 0x001111
        checks = [f.acc_rows != 0, f.acc_cols != 0, f.out_rows != 0, f.out_cols != 0, f.kernel_y != 0, f.kernel_x != 0,
                  f.planes != 0, f.planes <= config.planes_per_tile,
                  *([f.digits != 0, f.digits <= LEVEL_BITS // DIGIT_BITS] if config.digit_bits == DIGIT_BITS else []),
                  f.bits != 0, f.bits <= LEVEL_BITS, f.segment_beats != 0,
                  ~f.residual | single if config.residual else ~f.residual]
        if not config.esb_output:
            checks.append(~f.esb)
        if config.function_table:
            checks.append(~f.table | (Cat(f.digits, f.digits == 0) <= level_bits(config) // config.digit_bits))
        legal = Signal(len(checks))
        with m.If(~valid):
            m.d.sync += [head.eq(f), valid.eq(self.i.valid), drains.eq(f.opcode == instructions.DRAIN),
                         legal.eq(Cat(*checks))]
        return _Head(head, valid, drains, legal)

    def _orders(self, m, platform, now, head, begins, walk, step) -> tuple:
        """(a signal that orders a store at the current offset where there is a place for it, is there one, are there none).

        `begins` takes the head's offset; after the last step of a plane the offset is the next plane's.
        """
        stamping = now.opcode == instructions.STAMP
        offset = Signal(28)
        digit_offset = Signal(28, reset_less=True)
        new_digit = Signal()
        order = Signal()
        following, _ = add_row(m, platform, [_either(offset, digit_offset, walk.last_plane),
                                             _either(now.plane_stride, now.digit_stride, walk.last_plane)], "following", 28)
        with m.If(begins | (step & walk.end_of_plane)):
            m.d.sync += [offset.eq(Mux(begins, head.offset, following)), new_digit.eq(begins | walk.end_of_digit)]
        with m.If(order & new_digit):
            m.d.sync += digit_offset.eq(offset)
        # A transfer's other fields stay zero.
        stored = ("region", "offset", "beats", "segments", "stride", "tag")
        widths = dict(segments=len(now.segments), stride=len(now.segment_stride))
        values = {
            "region": now.region, "offset": offset, "beats": Mux(stamping, LOG_BEATS, now.segment_beats),
            "segments": Mux(stamping, 1, now.segments), "stride": now.segment_stride,
            "tag": ~stamping & now.post_store & walk.last_plane & walk.last_digit,
        }
        if self._config.stripes:
            values["tag"] = Cat(values["tag"], now.apart)
        sizes = [widths.get(name, len(getattr(self.transfers.payload, name))) for name in stored]
        m.submodules.orders = orders = Fifo(sum(sizes), TRANSFERS)
        m.d.comb += [
            orders.i.payload.eq(Cat(values[name][:size] for name, size in zip(stored, sizes, strict=True))),
            orders.i.valid.eq(order),
            self.transfers.valid.eq(orders.o.valid), orders.o.ready.eq(self.transfers.ready),
        ]
        low = 0
        for name, size in zip(stored, sizes, strict=True):
            m.d.comb += getattr(self.transfers.payload, name).eq(orders.o.payload[low:low + size])
            low += size
        return order, orders.i.ready, ~orders.behind & ~orders.o.valid

    def _lanes(self, m, now, walk, step) -> tuple:
        """(a window's digits are done, for each slice the digits of all lanes)."""
        config, lanes, stages = self._config, self._config.requantize_lanes, Stages(self._config)
        delay = partial(delayed, m)

        # The residual and the constants are read so many cycles before the accumulators as the lanes want them earlier.
        early = ACCUMULATOR_CYCLES - stages.product
        group = delay(walk.tile_group, early, "group")
        m.d.comb += [
            self.acc_index.eq(walk.acc_index),
            self.acc_bank.eq(delay(now.bank, ACCUMULATOR_CYCLES, "bank")),
            self.constants_bank.eq(delay(now.constants, early, "constants")), self.constants_group.eq(group),
            self.residual_bank.eq(delay(now.residual_bank, early, "residual_bank")),
            self.residual_address.eq(delay(walk.pixel, early, "pixel")),
        ]
        form = Signal(FORMAT)
        m.d.comb += [form.bits.eq(now.bits), form.signed.eq(now.signed), form.esb.eq(now.esb),
                     form.significand.eq(now.significand), form.octaves.eq(now.octaves)]
        m.submodules.requantizer = unit = Requantizer(config, config.slices * lanes, early=early + 2)
        valid = delay(step, early + 2, "valid", reset_less=False)
        taps = delay(Cat(walk.first, walk.last), early + 2, "taps")
        narrow = config.digit_bits < DIGIT_BITS
        digit = walk.digit[1:] if narrow else walk.digit
        if config.function_table:
            m.d.comb += [
                unit.table.eq(now.table), unit.upper.eq(digit[0]),
                unit.table_write.eq(delay(self.table_write.as_value(), table_write_delay(config), "table_write"))]
            digit = Mux(now.table, 0, digit)  # lanes give all of a level
        m.d.comb += [unit.format.eq(form), unit.digit.eq(digit), unit.valid.eq(valid),
                     unit.first.eq(taps[0]), unit.last.eq(taps[1])]

        slices = range(config.slices)
        constants = Signal(len(self.constants_data), reset_less=True)
        acc = Signal(len(unit.acc), reset_less=True)
        group = delay(group, 1, "group_data")
        groups, width = config.cols // lanes, lanes * config.accumulator_width
        group_acc = delay(group, stages.product, "group_acc")
        if config.accumulators_per_pixel > 1:  # the other bits chose one of the pixel's accumulators
            group_acc = group_acc[:(groups - 1).bit_length()] if groups > 1 else Const(0, 1)
        m.d.sync += constants.eq(self.constants_data)
        for k in slices:
            acc_groups = Array(self.acc_data.word_select(k * groups + g, width) for g in range(groups))
            m.d.sync += acc.word_select(k, width).eq(acc_groups[group_acc])
        m.d.comb += [unit.constants.eq(constants.replicate(config.slices)), unit.acc.eq(acc)]
        if config.residual:
            m.d.comb += unit.residual.eq(self._residual(m, now, group, early))
        digits = [unit.digits.word_select(k, lanes * DIGIT_BITS) for k in slices]
        if narrow:
            # Of a lane's four bits one of two digits.
            upper = delay(walk.digit[:1], early + 2 + stages.count, "upper")
            digits = [Cat(Mux(upper, of_slice[4 * lane + 2:4 * lane + 4], of_slice[4 * lane:4 * lane + 2])
                          for lane in range(lanes)) for of_slice in digits]
        return unit.done, digits

    def _residual(self, m, now, group, early: int) -> Signal:
        """The residual of each lane of all slices, as the requantizer takes it; `group` says which of the word's lanes."""
        config, lanes, narrow = self._config, self._config.requantize_lanes, self._config.digit_bits < DIGIT_BITS
        word = group[:(config.lane_groups - 1).bit_length()]
        count = now.residual_digits
        flags = delayed(m, Cat(now.residual, count == (0 if narrow else 2), now.residual_signed,
                                *([count == 1] if narrow else [])), early + 1, "flags")
        on, wide, is_signed = flags[0], flags[1], flags[2]
        # As esbflow.requantizer.residual_offset says.
        flip = Cat(Const(0, 3), on & is_signed & ~wide, Const(0, 3), on & wide & ~is_signed)
        if narrow:
            single = flags[3]
            flip = Cat(Const(0, 1), on & is_signed & single, Const(0, 1), on & is_signed & ~single & ~wide, Const(0, 3),
                       on & wide & ~is_signed)
        residual = Signal(config.slices * lanes * RESIDUAL_BITS, reset_less=True)
        for k in range(config.slices):
            words = [data.word_select(k, config.rows * DIGIT_BITS) for data in (self.residual_low, self.residual_high)]
            low, high = (data.word_select(word, lanes * DIGIT_BITS) if len(word) else data for data in words)
            for lane in range(lanes):
                mask = Cat(on.replicate(2), (on & ~single).replicate(2)) if narrow else on.replicate(DIGIT_BITS)
                value = Cat(low.word_select(lane, DIGIT_BITS) & mask,
                            high.word_select(lane, DIGIT_BITS) & (on & wide).replicate(DIGIT_BITS))
                m.d.sync += residual.word_select(k * lanes + lane, RESIDUAL_BITS).eq(value ^ flip)
        return residual

    def _pack(self, m, done, digits, stamping, stamp, snapshot) -> None:
        """Chunks of one lane group each become beats; a STAMP's beats are there at once."""
        size = len(digits[0])
        chunks = AXI_BEAT_BITS // size
        beat = Signal(AXI_BEAT_BITS * len(digits), reset_less=True)
        valid = Signal()
        filled = Signal(range(chunks)) if chunks > 1 else Const(0, 1)
        words = [snapshot.word_select(k, AXI_BEAT_BITS) for k in range(LOG_BEATS)]
        with m.If(done):
            m.d.sync += valid.eq(filled == chunks - 1)
            if chunks > 1:
                m.d.sync += filled.eq(filled + 1)
        with m.Elif(stamping):
            m.d.sync += valid.eq(stamp != LOG_BEATS + 1)
        with m.Elif(self.beats.ready):
            m.d.sync += valid.eq(0)
        for part, own in enumerate(digits):
            packed = own.replicate(chunks)
            if part == 0:  # the record of the others is not looked at
                # Of the last word most bits are zero: those take one LUT of four choices and the registers' reset.
                packed = Mux(stamp[2], words[3], Mux(stamp[1], Mux(stamp[0], words[2], words[1]),
                                                     Mux(stamp[0], words[0], packed)))
            for k in range(chunks):
                with m.If(stamping | (done & (filled == k))):
                    m.d.sync += beat.word_select(part * chunks + k, size).eq(packed.word_select(k, size))
        m.d.comb += [self.beats.valid.eq(valid), self.beats.payload.eq(beat)]


assert instructions.STAMP & 1 and not instructions.END & 1
assert LOG_BEATS == 4  # _pack chooses one of four


def _either(zero, one, select) -> Term:
    """The value `one` where `select` is set, else `zero`."""
    bits = tuple(((zero[i], one[i], select), lambda a, b, s: b if s else a) for i in range(len(zero)))
    return Term(Mux(select, one, zero), bits, (1 << len(zero)) - 1)
