"""FIFOs whose flags and data are registers, so that no path runs from one unit through a FIFO into the next."""

from amaranth import Module, Mux, Signal, Value, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.data import StructLayout
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbhw.fabric.idioms import count_both_ways

LENGTH_BITS = 7
"""A burst has 1 to 64 beats."""


class Fifo(wiring.Component):
    """First in, first out: what is written in one cycle is offered FIFO_LATENCY cycles later.

    It holds `depth` items, the one on offer among them. A place that was read is offered again FIFO_PLACE_CYCLES later.
    One item a cycle on either side, if there are at least FIFO_LATENCY + FIFO_PLACE_CYCLES places.

    Parameters
    ----------
    block : keep the items in block RAM, not in LUT RAM.

    Members
    -------
    i : In(stream of width bits);  o : Out(stream of width bits)
    advance : Out(1), the next item moves to `o`;  next : Out(width), that item. There is no `next` with `block`.
    behind : Out(1), more items than the one on `o` are there
    level : Out(range(depth + 1)), items held, a read one for one cycle more
    """

    def __init__(self, width: int, depth: int, block: bool = False):
        self._width, self._depth, self._block = width, depth, block
        members = {"i": In(stream.Signature(width)), "o": Out(stream.Signature(width)), "advance": Out(1),
                   "behind": Out(1), "level": Out(range(depth + 1))}
        super().__init__(members if block else members | {"next": Out(width)})

    def elaborate(self, platform):
        m = Module()
        depth = self._depth
        address_bits = max(1, (depth - 1).bit_length())
        m.submodules.memory = memory = Memory(shape=unsigned(self._width), depth=1 << address_bits, init=[])
        write, read = memory.write_port(), memory.read_port(domain="sync" if self._block else "comb")
        push = self.i.valid & self.i.ready

        # -- the items in memory, and the one on offer
        count = Signal(address_bits + 1)  # items in memory
        several = Signal()  # there are two or more
        m.d.comb += [
            write.data.eq(self.i.payload), write.en.eq(push), self.advance.eq(self.behind & (~self.o.valid | self.o.ready)),
        ]
        m.d.sync += [
            self.o.valid.eq(self.behind | (self.o.valid & ~self.o.ready)),
            self.behind.eq(push | Mux(self.advance, several, self.behind)),
            several.eq(Mux(push, Mux(self.advance, several, self.behind), Mux(self.advance, above_two(m, count), several))),
        ]
        count_both_ways(m, count, push, self.advance)
        with m.If(push):
            m.d.sync += write.addr.eq(write.addr + 1)
        with m.If(self.advance):
            m.d.sync += read.addr.eq(read.addr + 1)
        if self._block:
            m.d.comb += [read.en.eq(self.advance), self.o.payload.eq(read.data)]
        else:
            payload = Signal(self._width, reset_less=True)
            with m.If(self.advance):
                m.d.sync += payload.eq(read.data)
            m.d.comb += [self.o.payload.eq(payload), self.next.eq(read.data)]

        # -- places: a read is booked a cycle later
        popped = Signal()
        room = Signal(init=1)
        m.d.comb += self.i.ready.eq(room)
        m.d.sync += [popped.eq(self.o.valid & self.o.ready),
                     room.eq(popped | (room & ~(push & _one_below(m, self.level, depth))))]
        count_both_ways(m, self.level, push, popped)
        return m


def above_two(m, count) -> Value:
    """Whether a count that moves by one at most is above two: one LUT behind registers."""
    large = Signal()
    m.d.sync += large.eq(count[2:].any())
    return large | count[2:3].any() | (count[:2] == 3)


def _one_below(m, level, depth: int) -> Value:
    """Whether a level that moves by one at most is `depth` - 1: one LUT behind registers."""
    if len(level) <= 4:
        return level == depth - 1
    near = Signal()  # within two of the depth, a cycle ago: of those only depth - 1 is 3 modulo 4
    m.d.sync += near.eq(level >= depth - 2)
    return near & (level[:2] == 3)


class BurstQueue(wiring.Component):
    """Bursts whose beats are counted off: knows in registers whether the beat that comes is a burst's first or last.

    Members
    -------
    i : In(stream of LENGTH_BITS + payload_bits), length and payload
    payload : Out(payload_bits), valid : Out(1), of the burst whose beats are due
    beat, able : In(1), both together: one of its beats is done, if `valid`
    ending : In(1), beat & able & last, from outside: so it is one LUT
    first, last : Out(1), of the beat that is due
    behind : Out(1), more bursts than this one are there
    advance : Out(1), the next burst becomes this one;  next : Out(payload_bits), its payload
    """

    def __init__(self, payload_bits: int, depth: int):
        self._payload_bits, self._depth = payload_bits, depth
        super().__init__({
            "i": In(stream.Signature(StructLayout({"length": LENGTH_BITS, "payload": payload_bits}))),
            "payload": Out(payload_bits), "valid": Out(1), "behind": Out(1),
            "beat": In(1), "able": In(1), "ending": In(1), "first": Out(1), "last": Out(1),
            "advance": Out(1), "next": Out(payload_bits),
        })

    def elaborate(self, platform):
        m = Module()
        item = StructLayout({"single": 1, "length": LENGTH_BITS, "payload": self._payload_bits})
        m.submodules.fifo = fifo = Fifo(item.size, self._depth)
        new = Signal(item)
        here = Signal(item)
        following = Signal(item)
        m.d.comb += [
            new.length.eq(self.i.payload.length), new.payload.eq(self.i.payload.payload),
            new.single.eq(self.i.payload.length == 1),
            fifo.i.payload.eq(new), fifo.i.valid.eq(self.i.valid), self.i.ready.eq(fifo.i.ready),
            here.eq(fifo.o.payload), following.eq(fifo.next), fifo.o.ready.eq(self.ending),
            self.payload.eq(here.payload), self.valid.eq(fifo.o.valid), self.behind.eq(fifo.behind),
            self.advance.eq(fifo.advance), self.next.eq(following.payload),
        ]
        number = Signal(LENGTH_BITS)  # of the beat after the one that is due, from 1 on
        with m.If(~self.valid | self.ending):  # for the burst that comes now or later
            m.d.sync += [self.first.eq(1), self.last.eq(following.single), number.eq(2)]
        with m.Elif(self.beat & self.able):
            m.d.sync += [self.first.eq(0), self.last.eq(number == here.length), number.eq(number + 1)]
        return m
