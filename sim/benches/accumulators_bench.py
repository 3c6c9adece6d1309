"""Accumulators: sums of shifted dots in two banks, the hazard distance, latency, overflow."""

import random

import cocotb

from esbflow import engine_facts as facts
from esbflow.engine_facts import ACCUMULATE_LATENCY, HAZARD_CYCLES
from esbhw.engine.accumulators import Accumulators, control_layout
from sim.benches.testbench import Testbench, config, cut, join, pack


class Bench(Testbench):
    """Drives one (control, dots) a cycle and keeps the sums that must come out."""

    def __init__(self, dut):
        self.size = config()
        self.dot_bits = facts.dot_bits(self.size)
        self.sums = {}
        super().__init__(dut, Accumulators(self.size).signature)

    async def add(self, index: int, dots: list, shift: int = 0, first: int = 0, bank: int = 0, post: int = 0):
        self.set(control=pack(control_layout(self.size), valid=1, first=first, bank=bank, index=index, shift=shift,
                              post=post), dots=join(dots, self.dot_bits))
        old = [0] * self.size.cols if first else self.sums[bank, index]
        self.sums[bank, index] = [a + (b << self.size.shift_step * shift) for a, b in zip(old, dots)]
        await self.tick()
        self.set(control=0)

    async def check(self, bank: int, indices) -> None:
        """Read a bank, one pixel a cycle, each one cycle after its address."""
        previous = None
        for index in [*indices, 0]:
            self.set(drain_bank=bank, drain_index=index)
            await self.tick()
            if previous is not None:
                assert cut(self.get("drain_data"), self.size.accumulator_width, self.size.cols) == self.sums[
                    bank, previous], previous
            previous = index

    def random_dots(self, rng):
        return [rng.randrange(1 << self.dot_bits) for _ in range(self.size.cols)]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sums_passes_of_any_length_from_the_hazard_distance_on(dut):
    tb = Bench(dut)
    await tb.reset()
    rng = random.Random(1)
    for pixels in (HAZARD_CYCLES, 4, 7, tb.size.accumulator_depth):
        for bank in range(2):
            for number in range(4):
                for index in range(pixels):
                    await tb.add(index, tb.random_dots(rng), shift=rng.randrange(tb.size.largest_shift + 1),
                                 first=number == 0, bank=bank)
            await tb.tick(ACCUMULATE_LATENCY)
            await tb.check(bank, range(pixels))
    assert not tb.get("overflow")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def drains_one_bank_while_the_other_is_added_to(dut):
    tb = Bench(dut)
    await tb.reset()
    rng = random.Random(2)
    for bank in range(2):
        for index in range(16):
            await tb.add(index, tb.random_dots(rng), first=1, bank=bank)
    await tb.tick(ACCUMULATE_LATENCY)

    async def more():
        for index in [*range(16)] * 2:
            await tb.add(index, tb.random_dots(rng), bank=1)

    adding = cocotb.start_soon(more())
    await tb.check(0, range(16))
    await adding
    await tb.tick(ACCUMULATE_LATENCY)
    await tb.check(1, range(16))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def posts_when_the_last_sum_can_be_read(dut):
    tb = Bench(dut)
    await tb.reset()
    rng = random.Random(3)
    await tb.add(5, tb.random_dots(rng), first=1, post=1)
    start = tb.cycle
    tb.set(drain_bank=0, drain_index=5)
    assert await tb.until("post") == start + ACCUMULATE_LATENCY
    # A drain begins in the cycle after the post at the earliest.
    await tb.check(0, [5])
    await tb.tick()
    assert not tb.get("post")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def flags_a_sum_that_leaves_its_width_and_not_one_that_just_fits(dut):
    tb = Bench(dut)
    await tb.reset()
    largest = (1 << tb.dot_bits) - 1
    await tb.add(0, [0] * tb.size.cols, first=1)
    left = (1 << tb.size.accumulator_width) - 1
    while left:
        step = tb.size.shift_step
        shift = next(k for k in reversed(range(tb.size.largest_shift + 1)) if left >> step * k)
        dot = min(left >> step * shift, largest)
        await tb.tick(HAZARD_CYCLES - 1)
        await tb.add(0, [0] * (tb.size.cols - 1) + [dot], shift=shift)
        left -= dot << step * shift
    await tb.tick(5)
    assert not tb.get("overflow")
    await tb.check(0, [0])
    await tb.add(0, [0] * (tb.size.cols - 1) + [1])
    await tb.tick(6)
    assert tb.get("overflow")
