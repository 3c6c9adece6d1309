"""The requantizer's constants on chip: two banks, one channel a beat in memory, one group of lanes a read."""

from amaranth import Cat, Const, Module, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbhw.arithmetic.requantize import constants_layout


class ConstantBanks(wiring.Component):
    """Written a channel at a time, read `requantize_lanes` channels at a time, one cycle after the address.

    Members
    -------
    write_valid, write_bank, write_address (channel), write_data : In
    read_bank, read_group : In;  read_data : Out(lanes * constants_layout)
    address_fault : Out(1), for good
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        self._size = constants_layout(config).size
        self._groups = config.cols // config.requantize_lanes
        super().__init__({
            "write_valid": In(1), "write_bank": In(1), "write_address": In(16), "write_data": In(AXI_BEAT_BITS),
            "read_bank": In(1), "read_group": In(range(max(2, self._groups))),
            "read_data": Out(config.requantize_lanes * self._size),
            "address_fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        lanes = self._config.requantize_lanes
        lane_bits = (lanes - 1).bit_length()
        group_bits = (self._groups - 1).bit_length()
        m.submodules.memory = memory = Memory(
            shape=unsigned(lanes * self._size), depth=2 * self._groups, init=[])
        write = memory.write_port(granularity=self._size)
        read = memory.read_port()
        fits = self.write_address < self._config.cols
        lane = self.write_address[:lane_bits] if lane_bits else Const(0, 1)
        m.d.comb += [
            write.addr.eq(Cat((self.write_address >> lane_bits)[:group_bits], self.write_bank)),
            write.data.eq(self.write_data[:self._size].replicate(lanes)),
            write.en.eq((1 << lane) & (self.write_valid & fits).replicate(lanes)),
            read.addr.eq(Cat(self.read_group[:group_bits], self.read_bank)), read.en.eq(1),
            self.read_data.eq(read.data),
        ]
        with m.If(self.write_valid & ~fits):
            m.d.sync += self.address_fault.eq(1)
        return m
