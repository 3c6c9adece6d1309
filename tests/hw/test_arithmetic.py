"""The arithmetic blocks in Amaranth's own simulator, against exact integers."""

import random

import numpy as np
import pytest
from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from esbflow.compiler.lower import rounding_fields
from esbflow.numbers import ESB, Signed, Unsigned
from esbhw.arithmetic.multiply import add_level, partial_products, small_product
from esbhw.arithmetic.requantize import CONSTANTS, FORMAT, RequantizeLane

ACCUMULATOR_WIDTH, SUM_WIDTH = 28, 42


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


# -- multiply ----------------------------------------------------------------------------------------------------
class Products(wiring.Component):
    """All of multiply.py on small operands."""

    def __init__(self):
        super().__init__({
            "a": In(signed(5)), "b": In(signed(4)), "product": Out(signed(12)), "registered": Out(signed(12)),
            "u": In(5), "v": In(4), "small": Out(9)})

    def elaborate(self, platform):
        m = Module()
        rows = partial_products(self.a, self.b)
        m.d.comb += [self.product.eq(sum(rows[1:], start=rows[0])), self.small.eq(small_product(self.u, self.v))]
        rows = add_level(m, rows, "comb", operands=2)
        rows = add_level(m, rows, "sync", "sync", operands=3)
        assert len(rows) == 1
        held = Signal.like(rows[0])
        m.d.comb += [held.eq(rows[0]), self.registered.eq(held)]
        return m


def test_every_product_of_small_operands_is_exact():
    pairs = [(a, b) for a in range(-16, 16) for b in range(-8, 8)]
    inputs = [{"a": a, "b": b, "u": a + 16, "v": b + 8} for a, b in pairs]
    products = Products()
    assert stream(products, 0, inputs, products.product) == [a * b for a, b in pairs]
    assert stream(products, 0, inputs, products.small) == [(a + 16) * (b + 8) for a, b in pairs]
    assert stream(products, 1, inputs, products.registered) == [a * b for a, b in pairs]


# -- RequantizeLane ----------------------------------------------------------------------------------------------
LINEAR = [Unsigned(bits) for bits in range(1, 9)] + [Signed(bits) for bits in range(2, 33)] + [
    Unsigned(16), Unsigned(32)]
NON_LINEAR = [
    ESB(bits, k, is_signed) for is_signed in (True, False) for bits in range(2, 9) for k in range(bits - is_signed)
    if bits - is_signed - k <= 3 and k + (1 << bits - is_signed - k) - 1 + is_signed <= 8]
"""All ESB formats whose levels fit in 8 bits: at most 3 exponent bits."""



def requantized(cases: list) -> list:
    """Levels of (acc, residual, m, n, b, s, format) tuples, one a cycle."""
    lane = RequantizeLane(ACCUMULATOR_WIDTH, SUM_WIDTH)
    return stream(lane, RequantizeLane.LATENCY, [
        {"valid": 1, "acc": acc, "residual": r, "constants": CONSTANTS.const({"m": m, "n": n, "b": b, "s": s}),
         "format": FORMAT.const(rounding_fields(form))}
        for acc, r, m, n, b, s, form in cases], lane.level)


def expected(cases: list) -> list:
    return [int(form.round_shift(np.int64(acc * m + r * n + b), np.int64(s))) for acc, r, m, n, b, s, form in cases]


def test_the_formats_under_test_are_those_that_fit_eight_bits():
    assert {"esb4.1", "uesb4.2", "esb3.0", "esb8.6", "uesb8.7", "esb6.3", "uesb4.1"} <= set(map(str, NON_LINEAR))
    assert all(rounding_fields(form)["octaves"] <= 6 for form in NON_LINEAR)


@pytest.mark.parametrize("steps", [1, 2], ids=["halves", "quarters"])
def test_every_tie_of_every_small_format_goes_up(steps):
    """All t around each level: between them lie all ties, and t beyond both ends clamps."""
    forms = NON_LINEAR + [form for form in LINEAR if form.bits <= 6]
    if steps > 1:
        forms = [form for form in forms if form.max <= 31]
    cases = [(t, 0, 1, 0, 0, steps, form) for form in forms
             for t in range((form.min - 2) << steps, (form.max + 2 << steps) + 1)]
    assert requantized(cases) == expected(cases)


def test_linear_ends_clamp_in_every_format():
    cases = []
    for form in LINEAR:
        for edge in (form.min, form.max):
            for t in (2 * edge - 2, 2 * edge - 1, 2 * edge, 2 * edge + 1, 2 * edge + 2):
                cases.append((0, 0, 0, 0, t, 1, form))
    assert requantized(cases) == expected(cases)


def random_case(rng: random.Random):
    """Sums whose rounded value lies about the format, over the whole range of the operands."""
    form = rng.choice(LINEAR + NON_LINEAR)
    acc = rng.randrange(-1 << ACCUMULATOR_WIDTH - 1, 1 << ACCUMULATOR_WIDTH - 1) >> rng.randrange(0, 24)
    m, n = (rng.randrange(-2048, 2048) >> rng.randrange(0, 11) for _ in range(2))
    r, b = rng.randrange(-256, 256), rng.randrange(-1 << 39, 1 << 39) >> rng.randrange(0, 39)
    total = acc * m + r * n + b
    return acc, r, m, n, b, min(62, max(0, abs(total).bit_length() - rng.randrange(0, form.bits + 4))), form


def test_random_sums_round_as_the_format_does():
    rng = random.Random(5)
    cases = [random_case(rng) for _ in range(4000)]
    assert requantized(cases) == expected(cases)


def test_the_largest_sums_do_not_overflow():
    acc, b = 1 << ACCUMULATOR_WIDTH - 1, 1 << 39
    corners = [(a, r, m, n, c, s, form) for a in (-acc, acc - 1) for r in (-256, 255) for m in (-2048, 2047)
               for n in (-2048, 2047) for c in (-b, b - 1) for s in (0, 1, 8, 39, 62)
               for form in (Signed(32), Unsigned(4), ESB(4, 1))]
    assert requantized(corners) == expected(corners)


def test_a_lane_holds_its_level_while_nothing_valid_comes():
    rng = random.Random(6)
    cases = [random_case(rng) for _ in range(300)]
    valid = [rng.random() < 0.5 for _ in cases]
    lane = RequantizeLane(ACCUMULATOR_WIDTH, SUM_WIDTH)
    levels = stream(lane, RequantizeLane.LATENCY, [
        {"valid": given, "acc": acc, "residual": r, "constants": CONSTANTS.const({"m": m, "n": n, "b": b, "s": s}),
         "format": FORMAT.const(rounding_fields(form))}
        for given, (acc, r, m, n, b, s, form) in zip(valid, cases)], lane.level)
    held = 0
    for given, level, right in zip(valid, levels, expected(cases)):
        held = right if given else held
        assert level == held
