"""The one description of an engine's size: gateware, compiler, driver and simulator all read it.

No Amaranth in here, and NumPy neither: a board reads it too.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

AXI_BEAT_BITS = 128
AXI_ADDRESS_BITS = 40
DIGIT_BITS = 4
"""Bits of a stored activation digit and of a stored weight code."""


@dataclass(frozen=True)
class EngineConfig:
    """Size of one engine.

    Parameters
    ----------
    name : what the command line calls it.
    rows : input channels that one pass reduces (R). A power of two, 4..128.
    cols : output channels that one pass computes (C). A power of two, rows..128.
    accumulator_width : bits of one accumulator, two's complement.
    accumulator_depth : output pixels in one accumulator bank; there are two banks.
    activation_beats : 128-bit beats in each half of the activation buffer.
    residual_beats : 128-bit beats in each bank and digit plane of the residual buffer.
    weight_slots : weight tiles on chip.
    weight_path_beats : 128-bit beats that a weight tile moves from slot to array each cycle.
    requantize_lanes : channels requantized each cycle; a power of two, at most rows and 32.
    max_burst : beats in the longest AXI burst.
    queue_depth : instructions waiting before each unit.
    clock_mhz : the clock at which frames/s and GOPS are stated; no claim that it was reached.
    residual : whether the requantizer adds a second operand, r*n.
    esb_output : whether the requantizer rounds to ESB formats too.

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
    ValueError: rows must be a power of two in 4..128, not 6
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
    requantize_lanes: int = 4
    max_burst: int = 32
    queue_depth: int = 8
    clock_mhz: int = 250
    residual: bool = True
    esb_output: bool = True

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                if not isinstance(value, bool):
                    raise TypeError(f"{field.name} must be true or false, not {value!r}")
            elif field.name != "name" and (not isinstance(value, int) or isinstance(value, bool)):
                raise TypeError(f"{field.name} must be an integer, not {value!r}")
        _power_of_two("rows", self.rows, 4, 128)
        _power_of_two("cols", self.cols, self.rows, 128)
        _power_of_two("requantize_lanes", self.requantize_lanes, 1, min(self.rows, 32))
        _power_of_two("accumulator_depth", self.accumulator_depth, 16, 1024)
        _power_of_two("activation_beats", self.activation_beats, 16, 16384)
        _power_of_two("residual_beats", self.residual_beats, 16, 16384)
        _power_of_two("weight_slots", self.weight_slots, 2, 128)
        _power_of_two("weight_path_beats", self.weight_path_beats, 1, self.tile_beats)
        _power_of_two("max_burst", self.max_burst, 4, 64)
        _power_of_two("queue_depth", self.queue_depth, 2, 32)
        _in_range("accumulator_width", self.accumulator_width, 16, 32)
        _in_range("clock_mhz", self.clock_mhz, 1, 1000)
        if self.activation_beats < self.beats_per_word:
            raise ValueError("activation_beats must hold at least one word")

    # -- derived sizes; the only place where they are computed -----------------------------------
    @property
    def macs_per_cycle(self) -> int:
        return self.rows * self.cols

    @property
    def word_bits(self) -> int:
        """Bits of one activation word: one digit of `rows` channels of one pixel."""
        return self.rows * DIGIT_BITS

    @property
    def words_per_beat(self) -> int:
        """Words (pixels) in a 128-bit beat; 1 when a word is a beat or more. Row pitch is a multiple."""
        return max(1, AXI_BEAT_BITS // self.word_bits)

    @property
    def beats_per_word(self) -> int:
        return max(1, self.word_bits // AXI_BEAT_BITS)

    @property
    def activation_words(self) -> int:
        """Words in each half of the activation buffer."""
        return self.activation_beats * self.words_per_beat // self.beats_per_word

    @property
    def planes_per_tile(self) -> int:
        """Channel groups of `rows` channels in one output tile of `cols` channels."""
        return self.cols // self.rows

    @property
    def tile_beats(self) -> int:
        """Beats of one weight tile in memory: rows x cols codes of 4 bits, at least one beat."""
        return max(1, self.rows * self.cols * DIGIT_BITS // AXI_BEAT_BITS)

    @property
    def tile_load_cycles(self) -> int:
        """Cycles that a weight tile takes from its slot into the array's shadow registers."""
        return self.tile_beats // self.weight_path_beats

    @property
    def lane_groups(self) -> int:
        """Cycles that the requantizer takes for the `rows` channels of one pixel."""
        return self.rows // self.requantize_lanes

    @property
    def requantize_width(self) -> int:
        """Bits of the exact sum acc*m + r*n + b."""
        return max(self.accumulator_width + 12, 40) + 2

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "EngineConfig":
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(fields) - known
        if unknown:
            raise ValueError(f"unknown engine parameter {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**fields)

    @property
    def hash(self) -> int:
        """64 bits over everything that a program depends on (neither the name nor the clock)."""
        fields = {k: v for k, v in self.to_dict().items() if k not in ("name", "clock_mhz")}
        text = json.dumps({"interface": INTERFACE_VERSION, **fields}, sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


INTERFACE_VERSION = 1
"""Counts up whenever instructions, registers or memory layout change their meaning."""


def _power_of_two(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high or value & (value - 1):
        raise ValueError(f"{name} must be a power of two in {low}..{high}, not {value}")


def _in_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, not {value}")


ENGINES = {
    config.name: config
    for config in (
        EngineConfig("tiny4x4", rows=4, cols=4, accumulator_depth=64, activation_beats=64, residual_beats=64,
                     weight_slots=4, requantize_lanes=4, max_burst=16),
        EngineConfig("small8x16", rows=8, cols=16, accumulator_depth=256, activation_beats=256,
                     residual_beats=256, requantize_lanes=4),
        EngineConfig("base16x16", rows=16, cols=16),
        EngineConfig("large64x64", rows=64, cols=64, activation_beats=2048, residual_beats=2048,
                     weight_path_beats=4, requantize_lanes=32),
    )
}
"""The named configurations. DEFAULT_ENGINE is the one that the demo builds."""

DEFAULT_ENGINE = "base16x16"


def engine(name: str) -> EngineConfig:
    """The named configuration, or one read from an `engine.json` when `name` ends in .json.

    Raises
    ------
    ValueError
        if there is no such configuration, listing the known ones.
    """
    if name.endswith(".json"):
        try:
            with open(name) as file:
                return EngineConfig.from_dict(json.load(file)["config"])
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{name} is not an engine.json as `esbflow rtl` writes it: {error}") from None
    if name not in ENGINES:
        raise ValueError(f"no engine named {name!r}; known: {', '.join(ENGINES)}")
    return ENGINES[name]
