"""The weight slots: tiles of 4-bit codes that wait on chip for their pass."""

from amaranth import Cat, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig


class WeightSlots(wiring.Component):
    """Written a beat at a time by each of `weight_ports`; read `weight_path_beats` beats a cycle, a cycle after the address.

    Port k writes beats k, k + weight_ports, ... of the slots, into a memory of its own.

    Members
    -------
    write_valid : In(weight_ports);  write_address : In(16 * weight_ports), of a row of one beat a port, from slot 0
    write_data : In(128 * weight_ports), those of port k in the k-th part
    read_address : In(range(weight_slots * tile_rows)), rows of weight_path_beats beats
    read_data : Out(128 * weight_path_beats)
    address_fault : Out(1), for good, on a write behind the last slot
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self.depth = config.weight_slots * config.tile_rows
        super().__init__({
            "write_valid": In(config.weight_ports), "write_address": In(16 * config.weight_ports),
            "write_data": In(AXI_BEAT_BITS * config.weight_ports),
            "read_address": In(range(self.depth)),
            "read_data": Out(AXI_BEAT_BITS * config.weight_path_beats),
            "address_fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        ports = self._config.weight_ports
        parts = self._config.weight_path_beats // ports
        part_bits = (parts - 1).bit_length()
        read_data = []  # of beat j of port k's memory: beat j * ports + k of the row
        for k in range(ports):
            m.submodules[f"memory{k}"] = memory = Memory(shape=unsigned(AXI_BEAT_BITS * parts), depth=self.depth, init=[])
            write = memory.write_port(granularity=AXI_BEAT_BITS)
            read = memory.read_port()
            valid, address = self.write_valid[k], self.write_address.word_select(k, 16)
            fits = Signal(name=f"fits{k}")
            m.d.comb += [
                fits.eq(address < self.depth * parts),
                write.addr.eq(address >> part_bits),
                write.data.eq(self.write_data.word_select(k, AXI_BEAT_BITS).replicate(parts)),
                write.en.eq((1 << address[:part_bits] if part_bits else 1) & (valid & fits).replicate(parts)),
                read.addr.eq(self.read_address), read.en.eq(1),
            ]
            read_data.append(read.data)
            with m.If(valid & ~fits):
                m.d.sync += self.address_fault.eq(1)
        m.d.comb += self.read_data.eq(Cat(data.word_select(j, AXI_BEAT_BITS) for j in range(parts) for data in read_data))
        return m
