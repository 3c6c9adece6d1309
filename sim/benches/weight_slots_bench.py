"""WeightSlots: written in beats, read in rows of weight_path_beats, one cycle after the address."""

import random

import cocotb

from esbflow.engine_config import AXI_BEAT_BITS
from esbhw.engine.weight_slots import WeightSlots
from sim.benches.testbench import Testbench, config, join, port_write


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def gives_back_every_row_one_cycle_after_its_address(dut):
    size = config()
    tb = Testbench(dut, WeightSlots(size).signature)
    await tb.reset()
    rng = random.Random(7)
    parts = size.weight_path_beats
    beats = [rng.getrandbits(AXI_BEAT_BITS) for _ in range(size.weight_slots * size.tile_beats)]
    for address in rng.sample(range(len(beats)), len(beats)):
        tb.set(**port_write(size.weight_ports, address, beats[address]))
        await tb.tick()
    tb.set(**port_write(size.weight_ports, len(beats), 0))  # behind the last slot: flagged, not written
    await tb.tick()
    tb.set(write_valid=0)
    rows = [join(beats[i:i + parts], AXI_BEAT_BITS) for i in range(0, len(beats), parts)]
    for address in [*range(len(rows)), 0]:
        tb.set(read_address=address)
        await tb.tick()
        if address:
            assert tb.get("read_data") == rows[address - 1]
    assert tb.get("address_fault")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def every_slot_may_be_written_without_a_fault(dut):
    size = config()
    tb = Testbench(dut, WeightSlots(size).signature)
    await tb.reset()
    tb.set(**port_write(size.weight_ports, size.weight_slots * size.tile_beats - 1, 0))
    await tb.tick(2)
    assert not tb.get("address_fault")
