"""What the arrays compute, counted bit by bit, against the offsets and bounds that compiler and gateware share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import array_offset, book_entry, dot_bits, dot_largest, weight_bits
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
