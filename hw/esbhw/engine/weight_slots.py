"""The weight slots: tiles of 4-bit codes that wait on chip for their pass."""

from amaranth import Module, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig


class WeightSlots(wiring.Component):
    """Written one beat at a time, read `weight_path_beats` beats a cycle, one cycle after the address.

    Members
    -------
    write_valid, write_address (beats from slot 0), write_data : In
    read_address : In, rows of weight_path_beats beats;  read_data : Out
    address_fault : Out(1), for good, on a write behind the last slot
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self.depth = config.weight_slots * config.tile_rows
        super().__init__({
            "write_valid": In(1), "write_address": In(16), "write_data": In(AXI_BEAT_BITS),
            "read_address": In(range(self.depth)),
            "read_data": Out(AXI_BEAT_BITS * config.weight_path_beats),
            "address_fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        parts = self._config.weight_path_beats
        m.submodules.memory = memory = Memory(shape=unsigned(AXI_BEAT_BITS * parts), depth=self.depth, init=[])
        write = memory.write_port(granularity=AXI_BEAT_BITS)
        read = memory.read_port()
        part_bits = (parts - 1).bit_length()
        fits = self.write_address < self.depth * parts
        m.d.comb += [
            write.addr.eq(self.write_address >> part_bits),
            write.data.eq(self.write_data.replicate(parts)),
            write.en.eq((1 << self.write_address[:part_bits] if part_bits else 1)
                        & (self.write_valid & fits).replicate(parts)),
            read.addr.eq(self.read_address), read.en.eq(1), self.read_data.eq(read.data),
        ]
        with m.If(self.write_valid & ~fits):
            m.d.sync += self.address_fault.eq(1)
        return m
