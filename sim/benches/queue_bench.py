"""InstructionQueue: in order, `depth` places, offered FIFO_LATENCY cycles after it was taken."""

import random

import cocotb

from esbflow import instructions
from esbflow.engine_facts import FIFO_LATENCY, FIFO_PLACE_CYCLES
from esbhw.engine.queue import InstructionQueue
from sim.benches.testbench import Sink, Source, Testbench, parameters


def testbench(dut):
    return Testbench(dut, InstructionQueue("PASS", parameters()["depth"]).signature)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(rates=[(1.0, 0.3), (0.3, 1.0), (0.6, 0.6)])
async def keeps_the_order_whatever_the_stalls(dut, rates):
    tb = testbench(dut)
    await tb.reset()
    rng = random.Random(1)
    used = max(low + width for low, width in instructions.layout("PASS").values())
    words = [rng.getrandbits(used) for _ in range(60)]
    sink = Sink(tb, "o", rate=rates[1], seed=2)
    await Source(tb, "i", rate=rates[0], seed=3).send(words)
    await sink.wait_for(len(words))
    assert sink.payloads == words


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def holds_depth_instructions_and_offers_the_first_at_once(dut):
    tb = testbench(dut)
    await tb.reset()
    depth = parameters()["depth"]
    tb.set(i__valid=1, i__payload=5)
    for number in range(depth):
        await tb.tick()
        assert tb.get("i__ready") and tb.get("o__valid") == (number >= FIFO_LATENCY)
    await tb.tick()
    assert not tb.get("i__ready") and tb.get("o__payload") == 5


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_place_that_was_read_comes_back_in_its_time(dut):
    tb = testbench(dut)
    await tb.reset()
    tb.set(i__valid=1, i__payload=7)
    while True:
        await tb.tick()
        if not tb.get("i__ready"):
            break
    tb.set(o__ready=1)
    await tb.tick()
    tb.set(o__ready=0)
    for cycle in range(1, 6):
        await tb.tick()
        assert tb.get("i__ready") == (cycle == FIFO_PLACE_CYCLES)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def one_a_cycle_goes_through(dut):
    tb = testbench(dut)
    await tb.reset()
    if parameters()["depth"] < FIFO_LATENCY + FIFO_PLACE_CYCLES:
        return
    sink = Sink(tb, "o")
    await Source(tb, "i").send(range(40))
    await sink.wait_for(40)
    cycles = [cycle for cycle, _ in sink.items]
    assert cycles == list(range(cycles[0], cycles[0] + 40)) and sink.payloads == list(range(40))
