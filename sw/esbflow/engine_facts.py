"""Facts of the gateware's blocks that more than one part must know: latencies, widths, limits, what the arrays compute.

Gateware, cycle model, compiler and validator all read them here. Times are in clock cycles.
"""

from typing import NamedTuple

import numpy as np

from esbflow.engine_config import CODE_BITS, TABLE_ENTRIES, TABLE_INPUTS, EngineConfig

# -- between units ------------------------------------------------------------------------------------------------
FIFO_LATENCY = 2
"""Fifo: written to offered. Instruction queues are Fifos."""
FIFO_PLACE_CYCLES = 2
"""Fifo: read to the first cycle in which its place can be written again."""
CATCH_CYCLES = 2
"""FaultEncoder: a fault to the sign that there is one. A run that is done goes on for so long."""
COUNT_CYCLES = 1
"""Counters are so many cycles behind."""
TOKEN_CYCLES = 2
"""Tokens: posted to the first cycle in which it can be taken."""

# -- fetch and ports ----------------------------------------------------------------------------------------------
SPLIT_CYCLES = 3
"""BurstSplitter: accept to first burst, and burst to burst."""
PORT_CYCLES = 2
"""ReadPort, WritePort: a burst taken to the next one."""
SPREAD_CYCLES = 1
"""Spread: a burst from the splitter to the slices' ports."""
JOIN_CYCLES = 1
"""Loader, with several slices: the last beat in its buffer to the token."""
BEAT_TO_WRITE = 1
"""ReadPort: bus to buffer."""
REQUEST_CYCLES = 2
"""Fetch: doorbell, or a run taken by the splitter, to the next run."""
CREDIT_CYCLES = 1
"""Fetch: a burst from the splitter waits so long, until it is known whether there is room."""
MAP_READ_CYCLES = 7
"""MapMemory: a burst taken by the read port to its first beat."""
MAP_ANSWER_CYCLES = 1
"""MapMemory: a burst's last beat to its answer."""
FETCH_BURST = 16
FETCH_BUFFERED = 32
"""Instructions that the fetch keeps ready; it never asks for one that it has no place for."""
BEATS_PER_4K = 256
OUTSTANDING_READS = 16
OUTSTANDING_WRITES = 64
TRANSFERS = 16
"""Drain: stores (planes) ordered ahead of the writer."""

# -- sequencer, buffers, accumulators -----------------------------------------------------------------------------
ACTIVATION_LATENCY = 2
"""ActivationBuffer: address to digits."""
ACCUMULATE_LATENCY = 2
"""Accumulators: dots to the sum that a drain may read."""
HAZARD_CYCLES = 3
"""The same accumulator can be added to again after this many cycles."""
MOST_DIGITS = 16
"""Digits of an output; 16 is 0 in a DRAIN."""
MOST_RESIDUAL_DIGITS = 4
"""Digits of a residual; 4 is 0 in a DRAIN."""
RESIDUAL_PLANE = 1 << 15
"""Residual digits 2 and 3 are loaded into planes 0 and 1 at an address with this added."""
CODES = 1 << CODE_BITS
"""Entries of a codebook."""
BOOKS = 2
"""Codebooks that an array holds."""
BOOK_CYCLES = CODES
"""A codebook is written one entry a cycle, before its tile is loaded."""
BOOK_ENTRY_BITS = 5
TABLE_DESTINATION = 4
"""WEIGHTS: the function table."""
LEVEL_ENTRIES = 256
"""Entries of the function table, of 8 bits each."""
LEVEL_ROWS = 64
"""Rows of the function table; a row is written at once, by every weight port its part."""
IMAGE_DESTINATION, IMAGE_TABLE_DESTINATION = 6, 7
"""LOAD: the image buffer; the image table and the steps of UNFOLD, a row of each a beat."""
STEP_COUNT = 64
"""Steps that the load unit holds; as many rows has its table, of four entries each."""
STEP_FIELDS = (("line", 16), ("y", 11), ("x", 14), ("length", 5), ("place", 4), ("ends", 1))
"""A step takes `length` bytes, 0 to 16, to byte `place` of a slot of 16 bytes. They begin with byte `x`, which is signed, of
the line `line` beats, modulo 2**16, and `y` rows behind the group's first one. With `ends` the slot is complete, and bytes
beyond it begin the next."""
STEP_SHIFT = 64
"""A step's first bit in its beat; the four entries of the table's row are in the lowest 32."""
SLOT_BYTES = 16
UNFOLD_LATENCY = 10
"""UNFOLD: from its acceptance to its last write, beyond its steps and the digits of a word."""
TAP_SIDE = 3
"""Rows and columns of the channel unit's window."""
TAPS = TAP_SIDE * TAP_SIDE
TAP_ENTRY_BITS = 5


def residual_planes(config: EngineConfig) -> int:
    """Digits of a residual that the engine holds, each in a memory of its own: together 8 bits."""
    return 8 // config.digit_bits


def output_digits(field: int) -> int:
    """Digits that a DRAIN stores, by its field."""
    return field or MOST_DIGITS


def residual_digits(field: int) -> int:
    """Digits of a DRAIN's residual, by its field."""
    return field or MOST_RESIDUAL_DIGITS


def weight_masters(config: EngineConfig) -> list:
    """Names of the masters that bring weights.

    >>> weight_masters(EngineConfig("two", rows=8, cols=8, weight_path_beats=2, weight_ports=2))
    ['m_axi_weights', 'm_axi_weights1']
    """
    return [f"m_axi_weights{number or ''}" for number in range(config.weight_ports)]


def activation_masters(config: EngineConfig) -> list:
    """Names of the masters that load and store activations.

    >>> activation_masters(EngineConfig("two", rows=8, cols=8, slices=2, activation_ports=2))
    ['m_axi_activations', 'm_axi_activations1']
    """
    return [f"m_axi_activations{number or ''}" for number in range(config.activation_ports)]


def place_bits(config: EngineConfig) -> int:
    """Bits of a beat's place in a port's map memory, which holds those of the port's slices one after the other.

    >>> place_bits(EngineConfig("maps", rows=8, cols=8, slices=4, activation_ports=2, map_beats=256))
    9
    """
    return (config.map_beats * config.slices_per_port - 1).bit_length() if config.map_beats else 0


def write_beats(config: EngineConfig) -> int:
    """WritePort: beats that its FIFO of each slice holds."""
    return max(128, 4 * config.max_burst)


def write_room(config: EngineConfig) -> int:
    """WritePort: the drain stops while its FIFOs hold so many beats, or more."""
    return write_beats(config) * 3 // 4


def burst_lengths(offset: int, beats: int, longest: int):
    """Lengths of the bursts into which a run of beats is cut. Regions begin at multiples of 4 KB, which no burst crosses.

    >>> list(burst_lengths(250, 80, 64))
    [6, 64, 10]
    """
    while beats:
        length = min(beats, longest, BEATS_PER_4K - offset % BEATS_PER_4K)
        yield length
        offset += length
        beats -= length


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
        return 1 + tree_levels(table_groups(config)) + tree_levels(config.digit_bits)
    planes, magnitude = config.weight_planes
    return int(magnitude) + 1 + tree_levels(config.rows // 2) + tree_levels(planes)


class ChannelPlanes(NamedTuple):
    """Bits of a tap's magnitude or of its two's complement; is it sign and magnitude?"""

    planes: int
    magnitude: bool


def channel_planes(config: EngineConfig) -> ChannelPlanes:
    """As `EngineConfig.weight_planes`, of the channel unit's taps: the fewest planes that hold the array's range.

    >>> [tuple(channel_planes(EngineConfig("e", 8, 16, array="table", weight_min=low, weight_max=high)))
    ...  for low, high in ((-15, 15), (-8, 7), (-12, 12), (-2, 1))]
    [(4, True), (4, False), (4, True), (2, False)]
    """
    magnitude = max(-config.weight_min, config.weight_max).bit_length()
    complement = max((-config.weight_min - 1).bit_length(), config.weight_max.bit_length()) + 1
    return ChannelPlanes(complement, False) if complement <= magnitude else ChannelPlanes(magnitude, True)


def channel_range(config: EngineConfig) -> tuple[int, int]:
    """(lowest, highest) tap of the channel unit: any integer between them."""
    planes, magnitude = channel_planes(config)
    return (1 - (1 << planes), (1 << planes) - 1) if magnitude else (-(1 << planes - 1), (1 << planes - 1) - 1)


def channel_latency(config: EngineConfig) -> int:
    """Cycles from the activation buffer's digits to the channel unit's sums.

    A choice of channels where the unit is narrower than a word; a register for the signs, if taps are sign and magnitude;
    leaf rows; trees; the join of the planes; the choice between sum and maximum.
    """
    planes, magnitude = channel_planes(config)
    choice = config.channel_unit < config.rows
    return int(choice) + int(magnitude) + 1 + tree_levels(-(-TAPS // 2)) + tree_levels(planes) + 1


def compute_latency(config: EngineConfig) -> int:
    """Cycles from the activation buffer's digits to the accumulators: that of the slower of array and channel unit."""
    return max(array_latency(config), channel_latency(config) if config.channel_unit else 0)


def channel_largest(config: EngineConfig) -> int:
    """The largest sum of the channel unit, which is unsigned: see `channel_offset`."""
    planes, magnitude = channel_planes(config)
    plane = TAPS * config.largest_digit
    if magnitude:
        return plane * ((1 << planes) - 1)
    return plane * ((1 << planes - 1) - 1) + (_ones(plane) << planes - 1)


def channel_bits(config: EngineConfig) -> int:
    """Bits of the largest sum of the channel unit, without a sign."""
    return channel_largest(config).bit_length()


def channel_offset(config: EngineConfig, taps: np.ndarray, signed: bool) -> np.ndarray:
    """What the channel unit's sums have too much, for each channel: as `array_offset`, of taps (channels, TAPS)."""
    taps = np.asarray(taps, dtype=np.int64)
    offset = config.sign_offset * taps.sum(axis=1) if signed else np.zeros(len(taps), dtype=np.int64)
    planes, magnitude = channel_planes(config)
    if magnitude:
        return offset + config.largest_digit * np.where(taps < 0, -taps, 0).sum(axis=1)
    return offset + (_ones(TAPS * config.largest_digit) << planes - 1)


def tap_entry(config: EngineConfig, value):
    """The 5-bit entry of a tap, or of an array of them: sign on top of the magnitude's planes, or two's complement.

    >>> tap_entry(EngineConfig("e", 8, 16), -12), tap_entry(EngineConfig("e", 8, 16, weight_min=-8, weight_max=7), -3)
    (28, 13)
    """
    planes, magnitude = channel_planes(config)
    return abs(value) | (value < 0) << planes if magnitude else value & ((1 << planes) - 1)


def tap_value(config: EngineConfig, entry):
    """The opposite of `tap_entry`."""
    planes, magnitude = channel_planes(config)
    low = entry & ((1 << planes) - 1)
    return low * (1 - 2 * (entry >> planes & 1)) if magnitude else (low ^ 1 << planes - 1) - (1 << planes - 1)


def dot_largest(config: EngineConfig) -> int:
    """The largest dot, which is unsigned: see `array_offset`."""
    if config.array == "table":
        return table_groups(config) * table_largest(config) * config.largest_digit
    planes, magnitude = config.weight_planes
    plane = config.rows * config.largest_digit
    if magnitude:
        return plane * ((1 << planes) - 1)
    return plane * ((1 << planes - 1) - 1) + (_ones(plane) << planes - 1)


def _ones(largest: int) -> int:
    """The all-ones word from which the sum of a two's complement's top plane is taken."""
    return (1 << largest.bit_length()) - 1


def dot_bits(config: EngineConfig) -> int:
    """Bits of the largest sum of products of one pass, without a sign."""
    return dot_largest(config).bit_length()


def load_tail(config: EngineConfig) -> int:
    """Cycles that a tile needs beyond `tile_load_cycles` before the stream stage may take its pass.

    The table array writes a set's 16 entries after the last row of its codes has come, through a pipeline.
    """
    return TABLE_ENTRIES + 3 if config.array == "table" else 0


def array_offset(config: EngineConfig, tile: np.ndarray, signed: bool) -> np.ndarray:
    """What an array's dots have too much, for each column: a constant of the tile, which the compiler takes off b.

    Arrays count unsigned. Signed activation digits come with `sign_offset` added. Shift-add with sign and magnitude
    multiplies the one's complement `largest_digit` - x for a negative weight; in two's complement it adds the one's
    complement of the top plane's sum.
    A table's entries come with -4 * weight_min added, in each plane of bits.

    Parameters
    ----------
    tile : integers (cols, rows), with what stands in places without a weight.  signed : of the activation digit.
    """
    tile = np.asarray(tile, dtype=np.int64)
    offset = config.sign_offset * tile.sum(axis=1) if signed else np.zeros(len(tile), dtype=np.int64)
    if config.array == "table":
        return offset + table_groups(config) * -TABLE_INPUTS * config.weight_min * config.largest_digit
    planes, magnitude = config.weight_planes
    if magnitude:
        return offset + config.largest_digit * np.where(tile < 0, -tile, 0).sum(axis=1)
    return offset + (_ones(config.rows * config.largest_digit) << planes - 1)


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
