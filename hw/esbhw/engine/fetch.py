"""Reads the program and hands each instruction to its unit's queue, in order."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS, EngineConfig
from esbflow.registers import REGIONS
from esbhw.engine.axi import ReadPort
from esbhw.engine.transfer import REGION_LAYOUT, BurstSplitter

BUFFERED = 32
"""Instructions that the fetch keeps ready; it never asks for one that it has no place for."""
FETCH_BURST = 16
UNITS = {"load": ("LOAD",), "weights": ("WEIGHTS",), "compute": ("PASS", "CHANNEL"), "store": ("DRAIN", "STAMP", "END")}


class Fetch(wiring.Component):
    """Fetches `length` instructions from the start of the program region and dispatches one a cycle at most.

    An instruction can be dispatched in the cycle after its second beat was taken from the read port, and waits for
    room in its unit's queue; later ones wait behind it.

    Members
    -------
    start : In(1), for one cycle;  length : In(32), instructions;  regions : In
    load, weights, compute, store : Out(stream of 256 bits)
    opcode_fault, end_fault, range_fault : Out(1), for good; layer : Out(12), of the instruction concerned
    axi_fault, axi_protocol, fault_address, quiescent, beat : as ReadPort
    """

    def __init__(self, config: EngineConfig):
        self._max_burst = min(FETCH_BURST, config.max_burst)
        self._missing = () if config.channel_unit else ("CHANNEL",)
        self.port = ReadPort(tag_bits=1)
        super().__init__({
            "start": In(1), "length": In(32), "regions": In(REGION_LAYOUT),
            **{unit: Out(stream.Signature(instructions.INSTRUCTION_BITS)) for unit in UNITS},
            "opcode_fault": Out(1), "end_fault": Out(1), "range_fault": Out(1), "layer": Out(12),
            "axi_fault": Out(1), "axi_protocol": Out(1), "fault_address": Out(AXI_ADDRESS_BITS),
            "quiescent": Out(1), "beat": Out(1), "dispatched": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        # The port outlives a run, the rest of this block is reset with it: see engine.py.
        port = self.port
        m.submodules.splitter = splitter = BurstSplitter(
            self._max_burst, tag_bits=1, region=REGIONS.index("program"))
        m.submodules.fifo = fifo = SyncFIFO(width=instructions.INSTRUCTION_BITS, depth=BUFFERED)
        m.d.comb += [
            splitter.regions.eq(self.regions),
            self.range_fault.eq(splitter.range_fault),
            self.fault_address.eq(Mux(splitter.range_fault, splitter.fault_address, port.fault_address)),
        ]

        # -- requests: runs of at most 2**14 instructions, because a segment counts 16 bits of beats
        LONGEST_RUN = 1 << 14
        left = Signal(32)
        offset = Signal(28)
        run = Signal(16)
        transfer = splitter.i.payload
        m.d.comb += [
            run.eq(Mux(left > LONGEST_RUN, LONGEST_RUN, left)),
            transfer.offset.eq(offset),
            transfer.beats.eq(run << 1), transfer.segments.eq(1),
            splitter.i.valid.eq(left != 0),
        ]
        to_dispatch = Signal(32)
        with m.If(self.start):
            m.d.sync += [left.eq(self.length), offset.eq(0), to_dispatch.eq(self.length)]
        with m.Elif(splitter.i.valid & splitter.i.ready):
            m.d.sync += [left.eq(left - run), offset.eq(offset + (run << 1))]

        # -- credit: places in the FIFO not yet promised
        reserved = Signal(range(BUFFERED + 1))
        wanted = Signal(range(BUFFERED + 1))
        piece = splitter.o.payload
        fits = reserved + wanted <= BUFFERED
        issue = splitter.o.valid & splitter.o.ready
        m.d.comb += [
            wanted.eq(piece.length >> 1),
            port.bursts.valid.eq(splitter.o.valid & fits), splitter.o.ready.eq(port.bursts.ready & fits),
            port.bursts.payload.address.eq(piece.address), port.bursts.payload.length.eq(piece.length),
        ]
        m.d.sync += reserved.eq(reserved + Mux(issue, wanted, 0) - fifo.r_en)

        # -- two beats make an instruction
        low = Signal(AXI_BEAT_BITS)
        odd = Signal()
        m.d.comb += [self.beat.eq(port.beat_valid), fifo.w_data.eq(Cat(low, port.beat_data))]
        with m.If(port.beat_valid):
            m.d.sync += [odd.eq(~odd), low.eq(port.beat_data)]
            m.d.comb += fifo.w_en.eq(odd)

        # -- dispatch
        word = fifo.r_data
        ended = Signal()
        m.d.comb += [
            self.layer.eq(word[4:16]), self.dispatched.eq(fifo.r_en),
            self.axi_fault.eq(port.fault), self.axi_protocol.eq(port.protocol), self.quiescent.eq(port.quiescent),
        ]
        # Every queue sees the word all the time: inside the Switch, each of its bits would be gated for each queue.
        m.d.comb += [getattr(self, unit).payload.eq(word) for unit in UNITS]
        with m.If(fifo.r_rdy & ~self.opcode_fault & ~ended):
            with m.Switch(word[:4]):
                for unit, names in UNITS.items():
                    with m.Case(*(instructions.OPCODES[name] for name in names if name not in self._missing)):
                        queue = getattr(self, unit)
                        m.d.comb += [queue.valid.eq(1), fifo.r_en.eq(queue.ready)]
                with m.Default():
                    m.d.sync += self.opcode_fault.eq(1)
            with m.If(fifo.r_en):
                m.d.sync += to_dispatch.eq(to_dispatch - 1)
                with m.If(word[:4] == instructions.END):
                    m.d.sync += ended.eq(1)
                with m.Elif(to_dispatch == 1):
                    m.d.sync += self.end_fault.eq(1)
        return m
