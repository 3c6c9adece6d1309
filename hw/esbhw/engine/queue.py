"""A queue of instructions before a unit; it stores only the bits that the unit's instructions use."""

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from esbflow import instructions
from esbflow.engine_config import EngineConfig
from esbhw.engine.fields import places
from esbhw.engine.fifo import Fifo


class InstructionQueue(wiring.Component):
    """A Fifo of `depth` instructions: `i` waits while it is full. `config` says which fields the engine has; None: all.

    opcode : of the unit's instructions, or several: the bits of the longest are stored.

    Members
    -------
    i : In(stream of 256 bits);  o : Out(stream of 256 bits)
    """

    def __init__(self, opcode: str | tuple, depth: int, config: EngineConfig | None = None):
        opcodes = (opcode,) if isinstance(opcode, str) else opcode
        self._bits = max(low + width for name in opcodes for low, width in places(name, config).values())
        self._depth = depth
        word = stream.Signature(instructions.INSTRUCTION_BITS)
        super().__init__({"i": In(word), "o": Out(word)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = Fifo(self._bits, self._depth)
        m.d.comb += [
            fifo.i.payload.eq(self.i.payload), fifo.i.valid.eq(self.i.valid), self.i.ready.eq(fifo.i.ready),
            self.o.payload.eq(fifo.o.payload), self.o.valid.eq(fifo.o.valid), fifo.o.ready.eq(self.o.ready),
        ]
        return m
