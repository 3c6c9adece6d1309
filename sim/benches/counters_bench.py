"""Counters: each event its own 32-bit counter, cleared at the doorbell, still when nothing runs."""

import random

import cocotb

from esbflow.registers import COUNTERS
from esbhw.engine.counters import Counters
from sim.benches.testbench import Testbench, cut


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def each_event_counts_two_cycles_later_while_running(dut):
    tb = Testbench(dut, Counters().signature)
    await tb.reset()
    rng = random.Random(9)
    counts = [0] * len(COUNTERS)
    seen = [[*counts]]  # as they are two cycles later
    for _ in range(300):
        clear = rng.random() < 0.02
        running = clear or rng.random() < 0.8
        events = rng.getrandbits(len(COUNTERS))
        tb.set(clear=clear, running=running, events=events)
        await tb.tick()
        assert cut(tb.get("values"), 32, len(COUNTERS)) == seen[max(0, len(seen) - 2)]
        for i in range(len(COUNTERS)):
            happened = events >> i & 1
            counts[i] = happened if clear else counts[i] + (happened and running)
        seen.append([*counts])
