"""Facts of the gateware's blocks that more than one part must know: latencies, widths, limits, what the arrays compute.

Gateware, cycle model, compiler and validator all read them here. Times are in clock cycles.
"""

import numpy as np

from esbflow.engine_config import DIGIT_BITS, TABLE_ENTRIES, TABLE_INPUTS, EngineConfig

# -- fetch and ports ----------------------------------------------------------------------------------------------
SPLIT_CYCLES = 2
"""BurstSplitter: accept to first burst, and burst to burst."""
BEAT_TO_WRITE = 1
"""ReadPort: bus to buffer."""
FETCH_BURST = 16
FETCH_BUFFERED = 32
"""Instructions that the fetch keeps ready; it never asks for one that it has no place for."""
OUTSTANDING_READS = 16
OUTSTANDING_WRITES = 64

# -- sequencer, buffers, accumulators -----------------------------------------------------------------------------
ACTIVATION_LATENCY = 2
"""ActivationBuffer: address to digits."""
ACCUMULATE_LATENCY = 2
"""Accumulators: dots to the sum that a drain may read."""
HAZARD_CYCLES = 3
"""The same accumulator can be added to again after this many cycles."""
SHIFT_DIGITS = 3
"""A pass is shifted left by 0 to 3 digits."""
CODES = 1 << DIGIT_BITS
"""Entries of a codebook."""
BOOKS = 2
"""Codebooks that an array holds."""
BOOK_CYCLES = CODES
"""A codebook is written one entry a cycle, before its tile is loaded."""
BOOK_ENTRY_BITS = 5

SIGN_OFFSET = 1 << DIGIT_BITS - 1
"""Signed digits enter an array in offset binary: with this added."""
LARGEST_DIGIT = (1 << DIGIT_BITS) - 1


def tree_levels(operands: int) -> int:
    """Register levels of a tree that adds three operands at a time.

    >>> [tree_levels(n) for n in (1, 2, 3, 4, 9, 10, 32)]
    [0, 1, 1, 2, 2, 3, 4]
    """
    levels = 0
    while operands > 1:
        operands, levels = -(-operands // 3), levels + 1
    return levels


def table_groups(config: EngineConfig) -> int:
    """Tables of each column and plane: one for every four rows."""
    return config.rows // TABLE_INPUTS


def table_largest(config: EngineConfig) -> int:
    """Largest entry of a table: entries are offset by -4 * weight_min, so that none is negative."""
    return TABLE_INPUTS * (config.weight_max - config.weight_min)


def array_latency(config: EngineConfig) -> int:
    """Cycles from activations to dots.

    Shift-add: a register for the signs, if weights are sign and magnitude; the leaf rows; a tree in each bit plane of the
    weights; the join of the planes. Table: the read; a tree in each bit plane of the activations; the join.
    """
    if config.array == "table":
        return 1 + tree_levels(table_groups(config)) + tree_levels(DIGIT_BITS)
    planes, magnitude = config.weight_planes
    return int(magnitude) + 1 + tree_levels(config.rows // 2) + tree_levels(planes)


def dot_largest(config: EngineConfig) -> int:
    """The largest dot, which is unsigned: see `array_offset`."""
    if config.array == "table":
        return table_groups(config) * table_largest(config) * LARGEST_DIGIT
    planes, magnitude = config.weight_planes
    plane = config.rows * LARGEST_DIGIT
    if magnitude:
        return plane * ((1 << planes) - 1)
    return plane * ((1 << planes - 1) - 1) + (_top_plane_ones(config) << planes - 1)


def _top_plane_ones(config: EngineConfig) -> int:
    """The all-ones word from which the sum of a two's complement's top plane is taken."""
    return (1 << (config.rows * LARGEST_DIGIT).bit_length()) - 1


def dot_bits(config: EngineConfig) -> int:
    return dot_largest(config).bit_length()


def load_tail(config: EngineConfig) -> int:
    """Cycles that a tile needs beyond `tile_load_cycles` before the stream stage may take its pass.

    The table array writes a set's 16 entries after the last row of its codes has come, through a pipeline.
    """
    return TABLE_ENTRIES + 3 if config.array == "table" else 0


def array_offset(config: EngineConfig, tile: np.ndarray, signed: bool) -> np.ndarray:
    """What an array's dots have too much, for each column: a constant of the tile, which the compiler takes off b.

    Arrays count unsigned. Signed activation digits come with 8 added. Shift-add with sign and magnitude multiplies the
    one's complement 15 - x for a negative weight; in two's complement it adds the one's complement of the top plane's sum.
    A table's entries come with -4 * weight_min added, in each of 4 planes.

    Parameters
    ----------
    tile : integers (cols, rows), with what stands in places without a weight.  signed : of the activation digit.
    """
    tile = np.asarray(tile, dtype=np.int64)
    offset = SIGN_OFFSET * tile.sum(axis=1) if signed else np.zeros(len(tile), dtype=np.int64)
    if config.array == "table":
        return offset + table_groups(config) * -TABLE_INPUTS * config.weight_min * LARGEST_DIGIT
    planes, magnitude = config.weight_planes
    if magnitude:
        return offset + LARGEST_DIGIT * np.where(tile < 0, -tile, 0).sum(axis=1)
    return offset + (_top_plane_ones(config) << planes - 1)


def book_entry(config: EngineConfig, value: int) -> int:
    """The 5-bit codebook entry of a weight digit: sign on top of the magnitude, or two's complement.

    >>> config = EngineConfig("tiny", rows=4, cols=4)
    >>> book_entry(config, -12), book_entry(config, 3)
    (28, 3)
    """
    planes = config.weight_planes
    if config.array == "shiftadd" and planes[1]:
        return abs(value) | (value < 0) << planes[0]
    return value & ((1 << weight_bits(config)) - 1)


def weight_bits(config: EngineConfig) -> int:
    """Bits of a weight digit in the array."""
    if config.array == "shiftadd":
        planes, magnitude = config.weight_planes
        return planes + magnitude
    return max((-config.weight_min - 1).bit_length(), config.weight_max.bit_length()) + 1
