"""Requantizer lanes in Amaranth's own simulator, against the graph's rule for rounding: every digit of every level."""

import itertools
import random
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.sim import Simulator
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow.compiler.lower import rounding_fields, storage_bits
from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbflow.numbers import ESB, Format, Signed, Unsigned
from esbflow.requantizer import RESIDUAL_BITS, Stages, fold
from esbhw.arithmetic.requantize import constants_layout
from esbhw.arithmetic.requantizer import Requantizer
from esbhw.arithmetic.requantizer_control import FORMAT

LINEAR = [Unsigned(bits) for bits in range(1, 33)] + [Signed(bits) for bits in range(2, 33)]
NON_LINEAR = [
    ESB(bits, k, is_signed) for is_signed in (True, False) for bits in range(2, 9) for k in range(bits - is_signed)
    if bits - is_signed - k <= 3 and k + (1 << bits - is_signed - k) - 1 <= 8]
"""All ESB formats whose levels are below 256: at most 3 exponent bits."""
FORMATS = LINEAR + NON_LINEAR
EARLY = 2
"""Cycles that a value's format comes before it."""


def config(**parts) -> EngineConfig:
    return EngineConfig("bench", rows=4, cols=4, **parts)


@dataclass(frozen=True)
class Case:
    """A value of one pixel and channel, and the digit of its level that is wanted."""

    form: Format
    digit: int = 0
    acc: int = 0
    r: int = 0
    m: int = 0
    n: int = 0
    b: int = 0
    s: int = 0
    first: bool = True
    last: bool = True

    @property
    def sum(self) -> int:
        return self.acc * self.m + self.r * self.n + self.b

    @property
    def level(self) -> int:
        return int(self.form.round_shift(np.int64(self.sum), np.int64(self.s)))


def every_digit(form: Format, **fields) -> list:
    return [Case(form, digit=digit, **fields) for digit in range(-(-storage_bits(form) // DIGIT_BITS))]


def digits(size: EngineConfig, cases: list, acc_signed: bool = True, gaps=None) -> list:
    """What a lane gives for each case that ends a window; the residual is two's complement of 8 bits.

    gaps : a random generator that lets cycles pass between values.
    """
    requantizer, layout = Requantizer(size, 1, acc_signed, EARLY), constants_layout(size)
    stages = Stages(size)
    cycles = []  # a case, or None, for each cycle
    for case in cases:
        while gaps and gaps.random() < 0.4:
            cycles.append(None)
        cycles.append(case)
    results = []

    async def bench(ctx):
        for number in range(-EARLY, len(cycles) + stages.count + 1):
            soon = number + EARLY
            if soon < len(cycles) and cycles[soon] is not None:
                ctx.set(requantizer.format, FORMAT.const(rounding_fields(cycles[soon].form)))
                ctx.set(requantizer.digit, cycles[soon].digit)
            case = cycles[number] if 0 <= number < len(cycles) else None
            ctx.set(requantizer.valid, int(case is not None))
            if case is not None:
                folded = fold(size, case.m, case.n, case.s, case.b, case.form, (RESIDUAL_BITS, True))
                constants = layout.const({name: int(value) for name, value in folded.items()})
                for name, value in dict(first=case.first, last=case.last, constants=constants.as_bits(),
                                        residual=case.r & 255).items():
                    ctx.set(getattr(requantizer, name), value)
            late = number - stages.product
            if 0 <= late < len(cycles) and cycles[late] is not None:
                ctx.set(requantizer.acc, cycles[late].acc & (1 << size.accumulator_width) - 1)
            if ctx.get(requantizer.done):
                results.append((number - stages.count, ctx.get(requantizer.digits)))
            await ctx.tick()

    simulator = Simulator(requantizer)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert [number for number, _ in results] == [k for k, case in enumerate(cycles) if case is not None and case.last]
    return [digit for _, digit in results]


def check(cases: list, size: EngineConfig | None = None, **options) -> None:
    """Cases are windows of one value."""
    found = digits(size or config(), cases, **options)
    assert len(found) == len(cases)
    for case, digit in zip(cases, found):
        assert digit == case.level >> 4 * case.digit & 15, case


def around_levels(form: Format, steps: int) -> list:
    """Of sums that are shifted by `steps`: levels and ties with their neighbours, and two beyond each end."""
    levels = [int(level) << steps for level in form.levels]
    ties = [(low + high) // 2 for low, high in itertools.pairwise(levels)]
    ends = [(form.min - 2) << steps, (form.max + 2) << steps]
    return sorted({at + away for at in levels + ties for away in (-1, 0, 1)} | {*ends})


def test_the_formats_under_test_are_those_that_fit():
    assert {"esb4.1", "uesb4.2", "esb3.0", "esb8.6", "uesb8.7", "esb6.3", "uesb4.1", "esb5.1"} <= set(map(str, NON_LINEAR))
    assert all(rounding_fields(form)["octaves"] <= 6 and form.max < 256 for form in NON_LINEAR)


@pytest.mark.parametrize("steps", [1, 2], ids=["halves", "quarters"])
def test_every_tie_of_every_small_format_goes_up(steps):
    """Each level, each tie between two of them, and what lies next to these; t beyond both ends clamps."""
    forms = [form for form in NON_LINEAR + LINEAR if form.bits <= (7 if steps == 1 else 5)]
    check([case for form in forms for t in around_levels(form, steps) for case in every_digit(form, acc=t, m=1, s=steps)])


def test_levels_that_need_no_shift_are_exact():
    check([case for form in NON_LINEAR + LINEAR[:8] for t in around_levels(form, 0) for case in every_digit(form, b=t)])


def test_the_ends_clamp_in_every_format_and_digit():
    check([case for form in FORMATS for edge in (form.min, form.max) for away in (-1, 0, 1) for s in (0, 1, 5)
           for case in every_digit(form, b=(2 * edge + away << s) >> 1, s=s)])


def test_the_largest_sums_do_not_overflow():
    top, b = 1 << 27, 1 << 39
    for acc_signed, ends in ((True, (-top, top - 1)), (False, (0, 2 * top - 1))):
        check([case for a in ends for r in (-128, 127) for m in (-2048, 2047) for n in (-2048, 2047) for c in (-b, b - 1)
               for s in (0, 8, 40) for form in (Signed(32), Unsigned(4), ESB(4, 1))
               for case in every_digit(form, acc=a, r=r, m=m, n=n, b=c, s=s)[-2:]], acc_signed=acc_signed)


@st.composite
def random_cases(draw, size: EngineConfig, acc_signed: bool):
    """Sums whose rounded value lies about the format, over the whole range of the operands."""
    def integer(low, high):
        return draw(st.integers(low, high)) >> draw(st.integers(0, high.bit_length()))

    width, shifts = size.accumulator_width, size.requantizer == "shift"
    form = draw(st.sampled_from(FORMATS if size.esb_output else LINEAR))
    acc = integer(-1 << width - 1, (1 << width - 1) - 1) if acc_signed else integer(0, (1 << width) - 1)
    offset = width if shifts else 39
    sign = st.sampled_from((-1, 1))
    case = Case(form, acc=acc, r=integer(-128, 127) if size.residual else 0,
                m=draw(sign) if shifts else integer(-2048, 2047),
                n=draw(st.sampled_from((-1, 0, 1))) << draw(st.integers(0, 10)) if shifts else integer(-2048, 2047),
                b=integer(-1 << offset, (1 << offset) - 1))
    s = min(40, max(0, abs(case.sum).bit_length() - draw(st.integers(0, form.bits + 3))))
    return [Case(**{**case.__dict__, "s": s, "digit": digit}) for digit in range(-(-storage_bits(form) // DIGIT_BITS))]


@pytest.mark.parametrize("parts, acc_signed", [
    ({}, True), ({}, False), ({"residual": False}, False), ({"esb_output": False}, True),
    ({"residual": False, "esb_output": False, "accumulator_width": 24}, False), ({"accumulator_width": 16}, True),
    ({"accumulator_width": 32}, False), ({"accumulator_width": 29, "residual": False}, True),
    ({"requantizer": "shift"}, True), ({"requantizer": "shift"}, False),
    ({"requantizer": "shift", "residual": False, "accumulator_width": 20}, False),
    ({"requantizer": "shift", "esb_output": False, "accumulator_width": 16}, True)])
def test_random_sums_round_as_the_format_does(parts, acc_signed):
    size = config(**parts)

    @settings(max_examples=4, deadline=None, database=None)
    @given(st.lists(random_cases(size, acc_signed), min_size=30, max_size=60))
    def run(batches):
        check([case for batch in batches for case in batch], size, acc_signed=acc_signed)
    run()


@pytest.mark.parametrize("form", ["s16", "u32", "esb4.1", "s4", "u8"])
def test_a_window_gives_the_largest_level_in_every_digit(form):
    rng, form = random.Random(str(form)), Format.parse(form)
    windows = []
    for _ in range(60):
        fixed = dict(m=rng.randrange(-300, 300), n=rng.randrange(-300, 300), b=rng.randrange(-1 << 12, 1 << 12))
        values = [dict(acc=rng.randrange(-2000, 2000), r=rng.randrange(-128, 128)) for _ in range(rng.randrange(1, 6))]
        s = rng.randrange(max(1, 20 - form.bits))
        for digit in range(-(-storage_bits(form) // DIGIT_BITS)):
            windows.append([Case(form, digit, s=s, first=k == 0, last=k == len(values) - 1, **fixed, **value)
                            for k, value in enumerate(values)])
    found = digits(config(), [case for window in windows for case in window], gaps=rng)
    for window, digit in zip(windows, found, strict=True):
        assert digit == max(case.level for case in window) >> 4 * window[0].digit & 15, window
