"""Watchdog: barks `limit` cycles after the last progress, never for a limit of zero."""

import cocotb

from esbhw.engine.faults import Watchdog
from sim.benches.testbench import Testbench


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def barks_after_as_many_still_cycles_as_the_limit_says(dut):
    tb = Testbench(dut, Watchdog(2).signature)
    for limit in (1, 2, 10, 100):
        await tb.reset()
        tb.set(limit=limit, progress=2)
        await tb.tick(3)
        last = tb.cycle
        tb.set(progress=0)
        assert await tb.until("bark", within=limit + 9) == last + limit + Watchdog.CYCLES
        await tb.tick()
        assert tb.get("bark"), "it does not stop by itself"
        tb.set(progress=1)
        await tb.tick(4)
        assert not tb.get("bark")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def never_barks_while_something_moves_in_time(dut):
    tb = Testbench(dut, Watchdog(2).signature)
    await tb.reset()
    tb.set(limit=5)
    for _ in range(50):
        tb.set(progress=1)
        await tb.tick()
        tb.set(progress=0)
        for _ in range(4):
            await tb.tick()
            assert not tb.get("bark")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_limit_of_zero_waits_for_ever(dut):
    tb = Testbench(dut, Watchdog(2).signature)
    await tb.reset()
    for _ in range(300):
        await tb.tick()
        assert not tb.get("bark")
