"""What the arrays compute, counted bit by bit, against the offsets and bounds that compiler and gateware share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import (
    TAPS,
    array_offset,
    book_entry,
    channel_bits,
    channel_largest,
    channel_offset,
    channel_planes,
    channel_range,
    dot_bits,
    dot_largest,
    tap_entry,
    tap_value,
    weight_bits,
)
from tests.sw.graph_nodes import seeds

ARRAYS = {
    "magnitude": dict(), "magnitude3": dict(weight_min=-7, weight_max=7), "complement": dict(weight_min=-8, weight_max=7),
    "complement2": dict(weight_min=-2, weight_max=1), "table": dict(array="table"),
    "table4": dict(array="table", weight_min=-8, weight_max=7), "ternary": dict(array="table", weight_min=-1, weight_max=1),
}


def config(kind: str, rows: int = 8) -> EngineConfig:
    return EngineConfig(kind, rows=rows, cols=rows, **ARRAYS[kind])


def counted(size: EngineConfig, tile, x) -> np.ndarray:
    """The dots of unsigned digits x, by the method of the array: planes of bits, complements, tables."""
    result = []
    for weights in tile:
        total = 0
        if size.array == "table":
            for p in range(4):
                for g in range(0, size.rows, 4):
                    chosen = [w for w, a in zip(weights[g:g + 4], x[g:g + 4], strict=True) if a >> p & 1]
                    total += (-4 * size.weight_min + sum(chosen)) << p
        else:
            planes, magnitude = size.weight_planes
            top_ones = (1 << (size.rows * 15).bit_length()) - 1
            for j in range(planes):
                word = [abs(w) if magnitude else w & ((1 << planes) - 1) for w in weights]
                plane = sum((15 - a if magnitude and w < 0 else a) * (v >> j & 1)
                            for w, v, a in zip(weights, word, x, strict=True))
                total += (top_ones - plane if not magnitude and j == planes - 1 else plane) << j
        result.append(int(total))
    return np.array(result)


@given(seeds, st.sampled_from(sorted(ARRAYS)), st.booleans(), st.sampled_from([4, 8, 16]))
def test_an_array_s_dots_are_the_true_ones_and_a_constant_of_the_tile(seed, kind, signed, rows):
    random, size = np.random.default_rng(seed), config(kind, rows)
    tile = random.integers(size.weight_min, size.weight_max + 1, (size.cols, rows))
    digits = random.integers(-8, 8, rows) if signed else random.integers(0, 16, rows)
    dots = counted(size, tile.tolist(), (digits + 8 if signed else digits).tolist())
    assert np.array_equal(dots, tile @ digits + array_offset(size, tile, signed))
    assert 0 <= dots.min() and dots.max() <= dot_largest(size) < 1 << dot_bits(size)


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_the_largest_dot_is_reached_or_nearly(kind):
    size = config(kind)
    extremes = [np.full((8, 8), w) for w in (size.weight_min, 0, size.weight_max)]
    largest = max(int(counted(size, tile.tolist(), [a] * 8).max()) for tile in extremes for a in (0, 15))
    assert largest.bit_length() == dot_bits(size)


@pytest.mark.parametrize("kind", sorted(ARRAYS))
def test_book_entries_are_distinct_and_fit(kind):
    size = config(kind)
    entries = [book_entry(size, w) for w in range(size.weight_min, size.weight_max + 1)]
    assert len(set(entries)) == len(entries) and max(entries) < 1 << weight_bits(size) <= 32


UNITS = {"magnitude": (-15, 15), "uneven": (-12, 7), "complement": (-8, 7), "two-bits": (-2, 1), "ternary": (-1, 1)}


def unit(kind: str) -> EngineConfig:
    low, high = UNITS[kind]
    return EngineConfig(kind, rows=8, cols=16, array="table", weight_min=low, weight_max=high, channel_unit=8)


@given(seeds, st.sampled_from(sorted(UNITS)), st.booleans())
def test_a_channel_s_sum_is_the_true_one_and_a_constant_of_its_taps(seed, kind, signed):
    random, size = np.random.default_rng(seed), unit(kind)
    low, high = channel_range(size)
    assert low <= size.weight_min and size.weight_max <= high
    taps = random.choice((low, 0, high, int(random.integers(low, high + 1))), (1, TAPS))
    digits = random.integers(-8, 8, TAPS) if signed else random.choice((0, 15, int(random.integers(16))), TAPS)
    planes, magnitude = channel_planes(size)
    ones = (1 << (TAPS * 15).bit_length()) - 1
    total = 0
    for j in range(planes):
        words = [abs(int(w)) if magnitude else int(w) & (1 << planes) - 1 for w in taps[0]]
        column = (digits + 8 if signed else digits).tolist()
        plane = sum((15 - a if magnitude and w < 0 else a) * (v >> j & 1) for w, v, a in zip(taps[0], words, column, strict=True))
        total += (ones - plane if not magnitude and j == planes - 1 else plane) << j
    assert total == int(taps[0] @ digits) + channel_offset(size, taps, signed)[0]
    assert 0 <= total <= channel_largest(size) < 1 << channel_bits(size)


@pytest.mark.parametrize("kind", sorted(UNITS))
def test_tap_entries_are_distinct_and_can_be_read_back(kind):
    size = unit(kind)
    low, high = channel_range(size)
    entries = [int(tap_entry(size, tap)) for tap in range(low, high + 1)]
    assert len(set(entries)) == len(entries) and max(entries) < 32
    assert [tap_value(size, entry) for entry in entries] == list(range(low, high + 1))
