"""AXI4 master ports that finish what they began, also when the engine behind them has stopped.

A port is not reset when a run ends in an error: AXI has no way to take a burst back. It refuses new bursts while
`run` is low, completes those that the bus has seen, and says with `quiescent` when nothing is left.
"""

from amaranth import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS

OUTSTANDING_READS = 16
OUTSTANDING_WRITES = 64
LENGTH_BITS = 7
"""A burst has 1 to 64 beats."""


def read_signature():
    """The read channels of a 128-bit AXI4 master without IDs; size and burst type are constant."""
    return wiring.Signature({
        "araddr": Out(AXI_ADDRESS_BITS), "arlen": Out(8), "arsize": Out(3), "arburst": Out(2),
        "arcache": Out(4), "arprot": Out(3), "arvalid": Out(1), "arready": In(1),
        "rdata": In(AXI_BEAT_BITS), "rresp": In(2), "rlast": In(1), "rvalid": In(1), "rready": Out(1),
    })


def write_signature():
    """The write channels of a 128-bit AXI4 master without IDs."""
    return wiring.Signature({
        "awaddr": Out(AXI_ADDRESS_BITS), "awlen": Out(8), "awsize": Out(3), "awburst": Out(2),
        "awcache": Out(4), "awprot": Out(3), "awvalid": Out(1), "awready": In(1),
        "wdata": Out(AXI_BEAT_BITS), "wstrb": Out(AXI_BEAT_BITS // 8), "wlast": Out(1),
        "wvalid": Out(1), "wready": In(1),
        "bresp": In(2), "bvalid": In(1), "bready": Out(1),
    })


SIZE_16_BYTES = 4
INCR = 1
NORMAL_NON_CACHEABLE_BUFFERABLE = 0b0011


def burst_layout(tag_bits: int):
    return StructLayout({"address": AXI_ADDRESS_BITS, "length": LENGTH_BITS, "tag": tag_bits})


class ReadPort(wiring.Component):
    """Issues read bursts and hands the beats on, with the tag of their burst.

    A burst accepted on `bursts` is on the bus one cycle later; a beat from the bus is on `beat` one cycle later.
    Up to OUTSTANDING_READS bursts are in flight. There is no back-pressure on beats: the reader has room for what it
    asked for.

    Members
    -------
    axi : Out(read_signature())
    run : In(1), low refuses new bursts and hides beats
    bursts : In(stream of address, length in beats, tag)
    beat_valid, beat_data, beat_tag, beat_first, beat_last : Out, one beat; first and last of its burst
    fault : Out(1) for one cycle: an error response;  protocol : Out(1): RLAST at the wrong beat
    fault_address : Out(40), of the burst concerned;  oldest : Out(40), of the burst now awaited
    quiescent : Out(1)
    """

    LATENCY = 2  # bursts -> bus, and bus -> beat: one cycle each

    def __init__(self, tag_bits: int):
        self._tag_bits = tag_bits
        super().__init__({
            "axi": Out(read_signature()),
            "run": In(1),
            "bursts": In(stream.Signature(burst_layout(tag_bits))),
            "beat_valid": Out(1), "beat_data": Out(AXI_BEAT_BITS), "beat_tag": Out(tag_bits),
            "beat_first": Out(1), "beat_last": Out(1),
            "fault": Out(1), "protocol": Out(1), "fault_address": Out(AXI_ADDRESS_BITS),
            "oldest": Out(AXI_ADDRESS_BITS), "quiescent": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        entry = burst_layout(self._tag_bits)
        m.submodules.pending = pending = SyncFIFO(width=entry.size, depth=OUTSTANDING_READS)
        burst = self.bursts.payload
        axi = self.axi
        m.d.comb += [
            axi.arsize.eq(SIZE_16_BYTES), axi.arburst.eq(INCR), axi.arprot.eq(0),
            axi.arcache.eq(NORMAL_NON_CACHEABLE_BUFFERABLE), axi.rready.eq(1),
        ]
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        m.d.comb += [
            self.bursts.ready.eq(self.run & pending.w_rdy & (axi.arready | ~axi.arvalid)),
            pending.w_data.eq(burst.as_value()),
        ]
        with m.If(self.bursts.valid & self.bursts.ready):
            m.d.comb += pending.w_en.eq(1)
            m.d.sync += [axi.araddr.eq(burst.address), axi.arlen.eq(burst.length - 1), axi.arvalid.eq(1)]

        current = Signal(entry)
        index = Signal(LENGTH_BITS)
        last = Signal()
        m.d.comb += [current.eq(pending.r_data), last.eq(index == current.length - 1)]
        m.d.sync += [self.beat_valid.eq(0), self.fault.eq(0), self.protocol.eq(0)]
        with m.If(axi.rvalid & pending.r_rdy):
            m.d.comb += pending.r_en.eq(last)
            m.d.sync += index.eq(index + 1)
            with m.If(last):
                m.d.sync += index.eq(0)
            m.d.sync += [
                self.beat_valid.eq(self.run), self.beat_data.eq(axi.rdata), self.beat_tag.eq(current.tag),
                self.beat_first.eq(index == 0), self.beat_last.eq(last),
                self.fault.eq(axi.rresp[1]), self.protocol.eq(axi.rlast != last),
                self.fault_address.eq(current.address),
            ]
        m.d.comb += [self.quiescent.eq(~axi.arvalid & ~pending.r_rdy), self.oldest.eq(current.address)]
        return m


class WritePort(wiring.Component):
    """Collects beats, and writes a burst once all its beats are here.

    So a burst that is on the bus never waits for the engine. A burst accepted on `bursts` (only when its beats are
    in the FIFO and not yet promised to an earlier one) is on the bus one cycle later, its data from the same cycle on,
    bursts following each other without a gap. Full beats only.

    Members
    -------
    axi : Out(write_signature())
    run : In(1); when low and the bus is quiet, beats that no burst has claimed are thrown away
    beats : In(stream of 128 bits);  room : Out(1), more than a quarter of the FIFO is free
    bursts : In(stream of address, length, tag), ready when the beats are there
    done_valid, done_tag : Out, for one cycle when a burst's response has come
    fault, fault_address : Out, an error response;  oldest : Out(40), of the burst whose response is awaited
    quiescent : Out(1), nothing on the bus, no response awaited, and no beat left over after a run
    beat_taken : Out(1), a beat went out
    """

    def __init__(self, depth: int):
        self._depth = depth
        super().__init__({
            "axi": Out(write_signature()),
            "run": In(1),
            "beats": In(stream.Signature(AXI_BEAT_BITS)),
            "room": Out(1),
            "bursts": In(stream.Signature(burst_layout(1))),
            "done_valid": Out(1), "done_tag": Out(1),
            "fault": Out(1), "fault_address": Out(AXI_ADDRESS_BITS), "oldest": Out(AXI_ADDRESS_BITS),
            "quiescent": Out(1), "beat_taken": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        axi = self.axi
        burst = self.bursts.payload
        m.submodules.data = data = SyncFIFOBuffered(width=AXI_BEAT_BITS, depth=self._depth)
        m.submodules.lengths = lengths = SyncFIFO(width=LENGTH_BITS, depth=OUTSTANDING_WRITES)
        m.submodules.responses = responses = SyncFIFO(width=AXI_ADDRESS_BITS + 1, depth=OUTSTANDING_WRITES)
        unclaimed = Signal(range(self._depth + 1))  # beats in the FIFO that no burst has been promised
        claim = self.bursts.valid & self.bursts.ready
        push = self.beats.valid & self.beats.ready
        idle = Signal()
        discard = Signal()
        m.d.comb += [
            axi.awsize.eq(SIZE_16_BYTES), axi.awburst.eq(INCR), axi.awprot.eq(0),
            axi.awcache.eq(NORMAL_NON_CACHEABLE_BUFFERABLE), axi.wstrb.eq(-1), axi.bready.eq(1),
            self.beats.ready.eq(self.run & data.w_rdy), data.w_en.eq(push), data.w_data.eq(self.beats.payload),
            self.room.eq(data.level < self._depth * 3 // 4),
            self.bursts.ready.eq(self.run & (unclaimed >= burst.length) & responses.w_rdy
                                 & (axi.awready | ~axi.awvalid)),
        ]
        m.d.sync += unclaimed.eq(unclaimed + push)
        with m.If(claim):
            m.d.sync += unclaimed.eq(unclaimed + push - burst.length)

        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(claim):
            m.d.sync += [axi.awaddr.eq(burst.address), axi.awlen.eq(burst.length - 1), axi.awvalid.eq(1)]
        m.d.comb += [
            lengths.w_en.eq(claim), lengths.w_data.eq(burst.length),
            responses.w_en.eq(claim), responses.w_data.eq(burst.address << 1 | burst.tag),
        ]

        index = Signal(LENGTH_BITS)
        taken = axi.wvalid & axi.wready
        m.d.comb += [
            axi.wvalid.eq(lengths.r_rdy & data.r_rdy), axi.wdata.eq(data.r_data),
            axi.wlast.eq(index == lengths.r_data - 1),
            lengths.r_en.eq(taken & axi.wlast), self.beat_taken.eq(taken),
            data.r_en.eq(taken | discard),
        ]
        with m.If(taken):
            m.d.sync += index.eq(index + 1)
            with m.If(axi.wlast):
                m.d.sync += index.eq(0)

        m.d.sync += [self.done_valid.eq(0), self.fault.eq(0)]
        with m.If(axi.bvalid & responses.r_rdy):
            m.d.comb += responses.r_en.eq(1)
            m.d.sync += [
                self.done_valid.eq(self.run), self.done_tag.eq(responses.r_data[0]),
                self.fault.eq(axi.bresp[1]), self.fault_address.eq(responses.r_data[1:]),
            ]
        m.d.comb += [
            self.oldest.eq(responses.r_data[1:]),
            idle.eq(~axi.awvalid & ~responses.r_rdy),
            self.quiescent.eq(idle & (self.run | ~data.r_rdy)),
            # What an aborted run left in the FIFO belongs to no burst: throw it away once the bus is quiet.
            discard.eq(~self.run & idle),
        ]
        with m.If(discard):
            m.d.sync += unclaimed.eq(0)
        return m
