"""Number formats against their definition, an outside truth (ml_dtypes) and exact fractions."""

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esbflow.numbers import ESB, Binary, Codebook, Format, Signed, Unsigned, pack, unpack

ALL_ESB = [ESB(b, k, signed) for signed in (True, False) for b in range(1 + signed, 9)
           for k in range(0, b - signed) if k + 2 ** (b - signed - k) - 1 <= 31]
SMALL = ALL_ESB + [Signed(b) for b in range(1, 9)] + [Unsigned(b) for b in range(1, 9)] + [
    Binary(), Codebook((-3, -1, 1, 3)), Codebook((-7, 0, 2, 3, 11)), Codebook((5,)), Codebook((-2000, 3, 70000))]
formats = st.sampled_from(SMALL)


def nearest_by_search(format, x: Fraction) -> int:
    return max((-abs(x - int(level)), int(level)) for level in format.levels)[1]


@pytest.mark.parametrize("format", ALL_ESB, ids=str)
def test_every_esb_code_follows_the_definition(format):
    k, e = format.significand, format.exponent_bits
    for code in range(1 << format.bits):
        E, F = code >> k & ((1 << e) - 1), code & ((1 << k) - 1)
        magnitude = F if E == 0 else (2**k + F) << (E - 1)
        negative = format.signed and code >> (format.bits - 1)
        assert format.decode(code) == (-magnitude if negative else magnitude)


@pytest.mark.parametrize("format", SMALL, ids=str)
def test_codes_and_levels_match_one_to_one_and_minus_zero_is_never_written(format):
    levels = format.levels
    codes = format.encode(levels)
    assert len(set(codes.tolist())) == len(levels) and codes.max() < format.codes
    assert np.array_equal(format.decode(codes), levels)
    assert (format.min, format.max, format.signed) == (levels[0], levels[-1], bool(levels[0] < 0))
    if isinstance(format, ESB) and format.signed:
        assert format.decode(1 << (format.bits - 1)) == 0
        assert (1 << (format.bits - 1)) not in codes
        assert len(levels) == 2**format.bits - 1


@pytest.mark.parametrize("format", SMALL, ids=str)
def test_both_sides_of_every_tie_round_correctly(format):
    levels = [int(level) for level in format.levels]
    for low, high in itertools.pairwise(levels):
        for s in (1, 2, 5, 20):
            tie = (low + high) << (s - 1)
            assert format.round_shift(np.array([tie, tie - 1]), s).tolist() == [high, low]
        middle = (low + high) / 2
        assert format.nearest([middle, np.nextafter(middle, -np.inf)]).tolist() == [high, low]
    assert format.round_shift(np.array([-(2**62), 2**62]), 0).tolist() == [levels[0], levels[-1]]
    assert format.nearest([-np.inf, np.inf]).tolist() == [levels[0], levels[-1]]


@pytest.mark.parametrize("value, rounded", [(2.5, 3), (5.0, 6), (-2.5, -2), (7.0, 8), (-7.0, -6), (10, 12), (90.0, 12)])
def test_esb41_rounding_table_of_the_documentation(value, rounded):
    assert ESB(4, 1).nearest(value) == rounded


@given(formats, st.integers(-(2**50), 2**50), st.integers(0, 40))
def test_round_shift_is_the_nearest_level_ties_up(format, t, s):
    assert format.round_shift(t, s) == nearest_by_search(format, Fraction(t, 2**s))


@given(formats, st.integers(-300, 300), st.integers(0, 8))
def test_round_shift_near_zero_is_the_nearest_level_ties_up(format, t, s):
    assert format.round_shift(t, s) == nearest_by_search(format, Fraction(t, 2**s))


@given(formats, st.floats(-1e6, 1e6))
def test_nearest_real_is_the_nearest_level_ties_up(format, x):
    assert format.nearest(x) == nearest_by_search(format, Fraction(x))


@given(st.sampled_from([Signed(16), Signed(32), Unsigned(32), Unsigned(17)]), st.integers(-(2**60), 2**60),
       st.integers(0, 40))
def test_wide_linear_formats_follow_the_closed_form(format, t, s):
    rounded = (t + (1 << (s - 1))) >> s if s else t
    assert format.round_shift(t, s) == min(max(rounded, format.min), format.max)
    level = int(format.round_shift(t, s))
    assert format.decode(format.encode(level)) == level


@given(formats)
def test_text_reads_back(format):
    assert Format.parse(str(format)) == format and hash(Format.parse(str(format))) == hash(format)


@pytest.mark.parametrize("ours, theirs, factor", [
    (ESB(4, 1), ml_dtypes.float4_e2m1fn, 2), (ESB(6, 3), ml_dtypes.float6_e2m3fn, 8),
    (ESB(6, 2), ml_dtypes.float6_e3m2fn, 16)])
def test_ocp_small_floats_are_esb(ours, theirs, factor):
    codes = np.arange(1 << ours.bits, dtype=np.uint8)
    assert np.array_equal(ours.decode(codes), codes.view(theirs).astype(np.float64) * factor)


def test_ends_of_the_family_are_linear_and_powers_of_two():
    assert ESB(5, 3).levels.tolist() == list(range(-15, 16))
    assert ESB(4, 3, signed=False).levels.tolist() == list(range(16))
    assert ESB(4, 0, signed=True).levels.tolist()[7:] == [0, 1, 2, 4, 8, 16, 32, 64]
    assert ESB(4, 1).levels.tolist()[7:] == [0, 1, 2, 3, 4, 6, 8, 12]


def test_shift_may_differ_per_channel():
    t = np.array([[5, 5], [6, 6]])
    assert Unsigned(4).round_shift(t, np.array([[0], [2]])).tolist() == [[5, 5], [2, 2]]


@given(st.lists(st.integers(0, 15)))
def test_packed_codes_read_back(codes):
    packed = pack(np.array(codes, dtype=np.int64))
    assert len(packed) == (len(codes) + 1) // 2 and unpack(packed, len(codes)).tolist() == codes


def test_formats_cannot_be_changed():
    with pytest.raises(AttributeError):
        ESB(4, 1).bits = 5
    with pytest.raises(ValueError, match="read-only"):
        ESB(4, 1).levels[0] = 5


@pytest.mark.parametrize("make, error, message", [
    (lambda: ESB(4, 3), ValueError, r"^significand must be in 0..2 for 4 bits, not 3$"),
    (lambda: ESB(4.0, 1), TypeError, r"^bits must be an integer, not 4.0$"),
    (lambda: ESB(8, 0), ValueError, r"^esb8.0 has levels of 127 bits; use a larger significand so that 31 are enough$"),
    (lambda: Signed(33), ValueError, r"^bits must be in 1..32, not 33$"),
    (lambda: Codebook((1, 1)), ValueError, r"^codebook values must ascend: \(1, 1\)$"),
    (lambda: Codebook(()), ValueError, r"^a codebook must hold 1..65536 values, not 0$"),
    (lambda: Format.parse("fp4"), ValueError, r"^'fp4' is not a format; write esb4.1, .*$"),
    (lambda: Format.parse(4), TypeError, r"^a format is written as text such as 'esb4.1', not 4$"),
    (lambda: ESB(4, 1).encode([5]), ValueError, r"^5 is not a level of esb4.1; round it first$"),
    (lambda: ESB(4, 1).decode([16]), ValueError, r"^esb4.1 has codes 0..15, not 16$"),
    (lambda: Signed(8).round_shift([1.5], 0), TypeError, r"^t must be integers, not float64$"),
    (lambda: Signed(8).round_shift([1], -1), ValueError, r"^s must be in 0..62, not -1..-1$"),
    (lambda: Signed(8).nearest([np.nan]), ValueError, r"^cannot round NaN to a level; remove it first$"),
    (lambda: Signed(32).levels, ValueError, r"^s32 has too many levels to list; use min and max$"),
    (lambda: pack([16]), ValueError, r"^codes must be in 0..15 to be packed, not 16..16$"),
    (lambda: unpack([1], 3), ValueError, r"^count must be in 0..2, not 3$"),
])
def test_nonsense_is_refused_with_a_clear_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()
