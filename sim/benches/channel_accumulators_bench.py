"""Accumulators of an engine with a channel unit: its sums reach one block of columns, dots all of them."""

import random

import cocotb

from esbflow import engine_facts as facts
from esbhw.engine.accumulators import Accumulators, control_layout
from sim.benches.testbench import Testbench, config, cut, join, pack


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sums_of_either_kind_reach_their_columns(dut):
    size = config()
    tb = Testbench(dut, Accumulators(size).signature)
    await tb.reset()
    rng = random.Random(7)
    layout, width, pixels = control_layout(size), size.channel_unit, 4
    held = [None] * pixels
    passes = [(rng.randrange(2), rng.randrange(size.channel_blocks), k % 7 == 0, rng.randrange(size.largest_shift + 1))
              for k in range(60)]
    steps = [(channel, part, first, shift, index) for channel, part, first, shift in passes for index in range(pixels)]
    controls = [pack(layout, valid=1, first=int(first), index=index, shift=shift, channel=channel, window={"part": part})
                for channel, part, first, shift, index in steps]
    tb.set(ahead=controls[0])
    await tb.tick()
    for step, control, ahead in zip(steps, controls, [*controls[1:], 0]):
        tb.set(control=control, ahead=ahead)
        await feed(tb, size, rng, held, step)
    tb.set(control=0)
    await tb.tick(4)
    for index in range(pixels):
        tb.set(drain_index=index)
        await tb.tick(2)
        assert cut(tb.get("drain_data"), size.accumulator_width, size.cols) == held[index], index
    assert width < size.cols and not tb.get("overflow")


async def feed(tb, size, rng, held, step) -> None:
    """One cycle with random dots and sums; what the accumulators must then hold."""
    channel, part, first, shift, index = step
    dots = [rng.randrange(1 << facts.dot_bits(size)) for _ in range(size.cols)]
    sums = [rng.randrange(1 << facts.channel_bits(size)) for _ in range(size.channel_unit)]
    tb.set(dots=join(dots, facts.dot_bits(size)), sums=join(sums, facts.channel_bits(size)))
    if channel:
        start = part * size.channel_unit
        dots = [sums[c - start] if start <= c < start + size.channel_unit else 0 for c in range(size.cols)]
    old = [0] * size.cols if first or held[index] is None else held[index]
    held[index] = [a + (b << size.shift_step * shift) for a, b in zip(old, dots)]
    await tb.tick()
