"""LUT6_2: two functions of the same five inputs; and bitwise functions at two bits a LUT."""

from collections.abc import Callable

from amaranth import Cat, Const, Instance, Mux, Signal, Value

from esbhw.target import has_primitives

LUT_INPUTS = 5
"""Inputs that the two outputs of a LUT6_2 share; the sixth is held high (UG574)."""


def emit_lut(m, name: str, inputs: list, function6: Callable, function5: Callable | None = None) -> tuple:
    """(O6, O5) of a LUT6_2 in `m`: function6 and function5 of the inputs, which are 1-bit values.

    Raises
    ------
    ValueError
        if there are more than five inputs.
    """
    if len(inputs) > LUT_INPUTS:
        raise ValueError(f"{name} needs {len(inputs)} inputs and a LUT6_2 shares {LUT_INPUTS}")
    content = 0
    for k in range(1 << LUT_INPUTS):
        bits = [k >> z & 1 for z in range(len(inputs))]
        content |= (function5(*bits) if function5 else 0) << k | function6(*bits) << (k + (1 << LUT_INPUTS))
    o6, o5 = Signal(name=f"{name}_o6"), Signal(name=f"{name}_o5")
    pins = {f"i_I{z}": inputs[z] if z < len(inputs) else Const(0, 1) for z in range(LUT_INPUTS)}
    m.submodules[name] = Instance("LUT6_2", p_INIT=Const(content, 64), **pins, i_I5=Const(1, 1), o_O6=o6, o_O5=o5)
    return o6, o5


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
        low, high = emit_lut(m, f"{name}_{i}", inputs,
                             lambda c, *b: function(*b[:count], c), lambda c, *b: function(*b[count:2 * count], c)
                             if len(b) > count else 0)
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
