"""Weights to codes: exact splitting into what one pass holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esbflow.compiler.digits import ones_complement_loss, split_weights
from esbflow.compiler.errors import CompileError
from esbflow.graph.random import random_weights
from esbflow.numbers import ESB
from tests.sw.graph_nodes import seeds


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=40), st.integers(1, 16), st.booleans())
def test_split_weights_add_up_exactly(values, bits, with_zero):
    weight = np.array([v >> (16 - bits) for v in values])
    digits = split_weights(weight, with_zero=with_zero)
    assert np.array_equal(sum(d.values << (4 * d.position) for d in digits), weight)
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
    assert len(digits) == count and np.array_equal(sum(d.values << (4 * d.position) for d in digits), weight)


def test_weights_wider_than_16_bits_are_refused():
    with pytest.raises(CompileError, match=r"^layer fc: weights 0..32768 need more than 16 bits$"):
        split_weights(np.array([0, 32768]), "layer fc")


def test_codebook_field_holds_sign_and_magnitude_of_each_entry():
    (digit,) = split_weights(np.array([-12, 0, 7]))
    # Entry 0 is -12 (sign 1, magnitude 1100), entry 1 is 0, entry 2 is 7.
    assert digit.codebook == 0b11100 | 0b00000 << 5 | 0b00111 << 10
    assert digit.codes.tolist() == [0, 1, 2]


@given(seeds, st.sampled_from(["esb4.1", "s8", "half", "s6"]), st.sampled_from([(0, 16), (-8, 8)]))
def test_ones_complement_loss_is_what_the_array_lacks(seed, kind, activations):
    """The array adds weight * a for positive weights and |weight| * ~a for negative ones."""
    random = np.random.default_rng(seed)
    weight = random_weights(random, (3, 7), kind)
    a = random.integers(*activations, 7)
    array = lack = 0
    for digit in split_weights(weight):
        values = digit.values
        one = np.where(values < 0, -values * ~a, values * a).sum(axis=1)
        array, lack = array + (one << (4 * digit.position)), lack + ones_complement_loss(digit).sum(axis=1)
    assert np.array_equal(array + lack, weight @ a)
