"""Shapes that many blocks have, each written once: a delay, a count in both directions, a choice, a LUT of its own."""

from collections.abc import Callable

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib.wiring import Component, In, Out


def register(m: Module, value, name: str, reset_less: bool = True):
    """The value one cycle later, of the same shape.

    `reset_less` : data needs no reset where a `valid` beside it has one, and shift registers of LUTs have none.
    """
    q = Signal(value.shape(), name=name, reset_less=reset_less)
    m.d.sync += q.eq(value)
    return q


def delayed(m: Module, value, cycles: int, name: str, first: int = 0, reset_less: bool = True):
    """The value `cycles` later, through registers NAME_0, NAME_1, ...; with `first` their numbers begin there."""
    for i in range(first, first + cycles):
        value = register(m, value, f"{name}_{i}", reset_less)
    return value


def count_both_ways(m: Module, count: Signal, up: Value, down: Value) -> None:
    """One more with `up`, one less with `down`, and as many as before with both: one carry chain without a carry in."""
    with m.If(up ^ down):
        m.d.sync += count.eq(count + Cat(Const(1, 1), down.replicate(len(count) - 1)))


def pick(index: Value, values: list) -> Value:
    """values[index], of 2**n values for n bits: two bits of the index a level of LUTs."""
    for bit in index:
        values = [Mux(bit, one, zero) for zero, one in zip(values[::2], values[1::2], strict=True)]
    return values[0]


class _OwnLut(Component):
    """One bit made of a few, `o = function(...)`, combinational."""

    def __init__(self, function: Callable, widths: dict):
        self._function, self._names = function, tuple(widths)
        super().__init__({**{name: In(width) for name, width in widths.items()}, "o": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(self._function(**{name: getattr(self, name) for name in self._names}))
        return m


def own_lut(m: Module, name: str, function: Callable, **inputs: Value) -> Value:
    """`function(**inputs)`, of at most 6 bits, as one LUT: Yosys shares no logic across modules, and this is one, `name`."""
    m.submodules[name] = part = _OwnLut(function, {key: len(value) for key, value in inputs.items()})
    m.d.comb += [getattr(part, key).eq(value) for key, value in inputs.items()]
    return part.o
