"""The requantizer's constants on chip: two banks, one channel a beat in memory, one group of lanes a read."""

from amaranth import Cat, Const, Module, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbhw.arithmetic.requantize import constants_layout


class ConstantBanks(wiring.Component):
    """Written a channel at a time by each of `weight_ports`, read `requantize_lanes` at a time, one cycle after the address.

    Port k writes channels k, k + weight_ports, ..., into a memory of its own.

    Members
    -------
    write_valid, write_bank : In(weight_ports), of each port;  write_address : In(16 * weight_ports), channel // weight_ports
    write_data : In(128 * weight_ports)
    read_bank : In(1);  read_group : In(range(max(2, tile_channels // requantize_lanes)))
    read_data : Out(requantize_lanes * constants_layout(config).size)
    address_fault : Out(1), for good
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self._size = constants_layout(config).size
        self._groups = config.tile_channels // config.requantize_lanes
        super().__init__({
            "write_valid": In(config.weight_ports), "write_bank": In(config.weight_ports),
            "write_address": In(16 * config.weight_ports), "write_data": In(AXI_BEAT_BITS * config.weight_ports),
            "read_bank": In(1), "read_group": In(range(max(2, self._groups))),
            "read_data": Out(config.requantize_lanes * self._size),
            "address_fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        ports = self._config.weight_ports
        lanes = self._config.requantize_lanes // ports
        lane_bits = (lanes - 1).bit_length()
        group_bits = (self._groups - 1).bit_length()
        read_data = []
        for k in range(ports):
            m.submodules[f"memory{k}"] = memory = Memory(
                shape=unsigned(lanes * self._size), depth=2 * self._groups, init=[])
            write = memory.write_port(granularity=self._size)
            read = memory.read_port()
            valid, address = self.write_valid[k], self.write_address.word_select(k, 16)
            fits = Signal(name=f"fits{k}")
            lane = address[:lane_bits] if lane_bits else Const(0, 1)
            data = self.write_data.word_select(k, AXI_BEAT_BITS)[:self._size]
            m.d.comb += [
                fits.eq(address < self._config.tile_channels // ports),
                write.addr.eq(Cat((address >> lane_bits)[:group_bits], self.write_bank[k])),
                write.data.eq(data.replicate(lanes)),
                write.en.eq((1 << lane) & (valid & fits).replicate(lanes)),
                read.addr.eq(Cat(self.read_group[:group_bits], self.read_bank)), read.en.eq(1),
            ]
            read_data.append(read.data)
            with m.If(valid & ~fits):
                m.d.sync += self.address_fault.eq(1)
        m.d.comb += self.read_data.eq(Cat(data.word_select(j, self._size) for j in range(lanes) for data in read_data))
        return m
