"""The one description of an engine's size: gateware, compiler, driver and simulator all read it.

No Amaranth in here, and NumPy neither: a board reads it too.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass

from esbflow.errors import BadValue
from esbflow.suggest import no_such

AXI_BEAT_BITS = 128
AXI_ADDRESS_BITS = 40
CODE_BITS = 4
"""Bits of a stored weight code."""
DIGIT_BITS = 4
"""Bits of a level that a requantizer lane gives at once, and of the widest activation digit."""
DIGIT_SIZES = (2, 4)
SHIFT_BITS = 12
"""Passes can be shifted to the left by as many bits at least."""
TABLE_INPUTS = 4
"""Rows that share a table of the table array."""
TABLE_ENTRIES = 1 << TABLE_INPUTS
TAP_BITS = 64
"""Bits of one channel's taps in memory."""
TURN_LIMIT = 16
"""Accumulators of a pixel: the distance between two pixels' is a 4-bit field of a pass."""
SHARED_LANES = 16
"""Lanes whose slices can share a port: it takes one beat for two that they could fill, so it never falls behind."""
LARGEST = {"accumulator_depth": 1024, "activation_beats": 16384, "residual_beats": 16384}
"""What no engine has more of."""
ARRAYS = ("shiftadd", "table")
REQUANTIZERS = ("multiply", "shift")
SHIFTED_RESIDUAL_BITS = 8 + 10
"""Of a residual of 8 bits, shifted left by at most 10: n is at most 2**10."""


LATER_OPTIONS = ("channel_unit", "weight_ports", "requantizer", "slices", "activation_ports", "digit_bits",
                 "function_table", "stripes", "image_beats", "map_beats", "batch_tiles")
"""Fields that came after programs had been compiled; at their defaults they are not in the hash."""


@dataclass(frozen=True)
class EngineConfig:
    """Size of one engine.

    Parameters
    ----------
    name : what the command line calls it; letters, digits, "_", "-" and "." only, since files and modules are named by it.
    rows : input channels that one pass reduces (R). A power of two, 4..128.
    array : "shiftadd" (weights in registers, shifts and adds) or "table" (sums of four weights in LUT RAM).
    weight_min, weight_max : range of one weight digit, at most -15..15. The shift-add array takes -(2**n - 1)..2**n - 1
        (sign and magnitude) or -2**(n-1)..2**(n-1) - 1 (two's complement).
    table_groups : groups of four rows whose tables are written at once; a power of two. The table array writes a tile in
        16 * rows / 4 / table_groups cycles, and takes cols * table_groups generators for it.
    cols : output channels that one pass computes (C). A power of two, 4..128, at least rows / 16. With fewer columns than
        rows a tile's `rows` channels take turns in them: a pixel has rows / cols accumulators, each with passes of its own.
    accumulator_width : bits of one accumulator, two's complement.
    accumulator_depth : accumulators of each column in one bank; there are two banks. An output pixel takes one, or
        rows / cols.
    activation_beats : 128-bit beats in each half of the activation buffer.
    residual_beats : 128-bit beats in each bank and digit plane of the residual buffer.
    weight_slots : weight tiles on chip.
    weight_path_beats : 128-bit beats that a weight tile moves from slot to array each cycle.
    weight_ports : 128-bit masters that bring weights and constants, each an equal part of every burst; 1, 2 or 4, at most
        weight_path_beats and requantize_lanes.
    requantize_lanes : channels requantized each cycle; a power of two, at most rows, cols and 32.
    max_burst : beats in the longest AXI burst.
    queue_depth : instructions waiting before each unit.
    clock_mhz : the clock at which frames/s and GOPS are stated; no claim that it was reached.
    residual : whether the requantizer adds a second operand, r*n.
    esb_output : whether the requantizer rounds to ESB formats too.
    digit_bits : bits of a stored activation digit, 4 or 2. A pass takes one digit, so that with 2 the arrays are half as
        large, and activations of 3 or 4 bits take two passes, those of 5 to 8 bits four.
    channel_unit : channels that the channel unit works on at once, a power of two, 4..rows and at most cols; 0: there is
        none. It takes depthwise convolutions, pools, and whatever else keeps each channel to itself.
    requantizer : "multiply" takes any m and n; "shift" takes signed powers of two, for half the LUTs of a lane.
    function_table : whether a table of 256 entries, loaded for each layer that needs one, stands behind the requantizer: any
        function of a level of 8 bits.
    slices : arrays that run in lockstep on the same weights, each with images of its own; a power of two, 1..16.
    activation_ports : 128-bit masters that load and store activations; a power of two, at most `slices` and 8. Slices that
        share a port come one after the other.
    stripes : whether slices can work on stripes of one image, too: each on the rows that follow those of the slice before.
    image_beats : 128-bit beats of the buffer for raw pixels, from which the load unit makes the first layer's map itself; a
        power of two, 16..4096. 0: there is none, and the host does it.
    map_beats : 128-bit beats of each slice's map memory, in which maps stay on chip between layers where they fit; a power
        of two, 16..16384. 0: there is none.
    batch_tiles : whether a pass can go over the maps of several images, so that they share its weights: small maps of a
        batch, of which the buffers hold several.

    Raises
    ------
    TypeError
        if a size is not an integer.
    ValueError
        if a size is out of range, naming it and the range.

    >>> EngineConfig("tiny", rows=4, cols=4).macs_per_cycle
    16
    >>> EngineConfig("odd", rows=6, cols=8)
    Traceback (most recent call last):
    esbflow.errors.BadValue: rows must be a power of two in 4..128, not 6
    """

    name: str
    rows: int
    cols: int
    accumulator_width: int = 28
    accumulator_depth: int = 512
    activation_beats: int = 1024
    residual_beats: int = 1024
    weight_slots: int = 16
    weight_path_beats: int = 1
    weight_ports: int = 1
    requantize_lanes: int = 4
    max_burst: int = 32
    queue_depth: int = 8
    clock_mhz: int = 250
    array: str = "shiftadd"
    weight_min: int = -15
    weight_max: int = 15
    table_groups: int = 1
    residual: bool = True
    esb_output: bool = True
    channel_unit: int = 0
    requantizer: str = "multiply"
    slices: int = 1
    activation_ports: int = 1
    digit_bits: int = 4
    function_table: bool = False
    stripes: bool = False
    image_beats: int = 0
    map_beats: int = 0
    batch_tiles: bool = False

    def __post_init__(self):  # noqa: C901 - a sentence for each field that can be wrong
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a text, not {self.name!r}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name):
            raise BadValue("name must be 1 to 64 letters, digits, '_', '-' or '.', and begin with a letter or digit, not "
                             f"{self.name!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is bool and not isinstance(value, bool):
                raise TypeError(f"{field.name} must be true or false, not {value!r}")
            if field.type is int and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{field.name} must be an integer, not {value!r}")
        if self.array not in ARRAYS:
            raise BadValue(f"array must be one of {', '.join(ARRAYS)}, not {self.array!r}")
        if self.requantizer not in REQUANTIZERS:
            raise BadValue(f"requantizer must be one of {', '.join(REQUANTIZERS)}, not {self.requantizer!r}")
        _power_of_two("rows", self.rows, 4, 128)
        _power_of_two("cols", self.cols, max(4, self.rows // TURN_LIMIT), 128)
        _power_of_two("requantize_lanes", self.requantize_lanes, 1, min(self.rows, self.cols, 32))
        _power_of_two("accumulator_depth", self.accumulator_depth, 16 * self.accumulators_per_pixel,
                      LARGEST["accumulator_depth"])
        _power_of_two("activation_beats", self.activation_beats, 16, LARGEST["activation_beats"])
        _power_of_two("residual_beats", self.residual_beats, 16, LARGEST["residual_beats"])
        _power_of_two("weight_slots", self.weight_slots, 2, 128)
        _power_of_two("weight_path_beats", self.weight_path_beats, 1, self.tile_beats)
        _power_of_two("weight_ports", self.weight_ports, 1, min(4, self.weight_path_beats, self.requantize_lanes))
        _power_of_two("slices", self.slices, 1, 16)
        _power_of_two("activation_ports", self.activation_ports, 1, min(self.slices, 8))
        if self.slices_per_port > 1 and self.slices_per_port * self.requantize_lanes > SHARED_LANES:
            raise BadValue(f"{self.slices_per_port} slices with {self.requantize_lanes} requantize_lanes each give more "
                             f"than one port stores; use more activation_ports, or at most "
                             f"{max(1, SHARED_LANES // self.slices_per_port)} requantize_lanes")
        if self.stripes and self.slices == 1:
            raise BadValue("stripes of an image are for several slices; use slices of 2 or more, or stripes = false")
        if self.image_beats:
            _power_of_two("image_beats", self.image_beats, 16, 4096)
        if self.map_beats:
            _power_of_two("map_beats", self.map_beats, 16, 16384)
        _power_of_two("max_burst", self.max_burst, 4, 64)
        _power_of_two("queue_depth", self.queue_depth, 2, 32)
        _in_range("accumulator_width", self.accumulator_width, 16, 32)
        _in_range("clock_mhz", self.clock_mhz, 1, 1000)
        if self.activation_beats < self.beats_per_word:
            raise BadValue("activation_beats must hold at least one word")
        if self.digit_bits not in DIGIT_SIZES:
            raise BadValue(f"digit_bits must be 2 or 4, not {self.digit_bits}")
        self._check_weights()
        if self.channel_unit:
            _power_of_two("channel_unit", self.channel_unit, 4, min(self.rows, self.cols))
            if self.weight_max < 1:
                raise BadValue("a channel unit copies and averages with taps of 1; use a weight_max of at least 1")
            if self.tap_beats % self.weight_ports:
                raise BadValue(f"{self.weight_ports} weight_ports cannot share the {self.tap_beats} beats of the taps of "
                                 f"{self.channel_unit} channels equally; use fewer ports, or a wider channel_unit")
            if self.tap_beats > self.tile_beats:
                fix = "a narrower channel_unit" if self.channel_unit > 4 else "channel_unit = 0"
                raise BadValue(f"the taps of {self.channel_unit} channels take {self.tap_beats} beats and a weight slot "
                                 f"has {self.tile_beats}; use more cols, or {fix}")

    def _check_weights(self) -> None:
        _in_range("weight_min", self.weight_min, -15, -1)
        _in_range("weight_max", self.weight_max, 0, 15)
        _power_of_two("table_groups", self.table_groups, 1, self.rows // TABLE_INPUTS)
        if self.array == "shiftadd" and self.weight_planes is None:
            raise BadValue(f"the shift-add array takes weights -(2**n - 1)..2**n - 1 or -2**(n-1)..2**(n-1) - 1, not "
                             f"{self.weight_min}..{self.weight_max}; use the table array, or a wider range")
        if self.array == "table":
            codes = self.table_groups * self.cols * TABLE_INPUTS
            if self.path_codes > codes:
                narrower = "a narrower path or " if self.weight_path_beats > 1 else ""
                raise BadValue(f"weight_path_beats brings {self.path_codes} codes a cycle and {self.table_groups} table "
                                 f"groups take {codes}; use {narrower}more table_groups")

    @property
    def module_name(self) -> str:
        """The engine's top module, IP core and prefix of every module.

        >>> EngineConfig("table64x64-w4", rows=64, cols=64).module_name
        'esb_table64x64_w4'
        """
        return "esb_" + re.sub(r"\W+", "_", self.name)

    # -- derived sizes; the only place where they are computed -----------------------------------
    @property
    def macs_per_cycle(self) -> int:
        """Lanes of all slices."""
        return self.rows * self.cols * self.slices

    @property
    def slices_per_port(self) -> int:
        """Slices that load and store through the same port, one after the other."""
        return self.slices // self.activation_ports

    def rounds(self, batch: int, stripes: bool = False) -> int:
        """Images that a slice works on: those that it has of a batch, or a stripe of each.

        >>> four = EngineConfig("four", rows=4, cols=4, slices=4)
        >>> four.rounds(5), four.rounds(5, stripes=True)
        (2, 5)
        """
        return batch if stripes else -(-batch // self.slices)

    @property
    def word_bits(self) -> int:
        """Bits of one activation word: one digit of `rows` channels of one pixel."""
        return self.rows * self.digit_bits

    @property
    def largest_digit(self) -> int:
        """The largest activation digit, as an unsigned number."""
        return (1 << self.digit_bits) - 1

    @property
    def sign_offset(self) -> int:
        """Signed digits enter an array in offset binary: with this added."""
        return 1 << self.digit_bits - 1

    @property
    def words_per_beat(self) -> int:
        """Words (pixels) in a 128-bit beat; 1 when a word is a beat or more. Row pitch is a multiple."""
        return max(1, AXI_BEAT_BITS // self.word_bits)

    @property
    def beats_per_word(self) -> int:
        """128-bit beats of an activation word, at least one."""
        return max(1, self.word_bits // AXI_BEAT_BITS)

    @property
    def activation_words(self) -> int:
        """Words in each half of the activation buffer."""
        return self.activation_beats * self.words_per_beat // self.beats_per_word

    @property
    def planes_per_tile(self) -> int:
        """Channel groups of `rows` channels in one output tile of `tile_channels`."""
        return self.tile_channels // self.rows

    @property
    def tile_channels(self) -> int:
        """Output channels of one tile: whole words, and all columns."""
        return max(self.rows, self.cols)

    @property
    def accumulators_per_pixel(self) -> int:
        """Accumulators next to each other that hold a pixel's `tile_channels`: so often these take turns in the columns.

        >>> [EngineConfig("e", rows=16, cols=cols).accumulators_per_pixel for cols in (4, 8, 16, 32)]
        [4, 2, 1, 1]
        """
        return self.tile_channels // self.cols

    @property
    def tile_pixels(self) -> int:
        """Output pixels that one accumulator bank holds."""
        return self.accumulator_depth // self.accumulators_per_pixel

    @property
    def tile_beats(self) -> int:
        """Beats of one weight tile in memory: rows x cols codes of 4 bits, at least one beat."""
        return max(1, self.rows * self.cols * CODE_BITS // AXI_BEAT_BITS)

    @property
    def path_codes(self) -> int:
        """Weight codes that move from a slot to the array in a cycle."""
        return min(self.weight_path_beats * AXI_BEAT_BITS // CODE_BITS, self.rows * self.cols)

    @property
    def tile_rows(self) -> int:
        """Rows of the weight path in a tile."""
        return self.tile_beats // self.weight_path_beats

    @property
    def table_sets(self) -> int:
        """Parts of a tile whose tables are written one after the other; 1 in the shift-add array."""
        return self.rows // TABLE_INPUTS // self.table_groups if self.array == "table" else 1

    @property
    def set_cycles(self) -> int:
        """Cycles from one set's codes to the next one's: a table has 16 entries, written one a cycle."""
        rows = self.tile_rows // self.table_sets
        return max(TABLE_ENTRIES, rows) if self.array == "table" else rows

    @property
    def tile_load_cycles(self) -> int:
        """Cycles that a weight tile takes from its slot to the array."""
        return self.table_sets * self.set_cycles

    @property
    def tap_beats(self) -> int:
        """Beats of the channel unit's taps in memory and in a weight slot: 64 bits for each of its channels."""
        return self.channel_unit * TAP_BITS // AXI_BEAT_BITS

    @property
    def tap_load_cycles(self) -> int:
        """Cycles, and rows of the weight path, that the taps take from their slot to the channel unit."""
        return max(1, self.tap_beats // self.weight_path_beats)

    @property
    def channel_blocks(self) -> int:
        """Blocks of `channel_unit` channels in an output tile."""
        return self.tile_channels // self.channel_unit

    @property
    def weight_planes(self):
        """(bits of a digit's magnitude or of its two's complement, is it sign and magnitude); None if it is neither."""
        bits = self.weight_max.bit_length()
        if self.weight_max == (1 << bits) - 1:
            if self.weight_min == -self.weight_max:
                return bits, True
            if self.weight_min == -(1 << bits):
                return bits + 1, False
        return None

    @property
    def radix_bits(self) -> int:
        """Wider weights are split into digits of this many bits: 1, 2 or 4, so that passes need few different shifts.

        >>> [EngineConfig("e", 4, 4, weight_min=low, weight_max=high).radix_bits
        ...  for low, high in ((-15, 15), (-8, 7), (-4, 3), (-2, 1), (-1, 1))]
        [4, 4, 2, 2, 1]
        """
        return 1 << ((self.weight_max - self.weight_min + 1).bit_length() - 1).bit_length() - 1

    @property
    def shift_step(self) -> int:
        """Bits by which a PASS is shifted to the left for each 1 in its field."""
        return min(self.digit_bits, self.radix_bits)

    @property
    def largest_shift(self) -> int:
        """The largest shift of a PASS, in steps: 12 bits, or what weights and activations of 8 bits need.

        Weights take a digit more where the range has no 0..2**radix_bits - 1 (esbflow.compiler.digits).

        >>> [EngineConfig("e", 4, 4, weight_min=low, weight_max=-low - 1, digit_bits=digit).largest_shift
        ...  for low, digit in ((-8, 4), (-2, 4), (-2, 2))]
        [3, 6, 7]
        """
        balanced = self.weight_max < (1 << self.radix_bits) - 1
        weights = 8 - self.radix_bits + balanced * self.radix_bits
        return max(SHIFT_BITS, weights + 8 - self.digit_bits) // self.shift_step

    @property
    def lane_groups(self) -> int:
        """Cycles that the requantizer takes for the `rows` channels of one pixel."""
        return self.rows // self.requantize_lanes

    @property
    def requantize_width(self) -> int:
        """Bits of the exact sum acc*m + r*n + b."""
        if self.requantizer == "shift":
            return max(self.accumulator_width, SHIFTED_RESIDUAL_BITS if self.residual else 0) + 2
        return max(self.accumulator_width + 12, 40) + 2

    def to_dict(self) -> dict:
        """As engine.json has it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "EngineConfig":
        """The configuration of such fields; raises ValueError for unknown, missing or contradicting ones."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(fields) - known
        if unknown:
            raise BadValue(no_such("engine parameter", sorted(unknown)[0], sorted(known)))
        missing = [field.name for field in dataclasses.fields(cls)
                   if field.default is dataclasses.MISSING and field.name not in fields]
        if missing:
            raise BadValue(f"it has no {' and no '.join(missing)}")
        return cls(**fields)

    @property
    def hash(self) -> int:
        """64 bits over everything that a program depends on (neither the name nor the clock)."""
        fields = {k: v for k, v in self.to_dict().items() if k not in ("name", "clock_mhz")}
        for field in dataclasses.fields(self):  # programs of engines without an option are what they were before it
            if field.name in LATER_OPTIONS and fields[field.name] == field.default:
                del fields[field.name]
        if self.shift_step != 4:  # a PASS of such an engine was once shifted by whole digits of 4 bits
            fields["shift_step"] = self.shift_step
        text = json.dumps({"interface": INTERFACE_VERSION, **fields}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


INTERFACE_VERSION = 3
"""Counts up whenever instructions, registers or memory layout change their meaning."""


def _power_of_two(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high or value & (value - 1):
        raise BadValue(f"{name} must be a power of two in {low}..{high}, not {value}")


def _in_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise BadValue(f"{name} must be in {low}..{high}, not {value}")
