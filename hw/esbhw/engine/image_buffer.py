"""The image buffer of a slice: raw pixels go through its table into two banks, and come out as digits of words."""

from amaranth import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import SLOT_BYTES, STEP_COUNT
from esbhw.engine.unfolder import SPAN, read_layout, slots_in_a_beat
from esbhw.fabric.idioms import pick

ENTRIES = 4
"""Of a row of the table."""


class ImageBuffer(wiring.Component):
    """Holds levels of 8 bits; even and odd beats lie in banks of their own, so that any 16 bytes are read at once.

    A byte is looked up as it comes; its level is in the buffer two cycles after `write_valid`. The table is written like
    that, too, a row of four entries a beat. A slot's bytes are put together as `read` says. Its digits go into a beat of
    each digit's plane, and `data` has these one after the other while `read.next` is high.

    Members
    -------
    write_valid : In(1), raw pixels;  table_valid : In(1), a row of the table in their place
    write_address : In(16), of beats or rows;  write_data : In(128)
    read : In(read_layout(config));  data : Out(128)
    address_fault : Out(1), for good, on a write behind the end of the buffer or of the table
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "write_valid": In(1), "table_valid": In(1), "write_address": In(16), "write_data": In(AXI_BEAT_BITS),
            "read": In(read_layout(config)), "data": Out(AXI_BEAT_BITS), "address_fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        rotated = self._rotate(m, self._banks(m, self._look_up(m)))
        slot = self._slot(m, rotated)
        self._beats(m, slot)
        return m

    def _look_up(self, m):
        """The levels of a beat, a cycle later."""
        levels = Signal(AXI_BEAT_BITS, reset_less=True)
        for k in range(SLOT_BYTES):
            memory = Memory(shape=unsigned(8 * ENTRIES), depth=STEP_COUNT, init=[])
            m.submodules[f"table{k}"] = memory
            write, read, pixel = memory.write_port(), memory.read_port(domain="comb"), self.write_data.word_select(k, 8)
            m.d.comb += [write.en.eq(self.table_valid), write.addr.eq(self.write_address),
                         write.data.eq(self.write_data), read.addr.eq(pixel[2:])]
            m.d.sync += levels.word_select(k, 8).eq(read.data.word_select(pixel[:2], 8))
        return levels

    def _banks(self, m, levels):
        """The pair of beats that was asked for a cycle before, the even one first."""
        beats = self._config.image_beats
        address, valid, pair = Signal(range(beats)), Signal(), []
        fits = self.write_address < beats
        m.d.sync += [address.eq(self.write_address), valid.eq(self.write_valid & fits)]
        with m.If((self.write_valid & ~fits) | (self.table_valid & (self.write_address >= STEP_COUNT))):
            m.d.sync += self.address_fault.eq(1)
        for odd, place in enumerate((self.read.even, self.read.odd)):
            m.submodules[f"bank{odd}"] = memory = Memory(shape=unsigned(AXI_BEAT_BITS), depth=beats // 2, init=[])
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [write.en.eq(valid & (address[0] == odd)), write.addr.eq(address[1:]), write.data.eq(levels),
                         read.addr.eq(place), read.en.eq(1)]
            pair.append(read.data)
        return Cat(pair)

    def _rotate(self, m, pair):
        """Bytes of the pair, down by 8 and by 2 times so many in a register each, and by one at last."""
        for name, step in (("coarse", 8), ("middle", 2)):
            turned = Signal(8 * SPAN, name=name, reset_less=True)
            m.d.sync += turned.eq(pick(self.read[name], [pair.rotate_right(8 * step * k) for k in range(4)]))
            pair = turned
        return Mux(self.read.fine, pair.rotate_right(8), pair)

    def _slot(self, m, rotated):
        """The slot that was complete a cycle before."""
        slot, held = Signal(8 * SLOT_BYTES, reset_less=True), Signal(8 * SLOT_BYTES)
        chosen = rotated & Cat(bit.replicate(8) for bit in self.read.mask) & self.read.valid.replicate(8 * SPAN)
        merged = held | chosen[:len(slot)]
        m.d.sync += [slot.eq(merged), held.eq(Mux(self.read.ends, chosen[len(slot):], merged))]
        return slot

    def _beats(self, m, slot) -> None:
        """A beat of each digit is put together from slots, and all are given at once to registers that shift them out."""
        bits, planes = self._config.digit_bits, slots_in_a_beat(self._config)
        gathered = Signal(AXI_BEAT_BITS * planes, reset_less=True)
        waiting = Signal(AXI_BEAT_BITS * planes, reset_less=True)
        for plane in range(planes):
            digits = Cat(slot[at:at + bits] for at in range(bits * plane, len(slot), 8))
            beat, out = (signal.word_select(plane, AXI_BEAT_BITS) for signal in (gathered, waiting))
            with m.If(self.read.ended):
                m.d.sync += beat.eq(Cat(beat[len(digits):], digits))
            with m.If(self.read.full):
                m.d.sync += out.eq(beat)
        with m.If(~self.read.full):
            m.d.sync += waiting.eq(waiting >> AXI_BEAT_BITS)
        m.d.comb += self.data.eq(waiting)
