"""Weights to codes: exact splitting into what one pass holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esbflow.compiler.digits import split_weights
from esbflow.compiler.errors import CompileError
from esbflow.numbers import ESB


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=40), st.integers(1, 16), st.booleans())
def test_split_weights_add_up_exactly(values, bits, with_zero):
    weight = np.array([v >> (16 - bits) for v in values])
    digits = split_weights(weight, with_zero=with_zero)
    assert np.array_equal(sum(d.values << d.shift for d in digits), weight)
    for digit in digits:
        assert np.abs(digit.book).max() <= 15 and len(digit.book) == 16 and digit.codes.max() < 16
        assert digit.book[digit.padding_code] == 0 or not with_zero
        assert digit.book[digit.padding_code] >= 0


@pytest.mark.parametrize("values, count", [
    (ESB(4, 1).levels, 1), (range(-8, 8), 1), (range(-15, 16, 2), 1), (range(-7, 8), 1), ([0], 1), ([-15, 15], 1),
    (range(-15, 16), 2), ([-128, 127], 2), ([16], 2), (ESB(6, 3).levels, 2), ([-129], 3), ([2047, -2048], 3),
    ([-32768, 32767], 4)])
def test_weights_take_as_few_digits_as_their_range_allows(values, count):
    weight = np.array(list(values))
    digits = split_weights(weight)
    assert len(digits) == count and np.array_equal(sum(d.values << d.shift for d in digits), weight)


def test_weights_wider_than_16_bits_are_refused():
    with pytest.raises(CompileError, match=r"^layer fc: weights 0..32768 need more than 4 digits of an engine with weights "
                                           r"-15..15; use fewer weight bits, or a wider engine$"):
        split_weights(np.array([0, 32768]), "layer fc")


@given(st.lists(st.integers(-(2**11), 2**11 - 1), min_size=1, max_size=40), st.integers(1, 12), st.booleans(),
       st.sampled_from([(-8, 7, 4), (-2, 1, 2), (-1, 1, 1), (-4, 3, 3), (-7, 7, 3), (-12, 12, 4), (-3, 3, 2)]))
def test_narrow_engines_take_digits_of_their_own_range(values, bits, with_zero, engine):
    low, high, radix_bits = engine
    weight = np.array([v >> (12 - bits) for v in values])
    try:
        digits = split_weights(weight, "w", with_zero, low, high, radix_bits)
    except CompileError:
        assert bits + 1 > radix_bits * 4 or bits + 1 > 3 * radix_bits
        return
    assert np.array_equal(sum(d.values << d.shift for d in digits), weight)
    for digit in digits:
        assert low <= digit.values.min() and digit.values.max() <= high and digit.codes.max() < 16


@pytest.mark.parametrize("value, shifts", [(7, [0]), (119, [0, 4]), (120, [0, 4, 8]), (-128, [0, 4])])
def test_balanced_digits_reach_less_far_up_than_down(value, shifts):
    """-8..7 in each of two digits are -136..119: 120 needs a third."""
    digits = split_weights(np.array([value, -7, 0, 5, *list(range(-100, -80))]), low=-8, high=7)
    assert [digit.shift for digit in digits][-1] == shifts[-1] or value == 7
