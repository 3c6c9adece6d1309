"""Pass 2: integers -> the array's 4-bit codes, exactly. Wide operands become several passes with left shifts."""

from dataclasses import dataclass

import numpy as np

from esbflow.compiler.errors import CompileError

CODES = 16
LARGEST = 15
"""A weight digit is a sign and a 4-bit magnitude."""


@dataclass(frozen=True, eq=False)
class WeightDigit:
    """`codes` (uint8, the weight's shape) index `book` (16 integers in -15..15); the digit weighs 16**position."""

    codes: np.ndarray
    book: np.ndarray
    position: int

    @property
    def values(self) -> np.ndarray:
        return self.book[self.codes]

    @property
    def codebook(self) -> int:
        """The 80-bit field of a PASS: entry i in bits 5i..5i+4, sign on top of the magnitude."""
        word = 0
        for i, value in enumerate(self.book):
            word |= (abs(int(value)) | (16 if value < 0 else 0)) << (5 * i)
        return word

    @property
    def padding_code(self) -> int:
        """A code for places of a tile without a weight: zero if the book has it.

        If not, a digit that is not negative: a layer without groups has such places only where activations are zero.
        """
        zeros = np.flatnonzero(self.book == 0)
        return int(zeros[0] if len(zeros) else np.flatnonzero(self.book >= 0)[0])


def _digit(values: np.ndarray, position: int) -> WeightDigit:
    book = np.unique(np.append(values, 0))
    if len(book) > CODES:
        book = np.unique(values)
    codes = np.searchsorted(book, values).astype(np.uint8)
    padded = np.zeros(CODES, dtype=np.int64)
    padded[:len(book)] = book
    return WeightDigit(codes, padded, position)


def split_weights(weight: np.ndarray, name: str = "weights", with_zero: bool = False) -> list:
    """Digits d with sum over d of values * 16**position = weight, exactly; as few as the codes allow.

    One digit holds any 16 integers in -15..15 (so ESB(4,1), every linear set to 4 bits and half-integer grids);
    wider ones are cut in two's complement, 4 bits a digit. `with_zero` asks for a zero in every book, as grouped
    layers need.

    Raises
    ------
    CompileError
        if the weights need more than four digits.

    >>> [(d.position, d.values.tolist()) for d in split_weights(np.array([-12, 8, 0]))]
    [(0, [-12, 8, 0])]
    >>> [(d.position, d.values.tolist()) for d in split_weights(np.array([-127, 100]))]
    [(0, [1, 4]), (1, [-8, 6])]
    """
    weight = np.asarray(weight, dtype=np.int64)
    distinct = np.unique(np.append(weight, 0) if with_zero else weight)
    if len(distinct) == 0 or (np.abs(distinct).max() <= LARGEST and len(distinct) <= CODES
                              and (len(distinct) < CODES or distinct.max() >= 0)):
        return [_digit(weight, 0)]
    for count in range(1, 5):
        half = 1 << (4 * count - 1)
        if -half <= distinct[0] and distinct[-1] < half:
            break
    else:
        raise CompileError(f"{name}: weights {distinct[0]}..{distinct[-1]} need more than 16 bits")
    digits = []
    for position in range(count):
        if position == count - 1:
            values = weight >> (4 * position)  # arithmetic: the top digit keeps the sign
        else:
            values = (weight >> (4 * position)) & 15
        digits.append(_digit(values, position))
    return digits


def ones_complement_loss(digit: WeightDigit) -> np.ndarray:
    """What the array lacks per negative weight: its magnitude, weighed. Shape of the weights."""
    return np.where(digit.values < 0, -digit.values, 0) << (4 * digit.position)
