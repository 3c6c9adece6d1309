"""Takes finished accumulators out: requantizes, adds the residual, pools, packs, and orders their stores."""

from amaranth import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import AXI_BEAT_BITS, DIGIT_BITS, EngineConfig
from esbflow.registers import COUNTERS, LOG_BEATS
from esbhw.arithmetic.multiply import small_product
from esbhw.arithmetic.requantize import CONSTANTS, FORMAT, LEVEL_BITS, RESIDUAL_BITS, RequantizeLane
from esbhw.engine.fields import instruction_layout
from esbhw.engine.tokens import COUNT_BITS
from esbhw.engine.transfer import transfer_layout

TRANSFERS = 16
"""Stores (planes) ordered ahead of the writer."""


class Drain(wiring.Component):
    """Carries out DRAIN, STAMP and END.

    A DRAIN taken in cycle p spends 2 cycles before each run of beats that is consecutive in memory, then takes one
    value group (`requantize_lanes` channels of one accumulator pixel) a cycle: digits * planes * out_rows *
    out_cols * (rows / lanes) * kernel_y * kernel_x of them. The beat that a group completes leaves LATENCY cycles
    after the group was issued. The next instruction is taken in the cycle after the last group. A STAMP first lets
    the pipeline run empty (LATENCY cycles), then sends one beat a cycle. Back-pressure: no group is issued while
    the writer has little room.

    Members
    -------
    i : In(stream of 256 bits)
    acc_bank, acc_index, acc_data : the accumulators' drain port
    constants_bank, constants_group, constants_data : the constants' read port
    residual_bank, residual_address, residual_low, residual_high : the residual's read port
    counters : In, what a STAMP writes
    beats : Out(stream of 128 bits);  room : In(1)
    transfers : Out(stream of transfer_layout(1)), tag 1 asks for a stores token
    writer_idle : In(1);  done : Out(1), the END instruction was reached and everything is written
    token wires as in tokens.py; issue : Out(1); field_fault : Out(1), for good
    """

    ADDRESS_LATENCY = 3  # issue -> memory address
    LATENCY = ADDRESS_LATENCY + 2 + RequantizeLane.LATENCY + 2  # issue -> beat
    SETUP_CYCLES = 2

    def __init__(self, config: EngineConfig):
        self._config = config
        groups = config.cols // config.requantize_lanes
        super().__init__({
            "i": In(stream.Signature(instructions.INSTRUCTION_BITS)),
            "acc_bank": Out(1), "acc_index": Out(range(config.accumulator_depth)),
            "acc_data": In(config.cols * config.accumulator_width),
            "constants_bank": Out(1), "constants_group": Out(range(max(2, groups))),
            "constants_data": In(config.requantize_lanes * CONSTANTS.size),
            "residual_bank": Out(1), "residual_address": Out(20),
            "residual_low": In(config.word_bits), "residual_high": In(config.word_bits),
            "counters": In(32 * len(COUNTERS)),
            "beats": Out(stream.Signature(AXI_BEAT_BITS)), "room": In(1),
            "transfers": Out(stream.Signature(transfer_layout(1))),
            "writer_idle": In(1), "done": Out(1),
            "accumulators_count": In(COUNT_BITS), "take_accumulators": Out(1), "post_accumulators": Out(1),
            "constants_count": In(COUNT_BITS), "take_constants": Out(1), "post_constants": Out(1),
            "residual_count": In(COUNT_BITS), "take_residual": Out(1), "post_residual": Out(1),
            "issue": Out(1), "layer": Out(12), "field_fault": Out(1), "waiting": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        lanes = config.requantize_lanes
        lane_groups = config.lane_groups
        head = Signal(instruction_layout("DRAIN"))
        now = Signal(instruction_layout("DRAIN"))
        m.submodules.orders = orders = SyncFIFO(width=transfer_layout(1).size, depth=TRANSFERS)
        order = Signal(transfer_layout(1))
        m.d.comb += [
            head.eq(self.i.payload), self.layer.eq(now.layer),
            orders.w_data.eq(order), self.transfers.payload.eq(orders.r_data),
            self.transfers.valid.eq(orders.r_rdy), orders.r_en.eq(self.transfers.ready),
        ]

        # -- loops: digit, plane, row, column, lane group, window row, window column -----------------
        digit = Signal(4)
        plane = Signal(6)
        row = Signal(10)
        col = Signal(10)
        group = Signal(range(max(2, lane_groups)))
        ky = Signal(4)
        kx = Signal(4)
        base_y = Signal(signed(15))
        base_x = Signal(signed(15))
        plane_rows = Signal(16)  # plane * acc_rows, for the residual
        plane_offset = Signal(28)
        digit_offset = Signal(28)
        setup = Signal(range(self.SETUP_CYCLES))
        step = Signal()
        last_kx, last_ky = kx == now.kernel_x - 1, ky == now.kernel_y - 1
        last_group = group == lane_groups - 1
        last_col, last_row = col == now.out_cols - 1, row == now.out_rows - 1
        last_plane, last_digit = plane == now.planes - 1, digit == now.digits - 1
        last_tap = last_kx & last_ky
        end_of_col = last_tap & last_group
        end_of_row = end_of_col & last_col
        end_of_plane = end_of_row & last_row
        end = end_of_plane & last_plane & last_digit

        tokens_here = ((self.accumulators_count != 0) & (self.constants_count != 0)
                       & (~head.residual | (self.residual_count != 0)))
        legal = ((head.acc_rows != 0) & (head.acc_cols != 0) & (head.out_rows != 0) & (head.out_cols != 0)
                 & (head.kernel_y != 0) & (head.kernel_x != 0) & (head.planes != 0) & (head.digits != 0)
                 & (head.digits <= LEVEL_BITS // DIGIT_BITS) & (head.planes <= config.planes_per_tile)
                 & (head.bits != 0) & (head.bits <= LEVEL_BITS) & (head.segment_beats != 0))
        flush = Signal(range(self.LATENCY + 1))
        stamp = Signal(range(LOG_BEATS + 1))
        snapshot = Signal(AXI_BEAT_BITS * LOG_BEATS)
        order_now = Signal()
        m.d.comb += orders.w_en.eq(order_now)

        with m.FSM() as fsm:
            with m.State("IDLE"):
                is_drain = head.opcode == instructions.DRAIN
                m.d.comb += self.waiting.eq(self.i.valid & is_drain & ~tokens_here)
                with m.If(self.i.valid & (~is_drain | tokens_here)):
                    m.d.comb += self.i.ready.eq(1)
                    m.d.sync += [
                        now.eq(head), digit.eq(0), plane.eq(0), row.eq(0), col.eq(0), group.eq(0), ky.eq(0), kx.eq(0),
                        base_y.eq(-head.pad_y), base_x.eq(-head.pad_x), plane_rows.eq(0),
                        plane_offset.eq(head.offset), digit_offset.eq(head.offset), setup.eq(0),
                        flush.eq(self.LATENCY),
                    ]
                    with m.If(is_drain):
                        m.d.comb += [self.take_accumulators.eq(1), self.take_constants.eq(1),
                                     self.take_residual.eq(head.residual)]
                        m.next = "SETUP"
                        with m.If(~legal):
                            m.d.sync += self.field_fault.eq(1)
                            m.next = "FAULT"
                    with m.Else():
                        m.next = "FLUSH"
            with m.State("SETUP"):
                # The first setup cycle of a plane orders its stores.
                first = (setup == 0) & (row == 0)
                with m.If(~first | orders.w_rdy):
                    m.d.comb += order_now.eq(first)
                    m.d.sync += setup.eq(setup + 1)
                    with m.If(setup == self.SETUP_CYCLES - 1):
                        m.d.sync += setup.eq(0)
                        m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.comb += step.eq(self.room)
                with m.If(step & end):
                    m.d.comb += [self.post_accumulators.eq(1), self.post_constants.eq(1),
                                 self.post_residual.eq(now.residual)]
                    m.next = "IDLE"
                with m.Elif(step & (end_of_plane | (end_of_row & (now.segments != 1)))):
                    m.next = "SETUP"
            with m.State("FLUSH"):
                m.d.sync += flush.eq(flush - 1)
                with m.If(flush == 0):
                    m.d.sync += [flush.eq(0), snapshot.eq(Cat(self.counters, Const(0, 1)))]
                    m.d.sync += snapshot[-32:].eq(now.layer)
                    with m.If(now.opcode == instructions.STAMP):
                        m.d.sync += stamp.eq(LOG_BEATS)
                        m.d.comb += order_now.eq(1)
                        with m.If(orders.w_rdy):
                            m.next = "STAMP"
                    with m.Else():
                        m.next = "END"
            with m.State("STAMP"):
                with m.If(self.beats.ready):
                    m.d.sync += [stamp.eq(stamp - 1), snapshot.eq(snapshot >> AXI_BEAT_BITS)]
                    with m.If(stamp == 1):
                        m.next = "IDLE"
            with m.State("END"):
                m.d.comb += self.done.eq(self.writer_idle & ~orders.r_rdy)
            with m.State("FAULT"):
                pass
        stamping = fsm.ongoing("STAMP")

        m.d.comb += [
            self.issue.eq(step),
            order.region.eq(now.region), order.offset.eq(plane_offset), order.beats.eq(now.segment_beats),
            order.segments.eq(now.segments), order.stride.eq(now.segment_stride),
            order.tag.eq(now.post_store & last_plane & last_digit),
        ]
        with m.If(now.opcode == instructions.STAMP):
            m.d.comb += [order.beats.eq(LOG_BEATS), order.segments.eq(1), order.tag.eq(0)]
        with m.If(step):
            m.d.sync += kx.eq(kx + 1)
            with m.If(last_kx):
                m.d.sync += [kx.eq(0), ky.eq(ky + 1)]
            with m.If(last_tap):
                m.d.sync += [ky.eq(0), group.eq(group + 1)]
            with m.If(end_of_col):
                m.d.sync += [group.eq(0), col.eq(col + 1), base_x.eq(base_x + now.stride_x)]
            with m.If(end_of_row):
                m.d.sync += [col.eq(0), base_x.eq(-now.pad_x), row.eq(row + 1), base_y.eq(base_y + now.stride_y)]
            with m.If(end_of_plane):
                m.d.sync += [row.eq(0), base_y.eq(-now.pad_y), plane.eq(plane + 1),
                             plane_rows.eq(plane_rows + now.acc_rows),
                             plane_offset.eq(plane_offset + now.plane_stride)]
                with m.If(last_plane):
                    m.d.sync += [plane.eq(0), plane_rows.eq(0), digit.eq(digit + 1),
                                 digit_offset.eq(digit_offset + now.digit_stride),
                                 plane_offset.eq(digit_offset + now.digit_stride)]

        # -- addresses: three stages ------------------------------------------------------------------
        def clamp(value, size):
            return Mux(value < 0, 0, Mux(value >= size, size - 1, value))

        words = config.words_per_beat
        pitch = Signal(11)
        m.d.comb += pitch.eq((now.acc_cols + (words - 1)) & ~(words - 1))
        y = Signal(10)
        x = Signal(10)
        residual_row = Signal(16)
        acc_row_base = Signal(20)
        residual_base = Signal(20)
        x_delayed = Signal(10)
        clamped_y = clamp(base_y + ky, now.acc_rows)
        m.d.sync += [
            y.eq(clamped_y), x.eq(clamp(base_x + kx, now.acc_cols)),
            residual_row.eq(plane_rows + clamped_y),
            acc_row_base.eq(small_product(y, now.acc_cols)), residual_base.eq(small_product(residual_row, pitch)),
            x_delayed.eq(x),
            self.acc_index.eq(acc_row_base + x_delayed), self.residual_address.eq(residual_base + x_delayed),
        ]

        def delay(value, cycles, name):
            for i in range(cycles):
                register = Signal(len(value), name=f"{name}_{i}")
                m.d.sync += register.eq(value)
                value = register
            return value

        tile_group = Signal(range(max(2, config.cols // lanes)))
        m.d.comb += tile_group.eq(plane * lane_groups + group if lane_groups & (lane_groups - 1) else
                                  Cat(group[:(lane_groups - 1).bit_length()], plane))
        group3 = delay(tile_group, self.ADDRESS_LATENCY, "group")
        m.d.comb += [
            self.acc_bank.eq(delay(now.bank, self.ADDRESS_LATENCY, "bank")),
            self.constants_bank.eq(delay(now.constants, self.ADDRESS_LATENCY, "constants")),
            self.residual_bank.eq(delay(now.residual_bank, self.ADDRESS_LATENCY, "residual_bank")),
            self.constants_group.eq(group3),
        ]

        # -- the lanes ---------------------------------------------------------------------------------
        group4 = delay(group3, 1, "group_data")
        flags = Cat(now.residual, now.residual_digits == 2, now.residual_signed, now.bits, now.signed, now.esb,
                    now.significand, now.octaves)
        flags4 = delay(flags, self.ADDRESS_LATENCY + 1, "flags")
        residual_on, residual_wide, residual_signed = flags4[0], flags4[1], flags4[2]
        acc_groups = Array(self.acc_data.word_select(g, lanes * config.accumulator_width)
                           for g in range(config.cols // lanes))
        word_group = group4[:(lane_groups - 1).bit_length()] if lane_groups > 1 else Const(0, 1)
        acc_now = Signal(lanes * config.accumulator_width)
        constants_now = Signal(len(self.constants_data))
        form = Signal(FORMAT)
        m.d.sync += [acc_now.eq(acc_groups[group4]), constants_now.eq(self.constants_data), form.eq(flags4[3:])]

        arrived = delay(Cat(step), self.ADDRESS_LATENCY + 2, "arrived")
        tap_flags = delay(Cat(step, (ky == 0) & (kx == 0), last_tap, digit),
                          self.ADDRESS_LATENCY + 2 + RequantizeLane.LATENCY, "tap")
        valid, first_tap, final_tap, digit_out = tap_flags[0], tap_flags[1], tap_flags[2], tap_flags[3:]
        chunk = Signal(lanes * DIGIT_BITS)
        chunk_valid = Signal()
        m.d.sync += chunk_valid.eq(valid & final_tap)
        for lane in range(lanes):
            m.submodules[f"lane_{lane}"] = unit = RequantizeLane(config.accumulator_width, config.requantize_width)
            low = self.residual_low.word_select(word_group, lanes * DIGIT_BITS).word_select(lane, DIGIT_BITS)
            high = self.residual_high.word_select(word_group, lanes * DIGIT_BITS).word_select(lane, DIGIT_BITS)
            value = Mux(residual_wide, Cat(low, high), Cat(low, (low[3] & residual_signed).replicate(4)))
            residual = Signal(signed(RESIDUAL_BITS), name=f"residual_{lane}")
            m.d.sync += residual.eq(Mux(residual_on, Cat(value, value[7] & residual_signed), 0))
            held = Signal(signed(LEVEL_BITS + 1), name=f"held_{lane}")
            best = Signal(signed(LEVEL_BITS + 1), name=f"best_{lane}")
            m.d.comb += [
                unit.valid.eq(arrived), unit.acc.eq(acc_now.word_select(lane, config.accumulator_width)),
                unit.residual.eq(residual),
                unit.constants.eq(constants_now.word_select(lane, CONSTANTS.size)), unit.format.eq(form),
                best.eq(Mux(first_tap | (unit.level > held), unit.level, held)),
            ]
            with m.If(valid):
                m.d.sync += held.eq(best)
            m.d.sync += chunk.word_select(lane, DIGIT_BITS).eq(
                best.as_unsigned()[:LEVEL_BITS].word_select(digit_out[:3], DIGIT_BITS))

        # -- pack chunks into beats ----------------------------------------------------------------------
        chunks = AXI_BEAT_BITS // len(chunk)
        beat = Signal(AXI_BEAT_BITS)
        filled = Signal(range(chunks)) if chunks > 1 else Const(0, 1)
        beat_valid = Signal()
        m.d.sync += beat_valid.eq(0)
        with m.If(chunk_valid):
            m.d.sync += beat.word_select(filled, len(chunk)).eq(chunk)
            if chunks > 1:
                m.d.sync += filled.eq(filled + 1)
            m.d.sync += beat_valid.eq(filled == chunks - 1)
        m.d.comb += [
            self.beats.valid.eq(beat_valid | stamping),
            self.beats.payload.eq(Mux(stamping, snapshot[:AXI_BEAT_BITS], beat)),
        ]
        return m
