"""Bitwise functions at two bits a LUT."""

from collections.abc import Callable

from amaranth import Cat, Mux, Signal, Value

from esbhw.fabric.primitives import lut6_2
from esbhw.target import has_primitives


def bitwise_pairs(m, platform, name: str, plain: Value, operands: list, control: Value, function: Callable) -> Signal:
    """`plain`, computed at two bits a LUT6_2: bit i is function(*(bit i of each operand), control).

    Parameters
    ----------
    plain : the same function as an Amaranth value, for plain RTL.
    operands : one or two values of equal length.  control : 1-bit value that all bits share.
    """
    width = len(operands[0])
    out = Signal(width, name=name)
    if not has_primitives(platform):
        m.d.comb += out.eq(plain)
        return out
    count, bits = len(operands), []
    for i in range(0, width, 2):
        inputs = [control, *(operand[i] for operand in operands)]
        if i + 1 < width:
            inputs += [operand[i + 1] for operand in operands]
        low, high = lut6_2(m, f"{name}_{i}", inputs, lambda c, *b: function(*b[:count], c),
                           lambda c, *b: function(*b[count:2 * count], c) if len(b) > count else 0)
        bits += [low, high] if i + 1 < width else [low]
    m.d.comb += out.eq(Cat(*bits))
    return out


def exclusive_or(m, platform, name: str, value: Value, control: Value) -> Signal:
    """The value, inverted where `control` is set."""
    return bitwise_pairs(m, platform, name, value ^ control.replicate(len(value)), [value], control, lambda a, c: a ^ c)


def multiplexed(m, platform, name: str, zero: Value, one: Value, control: Value) -> Signal:
    """`one` where `control` is set, else `zero`."""
    return bitwise_pairs(m, platform, name, Mux(control, one, zero), [zero, one], control,
                         lambda a, b, c: b if c else a)
