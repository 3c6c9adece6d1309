"""Cuts a transfer into AXI bursts: none crosses 4 KB, none is longer than `max_burst`, none leaves its region."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.data import ArrayLayout, StructLayout
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_ADDRESS_BITS
from esbflow.registers import REGIONS
from esbhw.engine.axi import LENGTH_BITS

OFFSET_BITS = 28
"""Offsets, sizes and strides count 16-byte beats: 4 GB."""
BEATS_PER_4K = 256

REGION_LAYOUT = ArrayLayout(StructLayout({"base": AXI_ADDRESS_BITS, "beats": OFFSET_BITS + 1}), len(REGIONS))


def transfer_layout(tag_bits: int):
    return StructLayout({
        "region": 3, "offset": OFFSET_BITS, "beats": 16, "segments": 16, "stride": OFFSET_BITS,
        "address": 16, "tag": tag_bits,
    })


def piece_layout(tag_bits: int):
    """One burst: `address` on the bus, `local` beat address in the buffer, `last` of its transfer."""
    return StructLayout({
        "address": AXI_ADDRESS_BITS, "length": LENGTH_BITS, "local": 16, "last": 1, "tag": tag_bits,
    })


class BurstSplitter(wiring.Component):
    """Cuts `segments` runs of `beats` beats, `stride` beats apart, into bursts.

    With `region` every transfer is in that one, whatever `i` says: no choice of six bases is built then.

    The first burst of a transfer is on `o` two cycles after the transfer was accepted, the next one two cycles after
    each; the next transfer is accepted in the cycle after its last burst was. Local addresses run on without a gap.

    Members
    -------
    regions : In, base address and size of each memory region
    i : In(stream of transfer_layout);  o : Out(stream of piece_layout)
    range_fault : Out(1), high for good when a run would leave its region; fault_address : Out(40)
    field_fault : Out(1), high for good on an empty transfer or an unknown region
    """

    CYCLES_PER_BURST = 2

    def __init__(self, max_burst: int, tag_bits: int, region: int | None = None):
        self._max_burst = max_burst
        self._tag_bits = tag_bits
        self._region = region
        super().__init__({
            "regions": In(REGION_LAYOUT),
            "i": In(stream.Signature(transfer_layout(tag_bits))),
            "o": Out(stream.Signature(piece_layout(tag_bits))),
            "range_fault": Out(1), "field_fault": Out(1), "fault_address": Out(AXI_ADDRESS_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        new = self.i.payload
        piece = self.o.payload
        region = new.region if self._region is None else Const(self._region, 3)
        base = Signal(AXI_ADDRESS_BITS)
        limit = Signal(OFFSET_BITS + 1)
        segment = Signal(OFFSET_BITS)
        offset = Signal(OFFSET_BITS)
        run_beats = Signal(16)
        left = Signal(16)
        segments = Signal(16)
        stride = Signal(OFFSET_BITS)
        first = Signal()
        to_page_end = Signal(9)
        address = Signal(AXI_ADDRESS_BITS)
        m.d.comb += [
            address.eq(base + Cat(Const(0, 4), offset)),
            to_page_end.eq(BEATS_PER_4K - address[4:12]),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += [
                        base.eq(self.regions[region].base), limit.eq(self.regions[region].beats),
                        segment.eq(new.offset), offset.eq(new.offset), run_beats.eq(new.beats), left.eq(new.beats),
                        segments.eq(new.segments), stride.eq(new.stride), piece.local.eq(new.address),
                        piece.tag.eq(new.tag), first.eq(1),
                    ]
                    m.next = "CUT"
                    with m.If((new.beats == 0) | (new.segments == 0) | (region >= len(REGIONS))):
                        m.d.sync += self.field_fault.eq(1)
                        m.next = "FAULT"
            with m.State("CUT"):
                shortest = Signal(16)
                m.d.comb += shortest.eq(Mux(left < self._max_burst, left, self._max_burst))
                m.d.sync += [
                    piece.address.eq(address),
                    piece.length.eq(Mux(shortest < to_page_end, shortest, to_page_end)),
                    first.eq(0),
                ]
                m.next = "ISSUE"
                with m.If(first & (segment + run_beats > limit)):
                    m.d.sync += [self.range_fault.eq(1), self.fault_address.eq(address)]
                    m.next = "FAULT"
            with m.State("ISSUE"):
                m.d.comb += [
                    self.o.valid.eq(1),
                    piece.last.eq((left == piece.length) & (segments == 1)),
                ]
                with m.If(self.o.ready):
                    m.d.sync += [
                        left.eq(left - piece.length), offset.eq(offset + piece.length),
                        piece.local.eq(piece.local + piece.length),
                    ]
                    m.next = "CUT"
                    with m.If(left == piece.length):
                        m.d.sync += [
                            left.eq(run_beats), segments.eq(segments - 1), first.eq(1),
                            segment.eq(segment + stride), offset.eq(segment + stride),
                        ]
                    with m.If(piece.last):
                        m.next = "IDLE"
            with m.State("FAULT"):
                pass
        return m
