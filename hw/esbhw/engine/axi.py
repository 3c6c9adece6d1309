"""AXI4 master ports that finish what they began, also when the engine behind them has stopped.

A port is not reset when a run ends in an error: AXI has no way to take a burst back. It refuses new bursts while
`run` is low, completes those that the bus has seen, and says with `quiescent` when nothing is left.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_

from amaranth import Array, Cat, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS
from esbflow.engine_facts import OUTSTANDING_READS, OUTSTANDING_WRITES
from esbhw.engine.fifo import LENGTH_BITS, BurstQueue, Fifo
from esbhw.fabric.idioms import count_both_ways, own_lut


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


def burst_layout(tag_bits: int, place_bits: int = 0):
    """Fields of a burst's order: byte address, length in beats, and a tag that comes back with the data.

    Of a port with a map memory also whether the burst is one of that, and its first beat's place there.
    """
    return StructLayout({"address": AXI_ADDRESS_BITS, "length": LENGTH_BITS, "tag": tag_bits,
                         **({"on_chip": 1, "place": place_bits} if place_bits else {})})


def write_tag_bits(sources: int) -> int:
    """Of a burst to write: its tag, and with several sources whether its source is not 0, and which it is.

    >>> [write_tag_bits(sources) for sources in (1, 2, 4)]
    [1, 3, 4]
    """
    return 2 + (sources - 1).bit_length() if sources > 1 else 1


def map_order_layout(place_bits: int):
    """What a ReadPort asks of a MapMemory: so many beats from a place on."""
    return StructLayout({"length": LENGTH_BITS, "place": place_bits})


def name_address(m: Module, ports: list, owing: list, faulty: list, address: Signal) -> None:
    """The address of the only port. Of several, two cycles later, that of the first with a fault, else of the first that is
    owed an answer."""
    if len(ports) == 1:
        m.d.comb += address.eq(ports[0].address)
        return
    # Registers choose: the FaultEncoder takes addresses three cycles after a fault.
    chosen = Signal(len(ports), name="chosen")
    signs = [Mux(Cat(*faulty).any(), fault, owes) for fault, owes in zip(faulty, owing)]
    gated = (port.address & chosen[k].replicate(AXI_ADDRESS_BITS) for k, port in enumerate(ports))
    m.d.sync += [chosen.eq(Cat(sign & ~Cat(*signs[:k]).any() for k, sign in enumerate(signs))),
                 address.eq(reduce(or_, gated))]


def _kept_layout(tag_bits: int, has_maps: bool):
    """What a port keeps of a burst until it is over."""
    return StructLayout({"address": AXI_ADDRESS_BITS, "tag": tag_bits, **({"on_chip": 1} if has_maps else {})})


def _due(m, lengths, layout, name: str, source: int | None = None) -> tuple:
    """Registers: a beat of a burst of memory is due, one of a burst on chip; of one source only."""
    following, found = Signal(layout, name=f"{name}_next"), []
    m.d.comb += following.eq(lengths.next)
    own = 1 if source is None else following.source == source
    for kind, wanted in (("", ~following.on_chip), ("_on_chip", following.on_chip)):
        due = Signal(name=name + kind)
        m.d.sync += due.eq(Mux(lengths.advance, own & wanted, due & ~lengths.ending))
        found.append(due)
    return tuple(found)


class ReadPort(wiring.Component):
    """Issues read bursts and hands the beats on, with the tag of their burst.

    A burst accepted on `bursts` is on the bus one cycle later, and the next one is accepted once the bus has taken it; a
    beat from the bus is on `beat` one cycle later. Up to OUTSTANDING_READS bursts are in flight. There is no back-pressure
    on beats: the reader has room for what it asked for.

    Members
    -------
    axi : Out(read_signature())
    run : In(1), low refuses new bursts and hides beats
    bursts : In(stream of burst_layout(tag_bits, place_bits))
    beat_valid : Out(1), a beat comes;  beat_data : Out(128);  beat_tag : Out(tag_bits)
    beat_first, beat_last : Out(1), it is the first, the last of its burst
    fault : Out(1), an error response;  protocol : Out(1): RLAST at the wrong beat; both until `run` falls
    hold : In(1), keeps `address`
    address : Out(40), of the burst that was awaited a cycle ago; after a fault, of that burst
    quiescent : Out(1)
    With `place_bits` some bursts are of a MapMemory, in order with the others, and never on the bus:
    map_order : Out(map_order_layout(place_bits));  map_order_valid : Out(1), a cycle after the burst was accepted
    map_valid : In(1), the next beat of the map memory is here;  map_data : In(128);  map_taken : Out(1)
    """

    LATENCY = 2  # bursts -> bus, and bus -> beat: one cycle each

    def __init__(self, tag_bits: int, place_bits: int = 0):
        self._tag_bits, self._place_bits = tag_bits, place_bits
        super().__init__({
            "axi": Out(read_signature()),
            "run": In(1),
            "bursts": In(stream.Signature(burst_layout(tag_bits, place_bits))),
            "beat_valid": Out(1), "beat_data": Out(AXI_BEAT_BITS), "beat_tag": Out(tag_bits),
            "beat_first": Out(1), "beat_last": Out(1),
            "fault": Out(1), "protocol": Out(1), "hold": In(1), "address": Out(AXI_ADDRESS_BITS),
            "quiescent": Out(1),
            **({"map_order": Out(map_order_layout(place_bits)), "map_order_valid": Out(1), "map_valid": In(1),
                "map_data": In(AXI_BEAT_BITS), "map_taken": Out(1)} if place_bits else {}),
        })

    def elaborate(self, platform):
        m = Module()
        has_maps = self._place_bits > 0
        kept = _kept_layout(self._tag_bits, has_maps)
        m.submodules.pending = pending = BurstQueue(kept.size, OUTSTANDING_READS)
        burst = self.bursts.payload
        axi = self.axi
        accept = self.bursts.valid & self.bursts.ready
        busy, to_bus = axi.arvalid, accept
        if has_maps:  # a burst of the map memory takes the port for as long as one that the bus takes at once
            busy, to_bus = Signal(), accept & ~burst.on_chip
            m.d.sync += busy.eq(accept | (axi.arvalid & ~axi.arready))
        current = Signal(kept)
        m.d.comb += [
            axi.arsize.eq(SIZE_16_BYTES), axi.arburst.eq(INCR), axi.arprot.eq(0),
            axi.arcache.eq(NORMAL_NON_CACHEABLE_BUFFERABLE), axi.rready.eq(~current.on_chip if has_maps else 1),
            self.bursts.ready.eq(self.run & pending.i.ready & ~busy),
            pending.i.valid.eq(self.bursts.valid & self.run & ~busy), pending.i.payload.length.eq(burst.length),
            pending.i.payload.payload.eq(Cat(burst.address, burst.tag, *([burst.on_chip] if has_maps else []))),
        ]
        m.d.sync += axi.arvalid.eq(to_bus | (axi.arvalid & ~axi.arready))
        with m.If(~axi.arvalid):
            m.d.sync += [axi.araddr.eq(burst.address), axi.arlen.eq(burst.length - 1)]

        beat, data, fault, last = axi.rvalid, axi.rdata, axi.rresp[1], axi.rlast
        if has_maps:
            beat, data = Mux(current.on_chip, self.map_valid, axi.rvalid), Mux(current.on_chip, self.map_data, axi.rdata)
            fault, last = fault & ~current.on_chip, Mux(current.on_chip, pending.last, axi.rlast)
            m.d.comb += self.map_taken.eq(current.on_chip & pending.valid)
            m.d.sync += [self.map_order_valid.eq(accept & burst.on_chip), self.map_order.length.eq(burst.length),
                         self.map_order.place.eq(burst.place)]
        here = beat & pending.valid
        m.d.comb += [current.eq(pending.payload), pending.beat.eq(beat), pending.able.eq(1),
                     pending.ending.eq(beat & pending.last)]
        m.d.sync += [
            self.beat_valid.eq(here & self.run), self.beat_data.eq(data), self.beat_tag.eq(current.tag),
            self.beat_first.eq(pending.first), self.beat_last.eq(pending.last),
            self.fault.eq(self.run & (self.fault | (here & fault))),
            self.protocol.eq(self.run & (self.protocol | (here & (last != pending.last)))),
        ]
        with m.If(~self.fault & ~self.protocol & ~self.hold):
            m.d.sync += self.address.eq(current.address)
        m.d.comb += self.quiescent.eq(~busy & ~pending.behind & ~pending.valid)
        return m


@dataclass(frozen=True, eq=False)
class _Offer:
    """The burst on offer to a WritePort.

    unclaimed : beats in the FIFO that no burst has been promised;  here : its beats are among them
    later, source : one of source 0 had its like before;  whose beats it takes
    busy : the burst before still has the address channel;  able : it may be claimed as far as beats and bus go
    claim : it is, since there is a place for what its response is for
    """

    unclaimed: Signal
    here: Signal
    later: Value
    source: Value
    busy: Signal
    able: Value
    claim: Value


@dataclass(frozen=True, eq=False)
class _Beat:
    """The beat that is due.

    to_memory, to_map : it is one of a burst of memory, of one on chip;  leaves : it goes in this cycle if it is due
    ends : and with it its burst;  source : whose it is
    """

    to_memory: Value
    to_map: Value | None
    leaves: Value
    ends: Value
    source: Value


class WritePort(wiring.Component):
    """Collects beats, and writes a burst once all its beats are here.

    So a burst that is on the bus never waits for the engine. A burst is accepted on `bursts` when its beats have been in the
    FIFO, not promised to an earlier one, for a cycle. Its address is on the bus one cycle later and its data from two cycles
    later on; data of bursts follows without a gap. Full beats only.

    With several sources each has a FIFO of its own. Beats come to all of them at once, and so do bursts: one of source 0,
    then its like of 1, 2, ... So whatever source 0 has beats for, the others have too.

    Members
    -------
    axi : Out(write_signature())
    run : In(1); when low and the bus is quiet, beats that no burst has claimed are thrown away
    beats : In(stream of 128 * sources bits);  room : Out(1), more than a quarter of the FIFO was free a cycle ago
    bursts : In(stream of burst_layout(write_tag_bits(sources), place_bits)), ready when the beats are there
    done_valid : Out(1), for one cycle when a burst's response has come;  done_tag : Out(1), the tag's lowest bit
    fault : Out(1), an error response, until `run` falls
    hold : In(1), keeps `address`
    address : Out(40), of the burst whose response was awaited a cycle ago; after a fault, of that burst
    idle : Out(1), nothing on the bus and no response awaited;  quiescent : Out(1), and no beat left over after a run
    beat_taken : Out(1), a beat went out
    With `place_bits` some bursts are of a MapMemory, in order with the others, and never on the bus:
    map_write : Out(1), a beat, a cycle after it left the FIFO;  map_place : Out(place_bits);  map_data : Out(128)
    """

    def __init__(self, depth: int, sources: int = 1, place_bits: int = 0):
        self._depth, self._sources, self._place_bits, self._has_maps = depth, sources, place_bits, place_bits > 0
        self._source_bits = (sources - 1).bit_length()
        super().__init__({
            "axi": Out(write_signature()),
            "run": In(1),
            "beats": In(stream.Signature(AXI_BEAT_BITS * sources)),
            "room": Out(1, init=1),
            "bursts": In(stream.Signature(burst_layout(write_tag_bits(sources), place_bits))),
            "done_valid": Out(1), "done_tag": Out(1),
            "fault": Out(1), "hold": In(1), "address": Out(AXI_ADDRESS_BITS),
            "idle": Out(1), "quiescent": Out(1), "beat_taken": Out(1),
            **({"map_write": Out(1), "map_place": Out(place_bits), "map_data": Out(AXI_BEAT_BITS)} if place_bits else {}),
        })

    def elaborate(self, platform):
        m = Module()
        kept = _kept_layout(1, self._has_maps)
        # What an aborted run left in the FIFO belongs to no burst: it is thrown away once the bus is quiet.
        discard = Signal()
        fifos = [Fifo(AXI_BEAT_BITS, self._depth, block=True) for _ in range(self._sources)]
        for k, fifo in enumerate(fifos):
            m.submodules[f"data_{k}" if k else "data"] = ResetInserter(discard)(fifo)
        bits = self._source_bits
        leaving = StructLayout({"source": bits, "on_chip": 1, "place": self._place_bits})
        m.submodules.lengths = lengths = BurstQueue(leaving.size if self._has_maps else bits, OUTSTANDING_WRITES)
        m.submodules.responses = responses = Fifo(kept.size, OUTSTANDING_WRITES)
        burst = self._offer(responses)
        idle, left = self._rest(m, fifos, responses, burst)
        answered = Signal(kept)
        beat = self._beat(m, lengths, leaving, burst)
        m.d.comb += self.idle.eq(idle)
        self._accept(m, fifos, lengths, responses, burst, answered)
        m.d.comb += self.quiescent.eq(idle & (self.run | ~left))
        self._collect(m, fifos, burst)
        m.d.sync += discard.eq(~self.run & idle)
        with m.If(discard):
            m.d.sync += burst.unclaimed.eq(0)
        self._address(m, burst)
        self._send(m, fifos, lengths, leaving, beat)
        self._answer(m, lengths, responses, answered, beat)
        return m

    def _offer(self, responses) -> _Offer:
        """The burst on offer, and whether it is claimed."""
        axi, offer = self.axi, self.bursts.payload
        unclaimed = Signal(range(self._depth + 1))
        here = Signal()
        # Source 0 had its burst already, so the beats of this one are here, too.
        later, source = (offer.tag[1], offer.tag[2:]) if self._source_bits else (Const(0, 1), Const(0, 0))
        # A burst of the map memory takes the port for as long as one that the bus takes at once.
        busy = Signal() if self._has_maps else axi.awvalid
        able = self.run & (here | (self.bursts.valid & later) if self._source_bits else here) & ~busy
        return _Offer(unclaimed, here, later, source, busy, able, able & responses.i.ready)

    def _rest(self, m, fifos, responses, burst: _Offer) -> tuple:
        """(nothing is on the bus and no response awaited, there are beats in the FIFOs or, with several, may be)"""
        left = Cat(fifo.behind | fifo.o.valid for fifo in fifos).any()
        if self._source_bits:  # known a cycle later
            still_left = Signal()
            m.d.sync += still_left.eq(self.run | left)
            left = still_left
        return ~burst.busy & ~responses.behind & ~responses.o.valid, left

    def _beat(self, m, lengths, leaving, burst: _Offer) -> _Beat:
        """The beat that is due; with map memories registers say where it goes."""
        axi = self.axi
        if not self._has_maps:
            return _Beat(lengths.valid, None, axi.wready, axi.wready & lengths.last, lengths.payload)
        to_memory, to_map = _due(m, lengths, leaving, "due")
        m.d.sync += burst.busy.eq(burst.claim | (axi.awvalid & ~axi.awready))
        ending = own_lut(m, "ending", lambda on_chip, due, ready, last: (on_chip | (due & ready)) & last,
                         on_chip=to_map, due=to_memory, ready=axi.wready, last=lengths.last)
        return _Beat(to_memory, to_map, to_map | (to_memory & axi.wready), ending, lengths.payload[:self._source_bits])

    def _accept(self, m, fifos, lengths, responses, burst: _Offer, answered) -> None:
        """Takes beats while there is room; notes a claimed burst's length, and what its response will be for."""
        axi, offer = self.axi, self.bursts.payload
        m.d.comb += [
            axi.awsize.eq(SIZE_16_BYTES), axi.awburst.eq(INCR), axi.awprot.eq(0),
            axi.awcache.eq(NORMAL_NON_CACHEABLE_BUFFERABLE), axi.wstrb.eq(-1),
            axi.bready.eq(~answered.on_chip if self._has_maps else 1),
            # All FIFOs have a place where one has: who sends heeds `room`.
            self.beats.ready.eq(self.run & fifos[0].i.ready),
            # There is always a place in `lengths`: it is free before the burst's answer comes.
            self.bursts.ready.eq(burst.claim), lengths.i.valid.eq(burst.claim), lengths.i.payload.length.eq(offer.length),
            lengths.i.payload.payload.eq(Cat(burst.source, offer.on_chip, offer.place) if self._has_maps else burst.source),
            responses.i.valid.eq(burst.able),
            responses.i.payload.eq(Cat(offer.address, offer.tag[0], *([offer.on_chip] if self._has_maps else []))),
        ]

    def _collect(self, m, fifos, burst: _Offer) -> None:
        """Beats to the FIFOs, and how many of them no burst has been promised."""
        coming, push = self.beats.valid & self.run, self.beats.valid & self.beats.ready
        for k, fifo in enumerate(fifos):
            m.d.comb += [fifo.i.valid.eq(coming), fifo.i.payload.eq(self.beats.payload.word_select(k, AXI_BEAT_BITS))]
        length, first = self.bursts.payload.length, burst.claim & ~burst.later
        m.d.sync += [
            self.room.eq(fifos[-1].level < self._depth * 3 // 4),  # the last source waits longest
            burst.here.eq(self.bursts.valid & ~burst.claim & ~burst.later & (burst.unclaimed >= length)),
            burst.unclaimed.eq(burst.unclaimed + push - Mux(first, length, 0)),
        ]

    def _address(self, m, burst: _Offer) -> None:
        """A burst that is claimed to the bus, unless it is one on chip."""
        axi, offer = self.axi, self.bursts.payload
        to_bus = burst.claim & ~offer.on_chip if self._has_maps else burst.claim
        m.d.sync += axi.awvalid.eq(to_bus | (axi.awvalid & ~axi.awready))
        with m.If(~axi.awvalid):
            m.d.sync += [axi.awaddr.eq(offer.address), axi.awlen.eq(offer.length - 1)]

    def _send(self, m, fifos, lengths, leaving, beat: _Beat) -> None:
        """Beats of claimed bursts out of their FIFOs; all of them were on offer before their burst was claimed."""
        axi, bits = self.axi, self._source_bits
        m.d.comb += [
            axi.wvalid.eq(beat.to_memory), axi.wlast.eq(lengths.last),
            axi.wdata.eq(Array(fifo.o.payload for fifo in fifos)[beat.source] if bits else fifos[0].o.payload),
            lengths.beat.eq(1), lengths.able.eq(beat.leaves), lengths.ending.eq(beat.ends),
            self.beat_taken.eq(beat.leaves if self._has_maps else lengths.valid & beat.leaves),
        ]
        for k, fifo in enumerate(fifos):
            # Registers say whose burst it is, as a FIFO has two levels of LUTs behind its `ready`.
            if self._has_maps:
                own, own_to_map = _due(m, lengths, leaving, f"due_{k}", k) if bits else (beat.to_memory, beat.to_map)
                m.d.comb += fifo.o.ready.eq(own_to_map | (own & axi.wready))
                continue
            due = Signal(name=f"due_{k}") if bits else lengths.valid
            m.d.comb += fifo.o.ready.eq(due & axi.wready)
            if bits:
                m.d.sync += due.eq(Mux(lengths.advance, lengths.next == k, due & ~lengths.ending))

    def _answer(self, m, lengths, responses, answered, beat: _Beat) -> None:
        """Responses of the bus; a burst on chip is answered once it is written and it is its turn."""
        arrives, wrong = self.axi.bvalid, self.axi.bresp[1]
        if self._has_maps:
            written = self._to_map(m, lengths, beat.to_map, answered.on_chip & responses.o.valid)
            arrives, wrong = Mux(answered.on_chip, written, arrives), wrong & ~answered.on_chip
        answer = arrives & responses.o.valid
        m.d.comb += [answered.eq(responses.o.payload), responses.o.ready.eq(arrives)]
        m.d.sync += [
            self.done_valid.eq(answer & self.run), self.done_tag.eq(answered.tag),
            self.fault.eq(self.run & (self.fault | (answer & wrong))),
        ]
        with m.If(~self.fault & ~self.hold):
            m.d.sync += self.address.eq(answered.address)

    def _to_map(self, m, lengths, here, awaited):
        """Beats of bursts on chip go to the map memory; whether such a burst has been written that is not yet answered."""
        following = Signal(self._place_bits)
        written = Signal(range(OUTSTANDING_WRITES + 1))  # bursts
        some = Signal()  # of them
        place = Mux(lengths.first, lengths.payload[-self._place_bits:], following)
        m.d.sync += [self.map_write.eq(here), self.map_place.eq(place), self.map_data.eq(self.axi.wdata)]
        with m.If(here):
            m.d.sync += following.eq(place + 1)
        more, fewer = here & lengths.last, some & awaited
        count_both_ways(m, written, more, fewer)
        m.d.sync += some.eq(more | (some & ~(fewer & (written == 1))))
        return some
