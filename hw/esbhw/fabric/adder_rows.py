"""Adder rows of one LUT a bit: two gated operands or three plain ones on a carry chain, and registered trees of them.

A LUT6_2 computes two functions of the same five inputs, so that a bit of a carry chain can hold a small function of its
operands: the sum of two products a0*w0 + a1*w1 with 1-bit w takes one LUT a bit. A ternary row x + y + z takes one too:
O5 is the majority, which the next bit takes in, O6 the exclusive or of four (UG574, and "ternary adders" in XAPP522).

Each row is also written as a plain sum, for simulation and for other devices. Which of the two an elaboration has is the
target's choice; esbhw.equivalence proves that they are equal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from amaranth import Cat, Const, Instance, Mux, Signal, Value

from esbhw.fabric.idioms import register
from esbhw.fabric.primitives import lut6_2
from esbhw.target import has_primitives

CARRY_BITS = 8


@dataclass(frozen=True)
class Term:
    """One unsigned operand of a row.

    value : the operand as an Amaranth value, for plain RTL.
    bits : for each bit, lowest first, (1-bit values, function of them); None is a zero.
    largest : the largest value that it takes; rows trim their width by it.
    """

    value: Value
    bits: tuple
    largest: int

    def shifted(self, places: int) -> "Term":
        """The operand times 2**places."""
        if not places:
            return self
        return Term(self.value << places, (None,) * places + self.bits, self.largest << places)


def _bits(value: Value, others: tuple, function: Callable) -> tuple:
    return tuple(((value[i], *others), function) for i in range(len(value)))


def plain(value: Value, largest: int | None = None) -> Term:
    """The value itself."""
    return Term(value, _bits(value, (), lambda a: a), (1 << len(value)) - 1 if largest is None else largest)


def gated(value: Value, enable: Value, largest: int | None = None) -> Term:
    """The value where `enable` is set, else 0."""
    return Term(Mux(enable, value, 0), _bits(value, (enable,), lambda a, g: a & g),
                (1 << len(value)) - 1 if largest is None else largest)


def inverted(value: Value, width: int | None = None) -> Term:
    """The one's complement in `width` bits (None: the value's own)."""
    width = len(value) if width is None else width
    ones = (1 << width) - 1
    bits = _bits(value, (), lambda a: 1 ^ a) + (((), lambda: 1),) * (width - len(value))
    return Term(ones ^ value, bits, ones)


def selected(choices: tuple, select: Value, clear: Value) -> Term:
    """choices[select], or 0 where `clear` is set; two choices of equal length."""
    zero, one = choices
    bits = tuple(((zero[i], one[i], select, clear), lambda a, b, s, f: 0 if f else (b if s else a))
                 for i in range(len(zero)))
    return Term(Mux(clear, 0, Mux(select, one, zero)), bits, (1 << len(zero)) - 1)


class RowSum(NamedTuple):
    """The sum that a row makes, and its largest value."""

    total: Value
    largest: int


def add_row(m, platform, terms: list, name: str, width: int | None = None, carry: Value | None = None) -> RowSum:
    """(sum of up to three terms, and of the bit `carry`, modulo 2**width, its largest value), combinational.

    Takes one LUT6_2 for each bit at which more than one term has a bit; lower bits of a single plain term are wires.

    Parameters
    ----------
    width : bits to keep; None keeps what `largest` of the terms can need.

    Raises
    ------
    ValueError
        if a bit needs more inputs than a LUT6_2 has.
    """
    largest = sum(term.largest for term in terms) + (carry is not None)
    needed = max(1, largest.bit_length())
    width = needed if width is None else min(width, needed)
    total = Signal(width, name=name)
    if not has_primitives(platform):
        m.d.comb += total.eq(sum((term.value for term in terms[1:]), start=terms[0].value) + (0 if carry is None else carry))
    else:
        _Row(m, terms, name, width, carry).emit(total)
    return RowSum(total, min(largest, (1 << width) - 1))


class _Row:
    """The primitives of one row."""

    def __init__(self, m, terms, name, width, carry):
        self._m, self._name, self._width, self._carry_in = m, name, width, carry
        self._columns = [[term.bits[i] for term in terms if i < len(term.bits) and term.bits[i] is not None]
                         for i in range(width)]

    def emit(self, total: Signal) -> None:
        """Drive `total`: wires up to the first bit that is a sum, and a carry chain from there."""
        columns, width = self._columns, self._width
        low = 0
        while low < width and len(columns[low]) <= 1 and self._carry_in is None:
            low += 1
        out = [self._single(column, i) for i, column in enumerate(columns[:low])]
        if low < width:
            out += self._chain(low)
        self._m.d.comb += total.eq(Cat(*out))

    def _single(self, column, i):
        """A bit that no other term has: a wire, or one LUT."""
        if not column:
            return Const(0, 1)
        inputs, function = column[0]
        if len(inputs) == 1 and function(0) == 0:
            return inputs[0]
        if not inputs:
            return Const(function(), 1)
        o6, _ = lut6_2(self._m, f"{self._name}_single{i}", list(inputs), function)
        return o6

    def _chain(self, low: int) -> list:
        """The LUTs of the bits from `low` on; a ternary row's LUTs hand the majority on to the next bit."""
        columns, width = self._columns, self._width
        ternary = any(len(column) == 3 for column in columns[low:])
        sums, direct, carried = [], [], None
        for i in range(low, width):
            column = columns[i]
            if not column and carried is None:
                assert i == width - 1, "only the carry out has no operand"
                break
            inputs = []
            for names, _ in column:
                inputs += [bit for bit in names if all(bit is not other for other in inputs)]
            places = [[next(k for k, other in enumerate(inputs) if other is bit) for bit in names]
                      for names, _ in column]
            if carried is not None:
                inputs.append(carried)

            def values(bits, column=column, places=places):
                return [function(*(bits[k] for k in where)) for (_, function), where in zip(column, places)]

            taken = carried is not None

            def exclusive_or(*bits, values=values, taken=taken):
                return (sum(values(bits)) + (bits[-1] if taken else 0)) & 1

            def other(*bits, values=values):
                found = values(bits)
                return int(sum(found) >= 2) if ternary else (found[0] if found else 0)

            o6, o5 = lut6_2(self._m, f"{self._name}_bit{i}", inputs, exclusive_or, other)
            sums.append(o6)
            if ternary:
                direct.append(Const(0, 1) if carried is None else carried)
                carried = o5 if len(column) >= 2 else None
            else:
                direct.append(o5)
        return self._carry(sums, direct, width - low)

    def _carry(self, sums, direct, width) -> list:
        """The carry chain of a row, eight bits a CARRY8, and its sums; the carry out is the last if `width` has it."""
        out, carry, last = [], Const(0, 1) if self._carry_in is None else self._carry_in, None
        for start in range(0, len(sums), CARRY_BITS):
            s, d = sums[start:start + CARRY_BITS], direct[start:start + CARRY_BITS]
            pad = Const(0, CARRY_BITS - len(s))
            o = Signal(CARRY_BITS, name=f"{self._name}_o{start}")
            co = Signal(CARRY_BITS, name=f"{self._name}_co{start}")
            self._m.submodules[f"{self._name}_carry{start}"] = Instance(
                "CARRY8", i_CI=carry, i_CI_TOP=Const(0, 1), i_DI=Cat(*d, pad), i_S=Cat(*s, pad), o_O=o, o_CO=co)
            out += [o[k] for k in range(len(s))]
            carry, last = co[CARRY_BITS - 1], co[len(s) - 1]
        return [*out, last][:width]


def add_tree(m, platform, terms: list, name: str) -> Term:
    """The sum of all terms, three at a time, registered after every level:
    `engine_facts.tree_levels(len(terms))` cycles later."""
    level = 0
    while len(terms) > 1:
        terms = sorted(terms, key=lambda term: len(term.bits))
        sums = []
        for k in range(0, len(terms), 3):
            label = f"{name}_{level}_{k // 3}"
            total, largest = add_row(m, platform, terms[k:k + 3], label)
            sums.append(plain(register(m, total, f"{label}_q"), largest))
        terms, level = sums, level + 1
    return terms[0]
