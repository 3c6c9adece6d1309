"""The residual operand's tile on chip: two banks, digits apart so that all are read at once."""

from amaranth import Cat, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow import engine_facts as facts
from esbflow.engine_config import AXI_BEAT_BITS, DIGIT_BITS, EngineConfig


class ResidualBuffer(wiring.Component):
    """Holds beats as they lie in memory; gives all digits of one pixel's word one cycle after its address.

    An engine without a residual operand has no such memory: every write is a fault.

    Members
    -------
    write_valid, write_bank, write_plane : In(1);  write_address : In(16), of beats;  write_data : In(128)
    read_bank : In(1);  read_address : In(20), of words
    low, high : Out(rows * 4), the lower and the higher 4 bits of each channel
    address_fault : Out(1), for good
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "write_valid": In(1), "write_bank": In(1), "write_plane": In(1), "write_address": In(16),
            "write_data": In(AXI_BEAT_BITS),
            "read_bank": In(1), "read_address": In(20),
            "low": Out(config.rows * DIGIT_BITS), "high": Out(config.rows * DIGIT_BITS),
            "address_fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        if not config.residual:
            with m.If(self.write_valid):
                m.d.sync += self.address_fault.eq(1)
            return m
        parts = config.beats_per_word
        part_bits = (parts - 1).bit_length()
        depth = config.residual_beats // parts
        row_bits = (depth - 1).bit_length()
        sub_bits = (config.words_per_beat - 1).bit_length()
        plane_written, address, planes = self.write_plane, self.write_address, facts.residual_planes(config)
        if planes > 2:  # see engine_facts.RESIDUAL_PLANE
            plane_written, address = Cat(self.write_plane, self.write_address[-1]), self.write_address[:-1]
        fits = address < config.residual_beats
        sub = Signal(max(1, sub_bits))
        m.d.sync += sub.eq(self.read_address[:sub_bits] if sub_bits else 0)
        words = [self.low, self.high] if planes == 2 else [Signal(config.word_bits, name=f"word{k}") for k in range(planes)]
        for plane, out in enumerate(words):
            m.submodules[f"plane{plane}"] = memory = Memory(
                shape=unsigned(AXI_BEAT_BITS * parts), depth=2 * depth, init=[])
            write = memory.write_port(granularity=AXI_BEAT_BITS)
            read = memory.read_port()
            enable = self.write_valid & fits & (plane_written == plane)
            m.d.comb += [
                write.addr.eq(Cat((address >> part_bits)[:row_bits], self.write_bank)),
                write.data.eq(self.write_data.replicate(parts)),
                write.en.eq((1 << address[:part_bits] if part_bits else 1) & enable.replicate(parts)),
                read.addr.eq(Cat((self.read_address >> sub_bits)[:row_bits], self.read_bank)), read.en.eq(1),
                out.eq(read.data.word_select(sub, config.word_bits) if sub_bits else read.data),
            ]
        if planes > 2:
            for half, out in zip((words[:2], words[2:]), (self.low, self.high)):
                m.d.comb += out.eq(Cat(word.word_select(r, config.digit_bits) for r in range(config.rows) for word in half))
        with m.If(self.write_valid & ~fits):
            m.d.sync += self.address_fault.eq(1)
        return m
