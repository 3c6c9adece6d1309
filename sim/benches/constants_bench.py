"""ConstantBanks: one channel a write, one group of lanes a read, two banks apart."""

import random

import cocotb

from esbflow.engine_config import AXI_BEAT_BITS
from esbhw.arithmetic.requantize import constants_layout
from esbhw.engine.constants import ConstantBanks
from sim.benches.testbench import Testbench, config, join, port_write


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def gives_the_lanes_of_a_group_one_cycle_after_its_address(dut):
    size = config()
    lanes = size.requantize_lanes
    tb = Testbench(dut, ConstantBanks(size).signature)
    await tb.reset()
    rng = random.Random(8)
    banks = [[rng.getrandbits(AXI_BEAT_BITS) for _ in range(size.tile_channels)] for _ in range(2)]
    for bank, channel in rng.sample([(b, c) for b in range(2) for c in range(size.tile_channels)], 2 * size.tile_channels):
        tb.set(**port_write(size.weight_ports, channel, banks[bank][channel], bank))
        await tb.tick()
    assert not tb.get("address_fault")
    tb.set(**port_write(size.weight_ports, size.tile_channels, 0, 0))
    await tb.tick()
    tb.set(write_valid=0)
    previous = None
    for bank, group in [(b, g) for b in range(2) for g in range(size.tile_channels // lanes)] * 2:
        tb.set(read_bank=bank, read_group=group)
        await tb.tick()
        if previous is not None:
            assert tb.get("read_data") == previous
        previous = join(banks[bank][group * lanes:(group + 1) * lanes], constants_layout(size).size)
    assert tb.get("address_fault")
