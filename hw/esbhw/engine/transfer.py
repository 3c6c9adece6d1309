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


class _Progress:
    """How far a transfer has come; all counts are of beats. One of `idle`, `measure`, `decide` is high, or `o.valid`, or a
    fault.

    base, limit : of the region, base in pages of 4 KB;  segment, run_beats : begin and length of the run at hand
    offset, left : begin of the next burst, and beats from there to the run's end;  stride : from run to run
    segments : runs left, this one too;  following : begin of the next;  only : this one is the last
    first : no burst of this run was offered yet;  run_end : where it ends;  run_ends : with the burst that is offered
    rest, room : the burst's length as far as the run, and the page, allow;  ends_within : the run allows no more than that
    wrong : what is wrong with the transfer;  held : a burst waits for `allow`
    """

    def __init__(self, length_bits: int, checks: int):
        self.base = Signal(AXI_ADDRESS_BITS - PAGE_BITS)
        self.limit = Signal(OFFSET_BITS + 1)
        self.segment = Signal(OFFSET_BITS)
        self.following = Signal(OFFSET_BITS)
        self.offset = Signal(OFFSET_BITS)
        self.run_beats = Signal(16)
        self.left = Signal(16)
        self.segments = Signal(16)
        self.stride = Signal(OFFSET_BITS)
        self.first = Signal()
        self.wrong = Signal(checks)
        self.idle = Signal(init=1)
        self.measure = Signal()
        self.decide = Signal()
        self.held = Signal()
        self.ends_within = Signal()
        self.rest = Signal(length_bits)
        self.room = Signal(length_bits)
        self.run_end = Signal(OFFSET_BITS + 1)
        self.only = Signal()
        self.run_ends = Signal()


class BurstSplitter(wiring.Component):
    """Cuts `segments` runs of `beats` beats, `stride` beats apart, into bursts.

    With `region` every transfer is in that one, whatever `i` says: no choice of six bases is built then.
    With `parts` a burst is for as many takers, who all take it in its first cycle: it waits for `allow` before.
    With `map_beats` there is one more region, on chip, of so many beats; addresses of its bursts begin with 0.

    The first burst of a transfer is on `o` SPLIT_CYCLES after the transfer was accepted, the next one as long after each;
    the next transfer is accepted in the cycle after its last burst was. Local addresses run on without a gap.

    Members
    -------
    regions : In(REGION_LAYOUT), base address (a multiple of 4 KB) and size of each memory region
    i : In(stream of transfer_layout(tag_bits));  o : Out(stream of piece_layout(tag_bits, max_burst))
    range_fault : Out(1), high for good when a run would leave its region;  fault_address : Out(40)
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
        at = _Progress(self._max_burst.bit_length(), 3 if self._parts == 1 else 4)
        self._begin(m, at)
        self._measure(m, at)
        taken = self._offer(m, at)
        self._go_on(m, at, taken)
        return m

    def _begin(self, m, at: _Progress) -> None:
        """Takes a transfer, and looks at what may be wrong with it."""
        new, piece = self.i.payload, self.o.payload
        m.d.comb += self.i.ready.eq(at.idle)
        with m.If(at.idle):
            self._choose_region(m, at.base, at.limit)
            m.d.sync += [
                at.segment.eq(new.offset), at.offset.eq(new.offset), at.run_beats.eq(new.beats), at.left.eq(new.beats),
                at.segments.eq(new.segments), at.stride.eq(new.stride), piece.local.eq(new.address), piece.tag.eq(new.tag),
                at.first.eq(1), at.wrong.eq(Cat(new.beats == 0, new.segments == 0,
                                                new.region >= self._regions if self._region is None else 0)),
            ]
            if self._parts > 1:
                part_bits = (self._parts - 1).bit_length()
                m.d.sync += at.wrong[-1].eq((new.beats | new.offset | new.address | new.stride)[:part_bits].any())

    def _measure(self, m, at: _Progress) -> None:
        """What the next burst depends on."""
        burst_bits, left, offset = self._max_burst.bit_length() - 1, at.left, at.offset
        short = ~left[burst_bits + 1:].any() & ~(left[burst_bits] & left[:burst_bits].any())
        # Of a page no more is left than a burst may have.
        near = offset[burst_bits:PAGE_BITS - 4].all()
        with m.If(at.measure):
            m.d.sync += [
                at.ends_within.eq(short), at.rest.eq(Mux(short, left[:burst_bits + 1], self._max_burst)),
                at.room.eq(self._max_burst - Mux(near, offset[:burst_bits], 0)),
                self.o.payload.address.eq(Cat(Const(0, 4), offset[:PAGE_BITS - 4], at.base + offset[PAGE_BITS - 4:])),
                at.run_end.eq(at.segment + at.run_beats), at.following.eq(at.segment + at.stride),
                at.only.eq(at.segments == 1),
            ]

    def _offer(self, m, at: _Progress):
        """The burst, if nothing is wrong; whether it is taken in this cycle."""
        piece, rest, room, wrong = self.o.payload, at.rest, at.room, at.wrong
        ends = at.ends_within & (rest <= room)  # the run ends with this burst
        beyond = at.first & (at.run_end > at.limit)
        with m.If(at.decide):
            m.d.sync += [
                piece.length.eq(Mux(rest <= room, rest, room)), piece.last.eq(ends & at.only), at.run_ends.eq(ends),
                self.field_fault.eq(wrong.any()), self.range_fault.eq(~wrong.any() & beyond), at.first.eq(0),
            ]
        m.d.comb += self.fault_address.eq(piece.address)
        offered = at.decide & ~wrong.any() & ~beyond
        if self._parts == 1:
            taken = self.o.valid & self.o.ready
            m.d.sync += self.o.valid.eq(offered | (self.o.valid & ~self.o.ready))
        else:
            taken = self.o.valid
            m.d.sync += [self.o.valid.eq((offered | at.held) & self.allow), at.held.eq((offered | at.held) & ~self.allow)]
        return taken

    def _go_on(self, m, at: _Progress, taken) -> None:
        """To the next burst, of this segment or the next; after the last to the next transfer."""
        piece, idle = self.o.payload, at.idle
        m.d.sync += [
            idle.eq((idle & ~self.i.valid) | (taken & piece.last)),
            at.measure.eq((idle & self.i.valid) | (taken & ~piece.last)), at.decide.eq(at.measure),
        ]
        with m.If(taken):
            m.d.sync += [
                at.left.eq(at.left - piece.length), at.offset.eq(at.offset + piece.length),
                piece.local.eq(piece.local + piece.length),
            ]
            with m.If(at.run_ends):
                m.d.sync += [
                    at.left.eq(at.run_beats), at.offset.eq(at.following), at.segment.eq(at.following),
                    at.segments.eq(at.segments - 1), at.first.eq(1),
                ]

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
