"""Number formats: which integers a code stands for, and how exact integers round to them.

A format is a finite set of integers ("levels"). A real number is a level times a scale, and the scale is kept
elsewhere: here everything is exact integers. ESB is the elastic significant bit format of Gong et al., "Elastic
Significant Bit Quantization and Acceleration for Deep Neural Networks", IEEE TPDS 33(11), 2022, in units of its
smallest step (the paper's values times 2**significand); ESB(4, 1) is the OCP format E2M1 (FP4) times two.

Rounding is one rule everywhere: the nearest level, rounded once, a tie goes toward plus infinity, and what lies
beyond the ends is clamped. NumPy only; also used on a board.
"""

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from esbflow.errors import BadValue

MAX_LEVEL_BITS = 32
"""No level needs more than a signed 32-bit integer, or an unsigned one."""

_MATERIALISED_BITS = 16
"""Linear formats with more bits than this give no list of levels: it would not fit in a cache."""


@dataclass(frozen=True)
class Format:
    """A finite set of integers with a code for each; the base of the five kinds below.

    Attributes
    ----------
    bits : bits of one code.
    min, max : smallest and largest level.
    signed : whether a level is negative.
    levels : sorted int64 array of all levels.
    """

    if TYPE_CHECKING:  # fields or properties of the kinds
        @property
        def bits(self) -> int: ...
        def _encode(self, values: np.ndarray) -> np.ndarray: ...
        def _decode(self, codes: np.ndarray) -> np.ndarray: ...

    @property
    def levels(self) -> np.ndarray:
        """int64, all levels, ascending."""
        return _levels(self)

    @property
    def min(self) -> int:
        """The smallest level."""
        return int(self.levels[0])

    @property
    def max(self) -> int:
        """The largest level."""
        return int(self.levels[-1])

    @property
    def signed(self) -> bool:
        """Whether there are levels below zero."""
        return self.min < 0

    def contains(self, values) -> np.ndarray:
        """Boolean array: is each integer a level?"""
        values = _integers("values", values)
        return self._nearest_to_half(_clip(2 * values, 2 * self.min - 1, 2 * self.max + 1)) == values

    def round_shift(self, t, s) -> np.ndarray:
        """The level nearest to t / 2**s, rounded once, ties toward plus infinity, clamped.

        Parameters
        ----------
        t : int64 array. s : integers 0..62, broadcast against t.

        Raises
        ------
        TypeError
            if t or s is not of an integer type.
        ValueError
            if an s is out of range.

        >>> Format.parse("esb4.1").round_shift([5, 10, -5, 14, 180, 20], [1, 1, 1, 1, 1, 2])
        array([ 3,  6, -2,  8, 12,  6])
        """
        t, s = _integers("t", t), _integers("s", s)
        if s.size and not (0 <= s.min() and s.max() <= 62):
            raise BadValue(f"s must be in 0..62, not {s.min()}..{s.max()}")
        # Levels are integers, so midpoints are half-integers: floor(2t / 2**s) decides everything.
        if s.size and s.min() > 0:
            halves = t >> (s - 1)
        else:
            doubled = 2 * _clip(t, -(2**40), 2**40)  # cannot overflow, and stays beyond every level
            halves = np.where(s == 0, doubled, t >> np.maximum(s - 1, 0))
        return self._nearest_to_half(halves)

    def nearest(self, values) -> np.ndarray:
        """The level nearest to each real number, ties toward plus infinity, clamped.

        Raises
        ------
        ValueError
            if a value is NaN.

        >>> Format.parse("esb4.1").nearest([2.5, 5.0, -2.5, 7.0, 90.0, -0.5])
        array([ 3,  6, -2,  8, 12,  0])
        """
        values = np.asarray(values, dtype=np.float64)
        if np.isnan(values).any():
            raise BadValue("cannot round NaN to a level; remove it first")
        halves = np.floor(2 * np.clip(values, self.min - 1, self.max + 1))
        return self._nearest_to_half(halves.astype(np.int64))

    def encode(self, values) -> np.ndarray:
        """Codes (uint32) of levels; zero always gets code 0 where the format has a sign bit.

        Raises
        ------
        ValueError
            if a value is not a level, naming the first one.
        """
        values = _integers("values", values)
        known = self.contains(values)
        if not known.all():
            raise BadValue(f"{int(values[~known].flat[0])} is not a level of {self}; round it first")
        return self._encode(values).astype(np.uint32)

    def decode(self, codes) -> np.ndarray:
        """Levels (int64) of codes.

        Raises
        ------
        ValueError
            if a code does not exist, naming it.
        """
        codes = _integers("codes", codes)
        wrong = (codes < 0) | (codes >= self.codes)
        if wrong.any():
            raise BadValue(f"{self} has codes 0..{self.codes - 1}, not {int(codes[wrong].flat[0])}")
        return self._decode(codes)

    @property
    def codes(self) -> int:
        """How many codes exist."""
        return 1 << self.bits

    def _nearest_to_half(self, halves: np.ndarray) -> np.ndarray:
        """The level nearest to x, given floor(2x)."""
        low, table = _rounding_table(self)
        if table is None:
            levels = self.levels
            return levels[np.searchsorted(levels[1:] + levels[:-1], halves, side="right")]
        return table[_clip(halves, low, low + len(table) - 1) - low]

    @staticmethod
    def parse(text: str) -> "Format":
        """The format that `str` prints as `text`.

        >>> [Format.parse(text) for text in ("esb4.1", "s8", "cb[-3,1]")]
        [ESB(bits=4, significand=1, signed=True), Signed(bits=8), Codebook(values=(-3, 1))]
        """
        return _parse(text)


@dataclass(frozen=True)
class ESB(Format):
    """Elastic significant bits: `significand` fraction bits after the leading one, and an exponent.

    Code (sign, E, F), highest bits first, stands for F if E = 0, else (2**k + F) << (E - 1), with k = significand;
    negated if there is a sign bit and it is set. Minus zero is read as zero and never written.

    Raises
    ------
    TypeError
        if bits or significand is not an integer.
    ValueError
        if significand leaves no exponent bit, or the largest level needs more than 31 bits.

    >>> ESB(4, 2, signed=False).levels
    array([ 0,  1,  2,  3,  4,  5,  6,  7,  8, 10, 12, 14, 16, 20, 24, 28])
    >>> ESB(4, 1).decode([0b0110, 0b1111])
    array([  8, -12])
    """

    bits: int
    significand: int
    signed: bool = True

    def __post_init__(self):
        _whole("bits", self.bits)
        _whole("significand", self.significand)
        if not isinstance(self.signed, bool):
            raise TypeError(f"signed must be True or False, not {self.signed!r}")
        if not 1 + self.signed <= self.bits <= 32:
            raise BadValue(f"bits must be in {1 + self.signed}..32, not {self.bits}")
        largest = self.bits - 1 - self.signed
        if not 0 <= self.significand <= largest:
            raise BadValue(f"significand must be in 0..{largest} for {self.bits} bits, not {self.significand}")
        if self.magnitude_bits > 31:
            raise BadValue(f"{self} has levels of {self.magnitude_bits} bits; use a larger significand "
                             "so that 31 are enough")

    @property
    def exponent_bits(self) -> int:
        """Bits of E: what sign and fraction leave."""
        return self.bits - self.signed - self.significand

    @property
    def magnitude_bits(self) -> int:
        """Bits of the largest level."""
        return self.significand + (1 << self.exponent_bits) - 1

    @property
    def max(self) -> int:
        return ((2 << self.significand) - 1) << ((1 << self.exponent_bits) - 2)

    @property
    def min(self) -> int:
        return -self.max if self.signed else 0

    def _encode(self, values):
        magnitude = np.abs(values)
        # frexp is exact up to 2**53: the position of the leading one decides the exponent.
        length = np.frexp(magnitude.astype(np.float64))[1].astype(np.int64)
        exponent = np.maximum(length - self.significand, 0)
        fraction = (magnitude >> np.maximum(exponent - 1, 0)) & ((1 << self.significand) - 1)
        return (values < 0).astype(np.int64) << (self.bits - 1) | exponent << self.significand | fraction

    def _decode(self, codes):
        magnitude_code = codes & ((1 << (self.bits - self.signed)) - 1)
        exponent = magnitude_code >> self.significand
        fraction = magnitude_code & ((1 << self.significand) - 1)
        hidden = np.where(exponent > 0, 1 << self.significand, 0)
        magnitude = (fraction + hidden) << np.maximum(exponent - 1, 0)
        return np.where(magnitude_code == codes, magnitude, -magnitude)

    def __str__(self):
        return f"{'' if self.signed else 'u'}esb{self.bits}.{self.significand}"


@dataclass(frozen=True)
class _Linear(Format):
    """All integers of a range."""

    bits: int

    def __post_init__(self):
        _whole("bits", self.bits)
        if not 1 <= self.bits <= MAX_LEVEL_BITS:
            raise BadValue(f"bits must be in 1..{MAX_LEVEL_BITS}, not {self.bits}")

    def _nearest_to_half(self, halves):
        return _clip((halves + 1) >> 1, self.min, self.max)

    def _encode(self, values):
        return values & ((1 << self.bits) - 1)


@dataclass(frozen=True)
class Signed(_Linear):
    """Two's-complement integers.

    >>> Signed(8).min, Signed(8).max, Signed(8).round_shift([3, -3], 1)
    (-128, 127, array([ 2, -1]))
    """

    @property
    def min(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def max(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def _decode(self, codes):
        return np.where(codes > self.max, codes - (1 << self.bits), codes)

    def __str__(self):
        return f"s{self.bits}"


@dataclass(frozen=True)
class Unsigned(_Linear):
    """Integers 0 .. 2**bits - 1.

    >>> Unsigned(4).round_shift([-8, 7, 8, 1000], 4)
    array([ 0,  0,  1, 15])
    """

    @property
    def min(self) -> int:
        return 0

    @property
    def max(self) -> int:
        return (1 << self.bits) - 1

    def _decode(self, codes):
        return codes

    def __str__(self):
        return f"u{self.bits}"


@dataclass(frozen=True)
class Binary(Format):
    """Minus one (code 0) and plus one (code 1)."""

    @property
    def bits(self) -> int:
        """One."""
        return 1

    def _encode(self, values):
        return (values + 1) >> 1

    def _decode(self, codes):
        return 2 * codes - 1

    def __str__(self):
        return "bin"


@dataclass(frozen=True)
class Codebook(Format):
    """Any integers; a code is a place in the ascending list.

    Raises
    ------
    TypeError
        if a value is not an integer.
    ValueError
        if the values are not ascending, or there are none or more than 65536.

    >>> Codebook((-3, -1, 1, 3)).nearest([0.0, -2.0])
    array([ 1, -1])
    """

    values: tuple

    def __post_init__(self):
        if not isinstance(self.values, tuple):
            object.__setattr__(self, "values", tuple(self.values))
        for value in self.values:
            _whole("a codebook value", value)
        object.__setattr__(self, "values", tuple(int(value) for value in self.values))
        if not 1 <= len(self.values) <= 1 << 16:
            raise BadValue(f"a codebook must hold 1..65536 values, not {len(self.values)}")
        if any(a >= b for a, b in zip(self.values, self.values[1:])):
            raise BadValue(f"codebook values must ascend: {self.values}")
        if not -(2**31) <= self.values[0] <= self.values[-1] < 2**31:
            raise BadValue("codebook values must fit in 32 bits")

    @property
    def bits(self) -> int:
        """Bits of an index into the integers, at least one."""
        return max(1, (len(self.values) - 1).bit_length())

    @property
    def codes(self) -> int:
        return len(self.values)

    def _encode(self, values):
        return np.searchsorted(self.levels, values)

    def _decode(self, codes):
        return self.levels[codes]

    def __str__(self):
        return f"cb[{','.join(map(str, self.values))}]"


def pack(codes) -> np.ndarray:
    """4-bit codes, two a byte, low nibble first; an odd last one is followed by zero.

    >>> pack([1, 2, 15])
    array([33, 15], dtype=uint8)
    """
    codes = _integers("codes", codes).ravel()
    if codes.size and not (0 <= codes.min() and codes.max() <= 15):
        raise BadValue(f"codes must be in 0..15 to be packed, not {codes.min()}..{codes.max()}")
    padded = np.append(codes, [0] * (codes.size % 2)).astype(np.uint8)
    return padded[0::2] | padded[1::2] << 4


def unpack(packed, count: int) -> np.ndarray:
    """The first `count` 4-bit codes of bytes that `pack` made.

    >>> unpack([33, 15], 3)
    array([ 1,  2, 15], dtype=uint8)
    """
    packed = np.asarray(packed, dtype=np.uint8).ravel()
    if not 0 <= count <= 2 * packed.size:
        raise BadValue(f"count must be in 0..{2 * packed.size}, not {count}")
    return np.stack([packed & 15, packed >> 4], axis=1).ravel()[:count]


def _clip(values, low, high):
    return np.minimum(np.maximum(values, low), high)  # np.clip is several times slower on small arrays


def _integers(name, values) -> np.ndarray:
    values = np.asarray(values)
    if values.size and values.dtype.kind not in "iub":
        raise TypeError(f"{name} must be integers, not {values.dtype}")
    return values.astype(np.int64, copy=False)


def _whole(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, not {value!r}")


@functools.cache
def _levels(format: Format) -> np.ndarray:
    if isinstance(format, _Linear):
        if format.bits > _MATERIALISED_BITS:
            raise BadValue(f"{format} has too many levels to list; use min and max")
        levels = np.arange(format.min, format.max + 1, dtype=np.int64)
    elif isinstance(format, ESB):
        if format.bits > _MATERIALISED_BITS:
            raise BadValue(f"{format} has too many levels to list; use min and max")
        levels = np.unique(format._decode(np.arange(1 << format.bits, dtype=np.int64)))
    elif isinstance(format, Binary):
        levels = np.array([-1, 1], dtype=np.int64)
    else:
        assert isinstance(format, Codebook)
        levels = np.array(format.values, dtype=np.int64)
    levels.flags.writeable = False  # one array is shared by all users
    return levels


@functools.cache
def _rounding_table(format: Format):
    """(low, table): table[floor(2x) - low] is the level nearest to x; no table if the range is wide."""
    levels = format.levels
    sums = levels[1:] + levels[:-1]
    if len(levels) == 1 or sums[-1] - sums[0] > 1 << 14:
        return 0, (levels if len(levels) == 1 else None)
    halves = np.arange(sums[0] - 1, sums[-1] + 1, dtype=np.int64)
    return int(halves[0]), levels[np.searchsorted(sums, halves, side="right")]


_PATTERNS = (
    (re.compile(r"(u?)esb(\d+)\.(\d+)"), lambda u, b, k: ESB(int(b), int(k), signed=not u)),
    (re.compile(r"s(\d+)"), lambda b: Signed(int(b))),
    (re.compile(r"u(\d+)"), lambda b: Unsigned(int(b))),
    (re.compile(r"bin"), lambda: Binary()),
    (re.compile(r"cb\[(-?\d+(?:,-?\d+)*)\]"), lambda v: Codebook(tuple(int(x) for x in v.split(",")))),
)


def _parse(text):
    if not isinstance(text, str):
        raise TypeError(f"a format is written as text such as 'esb4.1', not {text!r}")
    for pattern, make in _PATTERNS:
        match = pattern.fullmatch(text.strip())
        if match:
            return make(*match.groups())
    raise BadValue(f"{text!r} is not a format; write esb4.1, uesb4.2, s8, u4, bin or cb[-3,-1,1,3]")
