"""MapMemory: every beat in order whatever the reader does, the first one 6 cycles after its order, then one a cycle."""

import random

import cocotb

from esbflow.engine_facts import MAP_READ_CYCLES, OUTSTANDING_READS
from esbhw.engine.map_memory import MapMemory
from sim.benches.testbench import Testbench, pack, parameters

ORDER_CYCLES = 1
"""From the cycle in which a ReadPort takes a burst to its order here."""


async def testbench(dut):
    memory = MapMemory(parameters()["beats"])
    tb = Testbench(dut, memory.signature)
    await tb.reset()
    content = [random.Random(place).getrandbits(128) for place in range(parameters()["beats"])]
    for place, data in enumerate(content):
        tb.set(write=1, place=place, write_data=data)
        await tb.tick()
    tb.set(write=0, write_data=1)
    return tb, content, memory.order.shape()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_first_beat_comes_in_its_time_and_then_one_a_cycle(dut):
    tb, content, layout = await testbench(dut)
    orders = [(5, 3), (0, 20), (40, 1), (41, 7)]
    tb.set(taken=1)
    found = []
    for cycle in range(60):
        place, length = orders[cycle] if cycle < len(orders) else (0, 0)
        tb.set(order_valid=cycle < len(orders), order=pack(layout, place=place, length=length))
        await tb.tick()
        if tb.get("valid"):
            found.append((cycle, tb.get("data")))
    beats = [content[place + beat] for place, length in orders for beat in range(length)]
    first = MAP_READ_CYCLES - ORDER_CYCLES
    assert first == 6, "the docstring says so"
    assert found == [(first + number, beat) for number, beat in enumerate(beats)]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(rate=[0.2, 0.6, 1.0])
async def no_beat_is_lost_while_the_reader_waits(dut, rate):
    tb, content, layout = await testbench(dut)
    rng = random.Random(3)
    waiting, found, expected = 0, [], []
    for _ in range(1500):
        order = rng.random() < 0.2 and waiting < OUTSTANDING_READS
        length = rng.randint(1, 32)
        place = rng.randrange(len(content) - length)
        taken = rng.random() < rate
        tb.set(order_valid=order, order=pack(layout, place=place, length=length), taken=taken)
        await tb.tick()
        if order:
            expected += [(content[place + beat], beat == length - 1) for beat in range(length)]
            waiting += 1
        if tb.get("valid") and taken:
            data, last = expected[len(found)]
            assert tb.get("data") == data
            found.append(data)
            waiting -= last
    assert len(found) > 200


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_beat_can_be_read_from_the_cycle_after_it_was_written(dut):
    tb, _, layout = await testbench(dut)
    tb.set(taken=1, order_valid=1, order=pack(layout, place=9, length=1))
    await tb.tick()
    tb.set(order_valid=0, write=1, place=9, write_data=0xABC)
    await tb.tick()
    tb.set(write=0)
    await tb.until("valid")
    assert tb.get("data") == 0xABC
