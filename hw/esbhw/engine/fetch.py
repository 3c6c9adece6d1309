"""Reads the program and hands each instruction to its unit's queue, in order."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import FETCH_BUFFERED, FETCH_BURST
from esbflow.registers import REGIONS
from esbhw.engine.axi import ReadPort
from esbhw.engine.fifo import Fifo
from esbhw.engine.transfer import REGION_LAYOUT, BurstSplitter

UNITS = {"load": ("LOAD", "UNFOLD"), "weights": ("WEIGHTS",), "compute": ("PASS", "CHANNEL"),
         "store": ("DRAIN", "STAMP", "END")}
RUN_BITS = 14
"""The program is asked for in runs of at most 2**14 instructions, because a transfer's run counts 16 bits of beats."""


def opcodes(config: EngineConfig) -> dict[str, int]:
    """Names and codes of the instructions that this engine has units for."""
    has = {"CHANNEL": config.channel_unit, "UNFOLD": config.image_beats}
    return {name: code for name, code in instructions.OPCODES.items() if has.get(name, True)}


class Fetch(wiring.Component):
    """Fetches `length` instructions from the start of the program region and dispatches one a cycle at most.

    An instruction can be dispatched FIFO_LATENCY cycles after its second beat was taken from the read port, and waits for
    room in its unit's queue; later ones wait behind it.

    Members
    -------
    start : In(1), for one cycle;  length : In(32), instructions;  regions : In(REGION_LAYOUT)
    load, weights, compute, store : Out(stream of 256 bits)
    opcode_fault, end_fault, range_fault : Out(1), for good
    layer : Out(12), of the instruction concerned, a cycle late
    fault_address : Out(40), of range_fault;  beat : Out(1), as ReadPort's;  dispatched : Out(1)
    """

    def __init__(self, config: EngineConfig):
        self._max_burst = min(FETCH_BURST, config.max_burst)
        self._opcodes = opcodes(config)
        self.port = ReadPort(tag_bits=1)  # it outlives a run; the rest of this block is reset with it: see units.py
        super().__init__({
            "start": In(1), "length": In(32), "regions": In(REGION_LAYOUT),
            **{unit: Out(stream.Signature(instructions.INSTRUCTION_BITS)) for unit in UNITS},
            "opcode_fault": Out(1), "end_fault": Out(1), "range_fault": Out(1), "layer": Out(12),
            "fault_address": Out(AXI_ADDRESS_BITS), "beat": Out(1), "dispatched": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.splitter = splitter = BurstSplitter(
            self._max_burst, tag_bits=1, region=REGIONS.index("program"))
        # Beside each instruction stands whose it is, and whether it is the last one.
        kept = StructLayout({"word": instructions.INSTRUCTION_BITS, "known": 1, "last": 1, "unit": range(len(UNITS))})
        m.submodules.fifo = fifo = Fifo(kept.size, FETCH_BUFFERED)
        m.d.comb += [
            splitter.regions.eq(self.regions),
            self.range_fault.eq(splitter.range_fault), self.fault_address.eq(splitter.fault_address),
        ]
        self._request(m, splitter)
        self._credit(m, splitter)
        self._assemble(m, fifo, kept)
        head = Signal(kept)
        stopped = Signal()
        self._dispatch(m, fifo, head, stopped)
        self._end(m, head, stopped)
        return m

    def _assemble(self, m, fifo, kept: StructLayout) -> None:
        """Two beats make an instruction; whose it is is known as it enters the FIFO."""
        port = self.port
        low = Signal(AXI_BEAT_BITS)
        odd = Signal()
        new, opcode = Signal(kept), low[:4]
        of_unit = [opcode.matches(*(self._opcodes[name] for name in names if name in self._opcodes))
                   for names in UNITS.values()]
        m.d.comb += [
            self.beat.eq(port.beat_valid), fifo.i.payload.eq(new), fifo.i.valid.eq(port.beat_valid & odd),
            new.word.eq(Cat(low, port.beat_data)), new.known.eq(Cat(of_unit).any()),
            new.last.eq(opcode == instructions.END),
            new.unit.eq(Cat(Cat(here for k, here in enumerate(of_unit) if k >> bit & 1).any()
                            for bit in range(len(new.unit)))),
        ]
        with m.If(port.beat_valid):
            m.d.sync += [odd.eq(~odd), low.eq(port.beat_data)]

    def _dispatch(self, m, fifo, head, stopped) -> None:
        """The oldest instruction to its unit. Behind an end or a fault the FIFO runs empty, and nothing is offered."""
        offered = fifo.o.valid & ~stopped
        m.d.comb += [
            head.eq(fifo.o.payload),
            fifo.o.ready.eq(Cat(getattr(self, unit).ready for unit in UNITS).bit_select(head.unit, 1)),
            self.dispatched.eq(offered & head.known & fifo.o.ready),
        ]
        for k, unit in enumerate(UNITS):
            queue = getattr(self, unit)
            m.d.comb += [queue.payload.eq(head.word), queue.valid.eq(offered & head.known & (head.unit == k))]
        with m.If(~stopped):
            m.d.sync += self.layer.eq(head.word[4:16])
        with m.If(offered & ~head.known):
            m.d.sync += [self.opcode_fault.eq(1), stopped.eq(1)]

    def _end(self, m, head, stopped) -> None:
        """The program's END, or its end without one: noticed two cycles after the last instruction was dispatched."""
        ended = Signal()
        with m.If(self.dispatched & head.last):
            m.d.sync += [ended.eq(1), stopped.eq(1)]
        to_dispatch = Signal(32)
        gone = Signal()
        begun = Signal()
        exhausted = Signal()
        m.d.sync += [
            gone.eq(self.dispatched), to_dispatch.eq(Mux(self.start, self.length, to_dispatch - gone)),
            begun.eq(begun | self.start), exhausted.eq(begun & (to_dispatch == 0)),
            self.end_fault.eq(self.end_fault | (exhausted & ~ended & ~self.opcode_fault)),
        ]

    def _request(self, m, splitter) -> None:
        """Runs of the program to the splitter, each two cycles after the one before was taken."""
        left = Signal(32)
        offset = Signal(28)
        look = Signal()
        ask = Signal()
        many = Signal()  # a run is left, or more
        some = Signal()  # anything is
        run = splitter.i.payload
        taken = splitter.i.valid & splitter.i.ready
        m.d.comb += [
            run.offset.eq(offset), run.beats.eq(Cat(Const(0, 1), Mux(many, 1 << RUN_BITS, left[:RUN_BITS]))),
            run.segments.eq(1),
            splitter.i.valid.eq(ask & some),
        ]
        m.d.sync += [look.eq(self.start | taken), ask.eq(look | (ask & ~taken)),
                     many.eq(left[RUN_BITS:].any()), some.eq(left.any())]
        with m.If(self.start):
            m.d.sync += [left.eq(self.length), offset.eq(0)]
        with m.Elif(taken):
            m.d.sync += [left.eq(Cat(left[:RUN_BITS] & many.replicate(RUN_BITS), left[RUN_BITS:] - many)),
                         offset[RUN_BITS + 1:].eq(offset[RUN_BITS + 1:] + 1)]

    def _credit(self, m, splitter) -> None:
        """Bursts to the port, each when there are places for all its instructions in the FIFO that nobody was promised."""
        port, piece = self.port, splitter.o.payload
        places, wanted = Signal(range(FETCH_BUFFERED + 1), init=FETCH_BUFFERED), piece.length[1:]
        # A port that is ready stays so until it gets a burst, and places only become more.
        issue = Signal()
        popped = Signal()
        issued = Signal()
        m.d.comb += [
            port.bursts.valid.eq(issue), splitter.o.ready.eq(issue),
            port.bursts.payload.address.eq(piece.address), port.bursts.payload.length.eq(piece.length),
        ]
        m.d.sync += [
            issue.eq(splitter.o.valid & ~issue & port.bursts.ready & (places >= wanted)),
            popped.eq(self.dispatched), issued.eq(issue),
            places.eq(places + popped - Mux(issued, wanted, 0)),
        ]
