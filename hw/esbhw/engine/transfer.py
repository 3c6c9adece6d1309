"""Cuts a transfer into AXI bursts: none crosses 4 KB, none is longer than `max_burst`, none leaves its region."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.data import ArrayLayout, StructLayout
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_ADDRESS_BITS
from esbflow.registers import MAPS_REGION, REGIONS
from esbhw.engine.axi import LENGTH_BITS

OFFSET_BITS = 28
"""Offsets, sizes and strides count 16-byte beats: 4 GB."""
PAGE_BITS = 12

REGION_LAYOUT = ArrayLayout(StructLayout({"base": AXI_ADDRESS_BITS, "beats": OFFSET_BITS + 1}), len(REGIONS))


def transfer_layout(tag_bits: int):
    """Fields of a transfer: `segments` of `beats` beats, `stride` beats apart in memory, from `offset` of a region to
    `address` of a buffer, with a tag."""
    return StructLayout({
        "region": 3, "offset": OFFSET_BITS, "beats": 16, "segments": 16, "stride": OFFSET_BITS,
        "address": 16, "tag": tag_bits,
    })


def piece_layout(tag_bits: int, max_burst: int = 1):
    """One burst: `address` on the bus, `local` beat address in the buffer, `last` of its transfer.

    What several ports share is longer than a burst of one of them, up to `max_burst` beats.
    """
    return StructLayout({
        "address": AXI_ADDRESS_BITS, "length": max(LENGTH_BITS, max_burst.bit_length()), "local": 16, "last": 1,
        "tag": tag_bits,
    })


class BurstSplitter(wiring.Component):
    """Cuts `segments` runs of `beats` beats, `stride` beats apart, into bursts.

    With `region` every transfer is in that one, whatever `i` says: no choice of six bases is built then.
    With `parts` a burst is for as many takers, who all take it in its first cycle: it waits for `allow` before.
    With `map_beats` there is one more region, on chip, of so many beats; addresses of its bursts begin with 0.

    The first burst of a transfer is on `o` SPLIT_CYCLES after the transfer was accepted, the next one as long after each;
    the next transfer is accepted in the cycle after its last burst was. Local addresses run on without a gap.

    Members
    -------
    regions : In, base address (a multiple of 4 KB) and size of each memory region
    i : In(stream of transfer_layout);  o : Out(stream of piece_layout)
    range_fault : Out(1), high for good when a run would leave its region; fault_address : Out(40)
    field_fault : Out(1), high for good on an empty transfer, an unknown region, or what `parts` takers cannot share equally
    allow : In(1), with parts > 1: all takers can take a burst, until they have one. `o.ready` is not looked at then
    """

    def __init__(self, max_burst: int, tag_bits: int, region: int | None = None, parts: int = 1, map_beats: int = 0):
        self._max_burst = max_burst
        self._tag_bits = tag_bits
        self._region = region
        self._parts = parts
        self._map_beats, self._regions = map_beats, len(REGIONS) + (map_beats > 0)
        super().__init__({
            "regions": In(REGION_LAYOUT),
            "i": In(stream.Signature(transfer_layout(tag_bits))),
            "o": Out(stream.Signature(piece_layout(tag_bits, max_burst))),
            "range_fault": Out(1), "field_fault": Out(1), "fault_address": Out(AXI_ADDRESS_BITS),
            **({"allow": In(1)} if parts > 1 else {}),
        })

    def elaborate(self, platform):
        m = Module()
        new, piece = self.i.payload, self.o.payload
        burst_bits = self._max_burst.bit_length() - 1
        base = Signal(AXI_ADDRESS_BITS - PAGE_BITS)  # in pages of 4 KB
        limit = Signal(OFFSET_BITS + 1)
        segment = Signal(OFFSET_BITS)
        following = Signal(OFFSET_BITS)
        offset = Signal(OFFSET_BITS)
        run_beats = Signal(16)
        left = Signal(16)
        segments = Signal(16)
        stride = Signal(OFFSET_BITS)
        first = Signal()
        wrong = Signal(3 if self._parts == 1 else 4)
        # One of these is high, or `o.valid`, or a fault.
        idle = Signal(init=1)
        measure = Signal()
        decide = Signal()
        held = Signal()  # a burst waits for `allow`

        # -- a transfer comes
        m.d.comb += self.i.ready.eq(idle)
        with m.If(idle):
            self._choose_region(m, base, limit)
            m.d.sync += [
                segment.eq(new.offset), offset.eq(new.offset), run_beats.eq(new.beats), left.eq(new.beats),
                segments.eq(new.segments), stride.eq(new.stride), piece.local.eq(new.address), piece.tag.eq(new.tag),
                first.eq(1), wrong.eq(Cat(new.beats == 0, new.segments == 0,
                                          new.region >= self._regions if self._region is None else 0)),
            ]
            if self._parts > 1:
                part_bits = (self._parts - 1).bit_length()
                m.d.sync += wrong[-1].eq((new.beats | new.offset | new.address | new.stride)[:part_bits].any())

        # -- what the next burst depends on
        ends_within = Signal()  # the rest of the run is no longer than a burst may be
        rest = Signal(burst_bits + 1)
        room = Signal(burst_bits + 1)
        run_end = Signal(OFFSET_BITS + 1)
        only = Signal()  # segment that is left
        short = ~left[burst_bits + 1:].any() & ~(left[burst_bits] & left[:burst_bits].any())
        # Of a page no more is left than a burst may have.
        near = offset[burst_bits:PAGE_BITS - 4].all()
        with m.If(measure):
            m.d.sync += [
                ends_within.eq(short), rest.eq(Mux(short, left[:burst_bits + 1], self._max_burst)),
                room.eq(self._max_burst - Mux(near, offset[:burst_bits], 0)),
                piece.address.eq(Cat(Const(0, 4), offset[:PAGE_BITS - 4], base + offset[PAGE_BITS - 4:])),
                run_end.eq(segment + run_beats), following.eq(segment + stride), only.eq(segments == 1),
            ]

        # -- the burst
        ends = ends_within & (rest <= room)  # the run ends with this burst
        run_ends = Signal()
        beyond = first & (run_end > limit)
        with m.If(decide):
            m.d.sync += [
                piece.length.eq(Mux(rest <= room, rest, room)), piece.last.eq(ends & only), run_ends.eq(ends),
                self.field_fault.eq(wrong.any()), self.range_fault.eq(~wrong.any() & beyond), first.eq(0),
            ]
        m.d.comb += self.fault_address.eq(piece.address)
        offered = decide & ~wrong.any() & ~beyond
        if self._parts == 1:
            taken = self.o.valid & self.o.ready
            m.d.sync += self.o.valid.eq(offered | (self.o.valid & ~self.o.ready))
        else:
            taken = self.o.valid
            m.d.sync += [self.o.valid.eq((offered | held) & self.allow), held.eq((offered | held) & ~self.allow)]
        m.d.sync += [
            idle.eq((idle & ~self.i.valid) | (taken & piece.last)),
            measure.eq((idle & self.i.valid) | (taken & ~piece.last)), decide.eq(measure),
        ]

        # -- on to the next
        with m.If(taken):
            m.d.sync += [
                left.eq(left - piece.length), offset.eq(offset + piece.length), piece.local.eq(piece.local + piece.length),
            ]
            with m.If(run_ends):
                m.d.sync += [
                    left.eq(run_beats), offset.eq(following), segment.eq(following), segments.eq(segments - 1), first.eq(1),
                ]
        return m

    def _choose_region(self, m, base, limit) -> None:
        """Takes over base and size of the transfer's region."""
        def take(region):
            m.d.sync += [base.eq(self.regions[region].base[PAGE_BITS:]), limit.eq(self.regions[region].beats)]

        if self._region is not None:
            return take(self._region)
        with m.Switch(self.i.payload.region):
            for region in range(len(REGIONS)):
                with m.Case(region):
                    take(region)
            if self._map_beats:
                with m.Case(MAPS_REGION):
                    m.d.sync += [base.eq(0), limit.eq(self._map_beats)]
