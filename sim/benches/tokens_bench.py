"""Tokens: every semaphore counts alone, a post is seen TOKEN_CYCLES later, a count that leaves its range is kept."""

import random

import cocotb

from esbflow.engine_facts import TOKEN_CYCLES
from esbhw.engine.tokens import COUNT_BITS, NAMES, SEVERAL, Tokens
from sim.benches.testbench import Testbench


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def counts_posts_and_takes_of_all_semaphores_at_once(dut):
    tb = Testbench(dut, Tokens().signature)
    await tb.reset()
    rng = random.Random(3)
    counts, history = dict.fromkeys(NAMES, 0), []
    for cycle in range(400):
        # A taker has not more than it sees, and takes again when it sees what it left.
        shown = history[-TOKEN_CYCLES] if len(history) >= TOKEN_CYCLES else dict.fromkeys(NAMES, 0)
        moves = {}
        for name in NAMES:
            post = rng.randrange(2)
            amount = rng.randrange(1, shown[name] + 1 if name in SEVERAL else 2) if shown[name] else 0
            take = amount > 0 and cycle % TOKEN_CYCLES == 0 and rng.random() < 0.6
            tb.set(**{f"{name}__post": post, f"{name}__take": take})
            if name in SEVERAL:
                tb.set(**{f"{name}__amount": amount})
            moves[name] = post - (amount if take else 0)
        await tb.tick()
        for name in NAMES:
            if name in SEVERAL:
                assert tb.get(f"{name}__count") == shown[name]
            else:
                assert tb.get(f"{name}__available") == (shown[name] > 0)
        counts = {name: counts[name] + moves[name] for name in NAMES}
        history.append(counts)
    assert not tb.get("overflow")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def flags_a_take_of_more_than_there_is(dut):
    tb = Testbench(dut, Tokens().signature)
    await tb.reset()
    for name in ("stores", "weights_free"):
        await tb.reset()
        tb.set(**{f"{name}__take": 1, "stores__amount": 1})
        await tb.tick()
        tb.set(**{f"{name}__take": 0})
        await tb.tick(4)
        assert tb.get("overflow")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def flags_a_count_beyond_its_bits(dut):
    tb = Testbench(dut, Tokens().signature)
    await tb.reset()
    for name in ("weights_full", "stores"):
        await tb.reset()
        tb.set(**{f"{name}__post": 1})
        await tb.tick((1 << COUNT_BITS) - 1)
        tb.set(**{f"{name}__post": 0})
        await tb.tick(5)
        assert not tb.get("overflow")
        tb.set(**{f"{name}__post": 1})
        await tb.tick()
        tb.set(**{f"{name}__post": 0})
        await tb.tick(5)
        assert tb.get("overflow")
