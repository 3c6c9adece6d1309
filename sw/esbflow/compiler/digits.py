"""Integers -> the array's 4-bit codes, exactly. Wide operands become several passes with left shifts."""

from dataclasses import dataclass

import numpy as np

from esbflow.compiler.errors import CompileError
from esbflow.engine_facts import CODES

WEIGHT_BITS = 8
"""Every engine takes weights of so many bits."""
FEWEST = 4
"""Every engine takes so many digits, if their shifts are not too large for its accumulators."""


@dataclass(frozen=True, eq=False)
class WeightDigit:
    """`codes` (uint8, the weight's shape) index `book` (16 integers of the array's range); the digit weighs
    2**`shift`."""

    codes: np.ndarray
    book: np.ndarray
    shift: int

    @property
    def values(self) -> np.ndarray:
        """int64, the integers that the codes stand for."""
        return self.book[self.codes]

    @property
    def padding_code(self) -> int:
        """A code for places of a tile without a weight: zero if the book has it.

        If not, a digit that is not negative: a layer without groups has such places only where activations are zero.
        """
        zeros = np.flatnonzero(self.book == 0)
        return int(zeros[0] if len(zeros) else np.flatnonzero(self.book >= 0)[0])


def _digit(values: np.ndarray, shift: int) -> WeightDigit:
    book = np.unique(np.append(values, 0))
    if len(book) > CODES:
        book = np.unique(values)
    codes = np.searchsorted(book, values).astype(np.uint8)
    padded = np.zeros(CODES, dtype=np.int64)
    padded[:len(book)] = book
    return WeightDigit(codes, padded, shift)


def _lowest(low: int, high: int, radix: int) -> int:
    """The least of the digits below the last: 0 in two's complement."""
    return 0 if high >= radix - 1 else max(low, -radix // 2)


def most_digits(low: int, high: int, radix_bits: int) -> int:
    """Digits that weights are split into at most.

    >>> most_digits(-15, 15, 4), most_digits(-2, 1, 2), most_digits(-1, 1, 1)
    (4, 5, 8)
    """
    return max(FEWEST, WEIGHT_BITS // radix_bits + (_lowest(low, high, 1 << radix_bits) < 0))


def split_weights(weight: np.ndarray, name: str = "weights", with_zero: bool = False, low: int = -15, high: int = 15,
                  radix_bits: int = 4) -> list:
    """Digits d with sum over d of values * 2**shift = weight, exactly; as few as the array's range low..high allows.

    One digit holds any 16 integers of the range (with -15..15: ESB(4,1), every linear set to 4 bits, half-integer grids).
    Wider weights are cut into digits of `radix_bits` bits: in two's complement where the range has 0..2**radix_bits - 1,
    else into the digits of the range itself. The last digit may be any integer of a range of at most 16. `with_zero` asks
    for a zero in every book, as grouped layers need.

    Raises
    ------
    CompileError
        if the weights need more digits than four or, of narrow ranges, than weights of 8 bits do.

    >>> [(d.shift, d.values.tolist()) for d in split_weights(np.array([-12, 8, 0]))]
    [(0, [-12, 8, 0])]
    >>> [(d.shift, d.values.tolist()) for d in split_weights(np.array([-127, 100]))]
    [(0, [1, 4]), (4, [-8, 6])]
    >>> [(d.shift, d.values.tolist()) for d in split_weights(np.array([-127, 100]), low=-8, high=7)]
    [(0, [1, 4]), (4, [-8, 6])]
    """
    weight = np.asarray(weight, dtype=np.int64)
    distinct = np.unique(np.append(weight, 0) if with_zero else weight)
    if len(distinct) == 0 or (low <= distinct.min() and distinct.max() <= high and len(distinct) <= CODES
                              and (len(distinct) < CODES or distinct.max() >= 0)):
        return [_digit(weight, 0)]
    radix = 1 << radix_bits
    lowest = _lowest(low, high, radix)
    top = (low, high) if high - low < CODES else (max(low, -radix // 2), min(high, radix // 2 - 1))
    most = most_digits(low, high, radix_bits)
    digits: list[WeightDigit] = []
    rest = weight
    while not (digits and top[0] <= rest.min() and rest.max() <= top[1]):
        if len(digits) == most - 1:
            raise CompileError(f"{name}: weights {distinct[0]}..{distinct[-1]} need more than {most} digits of an "
                               f"engine with weights {low}..{high}; use fewer weight bits, or a wider engine")
        values = (rest - lowest) % radix + lowest
        digits.append(_digit(values, radix_bits * len(digits)))
        rest = (rest - values) >> radix_bits
    return [*digits, _digit(rest, radix_bits * len(digits))]
