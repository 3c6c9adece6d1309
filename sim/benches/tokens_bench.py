"""Tokens: every semaphore counts alone, a post is seen in the next cycle, a count that leaves its range is kept."""

import random

import cocotb

from esbhw.engine.tokens import COUNT_BITS, NAMES, Tokens
from sim.benches.testbench import Testbench


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def counts_posts_and_takes_of_all_semaphores_at_once(dut):
    tb = Testbench(dut, Tokens().signature)
    await tb.reset()
    rng = random.Random(3)
    counts = dict.fromkeys(NAMES, 0)
    for _ in range(400):
        moves = {}
        for name in NAMES:
            post = rng.randrange(2)
            # Taking what is posted in the same cycle is not allowed: `count` does not show it yet.
            amount = rng.randrange(1, counts[name] + 1) if counts[name] else 0
            take = amount > 0 and rng.random() < 0.4
            tb.set(**{f"{name}__post": post, f"{name}__take": take, f"{name}__amount": amount})
            moves[name] = post - (amount if take else 0)
        await tb.tick()
        assert {name: tb.get(f"{name}__count") for name in NAMES} == counts
        counts = {name: counts[name] + moves[name] for name in NAMES}
    assert not tb.get("overflow")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def flags_a_take_of_more_than_there_is(dut):
    tb = Testbench(dut, Tokens().signature)
    await tb.reset()
    tb.set(stores__take=1, stores__amount=1)
    await tb.tick()
    tb.set(stores__take=0)
    await tb.tick(2)
    assert tb.get("overflow")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def flags_a_count_beyond_its_bits(dut):
    tb = Testbench(dut, Tokens().signature)
    await tb.reset()
    tb.set(weights_full__post=1)
    await tb.tick(1 << COUNT_BITS)
    assert not tb.get("overflow") and tb.get("weights_full__count") == (1 << COUNT_BITS) - 1
    await tb.tick(2)
    assert tb.get("overflow")
