"""Proves the crossings between an engine's two clocks, for clocks of every ratio and phase, for all time.

    python -m esbhw.crossing_proof

Time is a row of steps. In each step either clock may have an edge, both or none, as it pleases: that is every ratio, phase
and jitter. A register that samples another clock's register takes its old value or its new one. Both are among the rows of
steps, as what crosses changes by one bit at a time, and the bounds of esbhw.crossing_constraints keep two changes apart.

Proven of a FIFO together with the reset handshake, in both directions, from the state after configuration and by induction:

- what is taken is what was given, each item once and in order, and no item is overwritten before it is taken;
- pointers change by one bit at a time while their side is not in reset;
- the buses' side leaves reset only after the arrays' side has been in reset since it came, and left it: what is in the FIFO
  then is of after the reset.
"""

import sys
import tempfile
from pathlib import Path

from amaranth import Cat, ClockDomain, DomainRenamer, EnableInserter, Module, ResetInserter, Signal
from amaranth.back import rtlil as back_rtlil
from amaranth.lib.wiring import Component, In, Out

from esbhw import yosys
from esbhw.engine.clock_crossing import ADDRESS_BITS, DEPTH, ClockCrossing, ResetCrossing, gray

SCRIPT = """
read_rtlil model.il
hierarchy -top model
proc
flatten
memory_map
opt -full
sat -verify -tempinduct -prove holds 1 -maxsteps {steps} -seq 1 model
"""
STEPS = 6
"""Steps of the induction at most; it succeeds at fewer."""


class NotProven(AssertionError):
    """The property does not hold, or not by induction; the text ends with Yosys's last words."""


class _Inspected(ClockCrossing):
    """A FIFO of one bit a place; `stored` is what the place `place` holds."""

    def __init__(self):
        super().__init__(1)
        self.place = Signal(ADDRESS_BITS)
        self.stored = Signal()

    def elaborate(self, platform):
        m = super().elaborate(platform)
        port = m.submodules.store.read_port(domain="comb")
        m.d.comb += [port.addr.eq(self.place), self.stored.eq(port.data)]
        return m


class Watched(Component):
    """A FIFO with the reset handshake, and `holds`: that everything is as it should be. `step` is the clock of the steps.

    All inputs are free: when the clocks have edges, the reset, what is given, when it is taken, and which item is watched.
    Stored bits do not depend on each other, so that one stands for any width.

    `from_bus` : the direction.
    """

    def __init__(self, from_bus: bool):
        self._from_bus = from_bus
        free = ("step", "bus_edge", "compute_edge", "reset_n", "give", "item", "take", "pick")
        super().__init__({**dict.fromkeys(free, In(1)), "holds": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = steps = ClockDomain("sync", reset_less=True)
        m.d.comb += steps.clk.eq(self.step)
        edges = {"bus": self.bus_edge, "compute": self.compute_edge}
        handshake, fifo = ResetCrossing(), _Inspected()
        resets = {"bus": handshake.bus_reset, "compute": handshake.compute_reset}
        source, sink = ("bus", "compute") if self._from_bus else ("compute", "bus")
        m.submodules.handshake = _stepped(handshake, edges)
        m.submodules.fifo = _stepped(DomainRenamer({"source": source, "sink": sink})(fifo), edges, resets)
        m.d.comb += [handshake.reset_n.eq(self.reset_n), fifo.i.valid.eq(self.give), fifo.i.payload.eq(self.item),
                     fifo.o.ready.eq(self.take)]
        in_reset, old, of_resets = self._resets(m, handshake, fifo)
        places, of_pointers = self._pointers(fifo)
        of_items = self._items(m, fifo, places[2], handshake.bus_reset | in_reset,
                               (edges[source], edges[sink]), resets[source])
        single = self._single(m, fifo, {"write_gray": resets[source], "read_gray": resets[sink]})
        settled = ~old
        m.d.comb += self.holds.eq(Cat(*of_resets).all() & Cat(*single).all()
                                  & (~settled | Cat(*of_pointers, *of_items).all()))
        return m

    def _resets(self, m, handshake, fifo) -> tuple:
        """(the buses' side was in reset, the arrays' side may hold what it had before that, what must hold of both)."""
        in_reset = Signal(init=1)
        old = Signal(init=1)
        enters = self.bus_edge & handshake.bus_reset & ~in_reset
        with m.If(self.bus_edge):
            m.d.sync += in_reset.eq(handshake.bus_reset)
        with m.If(enters):
            m.d.sync += old.eq(1)
        with m.Elif(self.compute_edge & handshake.compute_reset & in_reset):
            m.d.sync += old.eq(0)
        live = ~in_reset & ~handshake.bus_reset
        wave = Cat(handshake.request, handshake.there.meta, handshake.there.seen, handshake.held, handshake.back.meta,
                   handshake.back.seen)
        of_source = [fifo.write_count, fifo.write_gray, fifo.read_there.meta, fifo.read_there.seen, fifo.room]
        of_sink = [fifo.read_count, fifo.read_gray, fifo.write_there.meta, fifo.write_there.seen, fifo.there, fifo.o.valid]
        of_bus, of_compute = (of_source, of_sink) if self._from_bus else (of_sink, of_source)
        return in_reset, old, [
            ~(live & old), ~(live & handshake.compute_reset),
            # How it comes about: one change at a time runs around, and has not passed the arrays' side while that is old.
            _at_most_one((wave ^ wave[1:])[:len(wave) - 1]), ~old | (in_reset & wave[:4].any()),
            ~(handshake.request & handshake.again), in_reset | ~(wave[0] | wave[-1] | handshake.again),
            ~in_reset | ~Cat(*of_bus).any(), old | ~wave[3] | wave[2] | ~Cat(*of_compute).any(),
            fifo.write_gray == gray(fifo.write_count), fifo.read_gray == gray(fifo.read_count),
        ]

    @staticmethod
    def _pointers(fifo) -> tuple:
        """(items that the sink knows of, that are on the way to it, that there are; what must hold of the pointers).

        All are distances from what was taken.
        """
        places = [_distance(fifo, code) for code in (fifo.write_there.seen, fifo.write_there.meta, fifo.write_gray)]
        taken_seen = [(fifo.write_count - _binary(code))[:ADDRESS_BITS + 1]
                      for code in (fifo.read_there.seen, fifo.read_there.meta, fifo.read_gray)]
        return places, [
            places[0] <= places[1], places[1] <= places[2], places[2] <= DEPTH,
            taken_seen[0] >= taken_seen[1], taken_seen[1] >= taken_seen[2], taken_seen[0] <= DEPTH,
            ~fifo.room | (taken_seen[0] < DEPTH), ~fifo.there | (places[0] > 0),
        ]

    def _items(self, m, fifo, stored, lost, edges: tuple, source_reset) -> list:
        """What must hold of an item: any that is given may be watched, until it is taken or `lost` in a reset.

        stored : items between what was given and what was taken
        """
        source_edge, sink_edge = edges
        watched = Signal()
        offered = Signal()
        place = Signal(ADDRESS_BITS + 1)
        value = Signal()
        push, advance = self.give & fifo.room & source_edge, fifo.there & (~fifo.o.valid | self.take) & sink_edge
        begins = push & self.pick & ~watched & ~offered & ~source_reset
        due = watched & (place == fifo.read_count)
        with m.If(begins):
            m.d.sync += [watched.eq(1), place.eq(fifo.write_count), value.eq(self.item)]
        with m.If(advance & due):
            m.d.sync += [watched.eq(0), offered.eq(1)]
        with m.If(offered & self.take & sink_edge):
            m.d.sync += offered.eq(0)
        with m.If(lost):
            m.d.sync += [watched.eq(0), offered.eq(0)]
        distance = (place - fifo.read_count)[:ADDRESS_BITS + 1]
        m.d.comb += fifo.place.eq(place)
        return [~watched | ((distance < stored) & (fifo.stored == value)),
                ~offered | (fifo.o.valid & (fifo.o.payload == value)), ~(watched & offered) | (distance > 0)]

    @staticmethod
    def _single(m, fifo, resets: dict) -> list:
        """Each pointer's Gray code, whose side's reset is in `resets`, changes by one bit at a time outside of a reset."""
        before = {name: Signal(ADDRESS_BITS + 1, name=f"{name}_before") for name in resets}
        was_reset = {name: Signal(name=f"{name}_was_reset", init=1) for name in before}
        single = []
        for name, reset in resets.items():
            m.d.sync += [before[name].eq(getattr(fifo, name)), was_reset[name].eq(reset)]
            single.append(was_reset[name] | _at_most_one(before[name] ^ getattr(fifo, name)))
        return single


def _stepped(component, edges: dict, resets: dict | None = None):
    """A component of two clocks in the one of the steps: a register moves when its clock has an edge."""
    if resets:
        component = ResetInserter(resets)(component)
    return DomainRenamer(dict.fromkeys(edges, "sync"))(EnableInserter(edges)(component))


def _binary(code):
    """The count of a Gray code."""
    return Cat((code >> bit).xor() for bit in range(ADDRESS_BITS + 1))


def _distance(fifo, code):
    return (_binary(code) - fifo.read_count)[:ADDRESS_BITS + 1]


def _at_most_one(bits):
    return (bits & (bits - 1)[:len(bits)]) == 0


def prove(from_bus: bool, spoil=None) -> None:
    """Prove one direction. `spoil` : RTLIL text to RTLIL text, for a planted fault.

    Raises
    ------
    NotProven
        if it does not hold.
    esbhw.yosys.YosysError
        if there is no Yosys.
    """
    text = back_rtlil.convert(Watched(from_bus), name="model", emit_src=False)
    with tempfile.TemporaryDirectory(prefix="crossing-") as folder:
        (Path(folder) / "model.il").write_text(spoil(text) if spoil else text)
        (Path(folder) / "prove.ys").write_text(SCRIPT.format(steps=STEPS))
        try:
            yosys.require().run("prove.ys", Path(folder))
        except yosys.YosysError as error:
            direction = "buses to the arrays" if from_bus else "arrays to the buses"
            raise NotProven(f"the crossing from the {direction} is not proven: {error}") from None


def main() -> int:
    """Prove both directions and print what was proven; the exit code."""
    for from_bus in (True, False):
        prove(from_bus)
        print("proven:", "from the buses to the arrays" if from_bus else "from the arrays to the buses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
