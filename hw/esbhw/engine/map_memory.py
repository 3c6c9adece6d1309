"""Map memory: maps that stay on chip between layers, behind the same ports as those in memory."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_BEAT_BITS
from esbflow.engine_facts import OUTSTANDING_READS
from esbhw.engine.axi import map_order_layout
from esbhw.engine.fifo import BurstQueue, Fifo

AHEAD = 16
"""Beats that are read ahead, while the port waits for others."""
START = 12
"""No read begins with so many under way: two more may by then have."""


class MapMemory(wiring.Component):
    """The map memory of a port's slices, one slice's behind the other's.

    A beat is written in the cycle in which it is on `write`, and can be read from the next one on. Reads are carried out in
    order: the first beat of one that was on `order` in cycle t is on `data` in t + 6 if nothing is before it, then one comes
    a cycle. Orders are no more than OUTSTANDING_READS at once; the reader may let beats wait.

    Parameters
    ----------
    beats : of all slices together.

    Members
    -------
    write : In(1);  place : In(range(beats));  write_data : In(128)
    order : In(map_order_layout((beats - 1).bit_length()));  order_valid : In(1)
    valid : Out(1), the next beat of the orders is here;  data : Out(128);  taken : In(1)
    """

    def __init__(self, beats: int):
        self._beats = beats
        bits = (beats - 1).bit_length()
        super().__init__({
            "write": In(1), "place": In(bits), "write_data": In(AXI_BEAT_BITS),
            "order": In(map_order_layout(bits)), "order_valid": In(1),
            "valid": Out(1), "data": Out(AXI_BEAT_BITS), "taken": In(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=unsigned(AXI_BEAT_BITS), depth=self._beats, init=[])
        write, read = memory.write_port(), memory.read_port(domain="sync")
        m.submodules.orders = orders = BurstQueue(len(self.place), OUTSTANDING_READS)
        m.submodules.ahead = ahead = Fifo(AXI_BEAT_BITS, AHEAD)
        m.d.comb += [
            write.en.eq(self.write), write.addr.eq(self.place), write.data.eq(self.write_data),
            orders.i.valid.eq(self.order_valid), orders.i.payload.length.eq(self.order.length),
            orders.i.payload.payload.eq(self.order.place),
        ]
        # -- a read a cycle, while there will be a place for the beat
        able, following, under_way = Signal(init=1), Signal(len(self.place)), Signal(range(AHEAD + 1))
        address = Mux(orders.first, orders.payload, following)
        reads, leaves = orders.valid & able, ahead.o.valid & self.taken
        m.d.comb += [read.addr.eq(address), read.en.eq(1), orders.beat.eq(1), orders.able.eq(able),
                     orders.ending.eq(able & orders.last)]
        with m.If(reads):
            m.d.sync += following.eq(address + 1)
        m.d.sync += [under_way.eq(under_way + reads - leaves), able.eq(under_way < START)]

        # -- a register behind the block RAM, then the beats that wait
        read_valid, beat, beat_valid = Signal(), Signal(AXI_BEAT_BITS, reset_less=True), Signal()
        m.d.sync += [read_valid.eq(reads), beat_valid.eq(read_valid), beat.eq(read.data)]
        m.d.comb += [
            ahead.i.valid.eq(beat_valid), ahead.i.payload.eq(beat),
            self.valid.eq(ahead.o.valid), self.data.eq(ahead.o.payload), ahead.o.ready.eq(self.taken),
        ]
        return m
