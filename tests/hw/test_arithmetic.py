"""The arithmetic blocks in Amaranth's own simulator, against exact integers."""

import random

import pytest
from amaranth.sim import Simulator

from esbhw.arithmetic.shift_add import ACTIVATION_BITS, MAGNITUDE_BITS, WEIGHT_BITS, ShiftAddDot

def stream(component, latency: int, inputs: list, output) -> list:
    """Give one dictionary of input values a cycle; returns `output`, `latency` cycles later each."""
    results = []

    async def bench(ctx):
        for number, values in enumerate(inputs + [{}] * latency):
            for name, value in values.items():
                ctx.set(getattr(component, name), value)
            if number >= latency:
                results.append(ctx.get(output))
            await ctx.tick()

    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return results


def packed(values, width: int) -> int:
    return sum((int(value) & ((1 << width) - 1)) << (width * i) for i, value in enumerate(values))


# -- ShiftAddDot -------------------------------------------------------------------------------------------------
def weight_digit(value: int) -> int:
    return abs(value) | (value < 0) << MAGNITUDE_BITS


def dot_cases(rows: int, count: int):
    rng = random.Random(rows)
    extremes = [(a, w) for a in (-16, -1, 0, 15) for w in (-15, -1, 0, 15)]
    yield from (([a] * rows, [w] * rows) for a, w in extremes)
    for r in range(rows):  # one lane alone: no lane is forgotten or counted twice
        yield [-16 if i == r else 0 for i in range(rows)], [15 if i == r else 0 for i in range(rows)]
    for _ in range(count):
        yield [rng.randrange(-16, 16) for _ in range(rows)], [rng.randrange(-15, 16) for _ in range(rows)]


@pytest.mark.parametrize("rows, latency", [(4, 2), (8, 3), (16, 3), (64, 4)])
def test_a_dot_product_is_exact_but_for_the_one_s_complements(rows, latency):
    assert ShiftAddDot.latency(rows) == latency
    dot = ShiftAddDot(rows)
    cases = list(dot_cases(rows, 60 if rows == 64 else 300))
    results = stream(dot, latency, [
        {"activations": packed(a, ACTIVATION_BITS), "weights": packed(map(weight_digit, w), WEIGHT_BITS)}
        for a, w in cases], dot.o)
    for (a, w), result in zip(cases, results):
        loss = sum(-weight for weight in w if weight < 0)
        assert result + loss == sum(x * y for x, y in zip(a, w)), (a, w)


def test_a_minus_zero_weight_counts_as_zero():
    dot = ShiftAddDot(4)
    inputs = [{"activations": packed([7, -3, 15, -16], ACTIVATION_BITS), "weights": packed([16] * 4, WEIGHT_BITS)}]
    assert stream(dot, ShiftAddDot.latency(4), inputs, dot.o) == [0]
