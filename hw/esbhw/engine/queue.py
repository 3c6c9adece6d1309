"""A queue of instructions before a unit; it stores only the bits that the unit's instructions use."""

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from esbflow import instructions


class InstructionQueue(wiring.Component):
    """An instruction taken in one cycle is offered in the next. Holds `depth`; `i` waits while it is full.

    Members
    -------
    i : In(stream of 256 bits);  o : Out(stream of 256 bits)
    """

    def __init__(self, opcode: str, depth: int):
        self._bits = max(low + width for low, width in instructions.layout(opcode).values())
        self._depth = depth
        word = stream.Signature(instructions.INSTRUCTION_BITS)
        super().__init__({"i": In(word), "o": Out(word)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFO(width=self._bits, depth=self._depth)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload), fifo.w_en.eq(self.i.valid), self.i.ready.eq(fifo.w_rdy),
            self.o.payload.eq(fifo.r_data), self.o.valid.eq(fifo.r_rdy), fifo.r_en.eq(self.o.ready),
        ]
        return m
