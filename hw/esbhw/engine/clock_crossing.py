"""From one clock to another: items by a FIFO with Gray-coded pointers, a level, and a reset that both sides take together.

Pointers and handshakes go from register to register, and change by one bit at a time. esbhw.crossing_proof proves what is
said here, for clocks of every ratio and phase; esbhw.crossing_constraints bounds the wires between the registers.
Clifford E. Cummings, Simulation and Synthesis Techniques for Asynchronous FIFO Design, SNUG San Jose 2002, style 1.
"""

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

ADDRESS_BITS = 4
DEPTH = 1 << ADDRESS_BITS
"""Places: an item's way there and its place's way back take eight cycles, so that one item a cycle passes."""

FULL = 0b11 << ADDRESS_BITS - 1
"""In which bits the pointers' Gray codes differ when every place is taken."""


def gray(count):
    """The Gray code of a count: neighbours differ in one bit, the last and the first too."""
    return count ^ count[1:]


class Synchronizer:
    """Two registers behind a register of another clock: `meta`, which may be metastable, and `seen`."""

    def __init__(self, width: int, name: str, init: int = 0, reset_less: bool = False):
        self.meta, self.seen = (Signal(width, name=f"{name}_{stage}", init=init, reset_less=reset_less,
                                       attrs={"ASYNC_REG": "TRUE"}) for stage in ("meta", "seen"))

    def connect(self, m: Module, domain: str, source) -> None:
        """Sample `source`, of any clock, into `domain`; `seen` follows it two cycles later."""
        m.d[domain] += [self.meta.eq(source), self.seen.eq(self.meta)]


class ClockCrossing(wiring.Component):
    """A FIFO from domain "source" to domain "sink": up to DEPTH items, and one on offer, in the order in which they came.

    Both domains must be reset at the same time, see ResetCrossing.

    Members
    -------
    i : In(stream of width bits), in "source";  o : Out(stream of width bits), in "sink"; all outputs are registers
    """

    def __init__(self, width: int):
        self._width = width
        bits = ADDRESS_BITS + 1
        self.write_count = Signal(bits)
        self.write_gray = Signal(bits)
        self.read_count = Signal(bits)
        self.read_gray = Signal(bits)
        self.write_there = Synchronizer(bits, "write_gray")
        self.read_there = Synchronizer(bits, "read_gray")
        self.room = Signal()
        self.there = Signal()
        super().__init__({"i": In(stream.Signature(width)), "o": Out(stream.Signature(width))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = Memory(shape=unsigned(self._width), depth=DEPTH, init=[])
        write, read = store.write_port(domain="source"), store.read_port(domain="comb")

        # -- source
        self.read_there.connect(m, "source", self.read_gray)
        push = self.i.valid & self.room
        written = Signal.like(self.write_count)  # with this cycle's item
        m.d.comb += [
            self.i.ready.eq(self.room), write.addr.eq(self.write_count[:ADDRESS_BITS]), write.data.eq(self.i.payload),
            write.en.eq(push), written.eq(self.write_count + push),
        ]
        full = self.read_there.seen ^ FULL
        m.d.source += [self.write_count.eq(written), self.write_gray.eq(gray(written)), self.room.eq(gray(written) != full)]

        # -- sink
        self.write_there.connect(m, "sink", self.write_gray)
        payload = Signal(self._width, reset_less=True)
        advance = Signal()
        taken = Signal.like(self.read_count)
        m.d.comb += [
            advance.eq(self.there & (~self.o.valid | self.o.ready)), taken.eq(self.read_count + advance),
            read.addr.eq(self.read_count[:ADDRESS_BITS]), self.o.payload.eq(payload),
        ]
        m.d.sink += [
            self.read_count.eq(taken), self.read_gray.eq(gray(taken)), self.there.eq(gray(taken) != self.write_there.seen),
            self.o.valid.eq(self.there | (self.o.valid & ~self.o.ready)),
        ]
        with m.If(advance):
            m.d.sink += payload.eq(read.data)
        return m


class LevelCrossing(wiring.Component):
    """A level from domain "source" to domain "sink", two to three cycles of "sink" later.

    Members
    -------
    i : In(1), in "source";  o : Out(1), in "sink"
    """

    def __init__(self):
        super().__init__({"i": In(1), "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        level = Signal()  # a register: what comes may be a glitch of logic
        there = Synchronizer(1, "level")
        there.connect(m, "sink", level)
        m.d.source += level.eq(self.i)
        m.d.comb += self.o.eq(there.seen)
        return m


class ResetCrossing(wiring.Component):
    """Resets "bus" and "compute" together: "bus" stays in reset until "compute" has been in it too, and has left it.

    A handshake of four phases, so that a reset of one cycle is enough at any ratio of the clocks, and one that comes while
    an earlier one is under way is not lost. Without a clock for "compute", "bus" stays in reset. Both begin in reset.

    Members
    -------
    reset_n : In(1), in "bus";  bus_reset : Out(1), in "bus";  compute_reset : Out(1), in "compute"
    """

    def __init__(self):
        self.request = Signal(init=1, reset_less=True)
        self.again = Signal(reset_less=True)  # a reset has come while "compute" was leaving the one before
        self.there = Synchronizer(1, "request", init=1, reset_less=True)
        self.back = Synchronizer(1, "answer", init=1, reset_less=True)
        self.held = Signal(init=1, reset_less=True)  # what resets "compute"; no synchronizer, so that it may be copied
        super().__init__({"reset_n": In(1), "bus_reset": Out(1), "compute_reset": Out(1)})

    def elaborate(self, platform):
        m = Module()
        self.there.connect(m, "compute", self.request)
        self.back.connect(m, "bus", self.held)
        request, again, answer = self.request, self.again, self.back.seen
        wanted = ~self.reset_n | again
        m.d.compute += self.held.eq(self.there.seen)
        m.d.bus += [request.eq(Mux(request, ~self.reset_n | ~answer, wanted & ~answer)),
                    again.eq(wanted & answer & ~request)]
        m.d.comb += [self.bus_reset.eq(Cat(~self.reset_n, again, request, answer).any()), self.compute_reset.eq(self.held)]
        return m
