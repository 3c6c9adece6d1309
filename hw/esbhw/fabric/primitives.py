"""LUTs given as Python functions, and carry chains of CARRY8."""

from collections.abc import Callable
from typing import NamedTuple

from amaranth import Cat, Const, Instance, Signal, Value

from esbflow.errors import BadValue

CARRY_BITS = 8
SHARED_INPUTS = 5
"""Inputs that the two outputs of a LUT6_2 share; the sixth is held high (UG574)."""


def lut6(m, name: str, inputs: list, function) -> Signal:
    """A LUT6 of up to six 1-bit inputs; `function` takes as many integers 0 or 1 and gives one."""
    content = 0
    for k in range(64):
        content |= function(*(k >> z & 1 for z in range(len(inputs)))) << k
    out = Signal(name=f"{name}_o")
    pins = {f"i_I{z}": inputs[z] if z < len(inputs) else Const(0, 1) for z in range(6)}
    m.submodules[name] = Instance("LUT6", p_INIT=Const(content, 64), **pins, o_O=out)
    return out


class LutOutputs(NamedTuple):
    """The two outputs of a LUT6_2."""

    o6: Signal
    o5: Signal


def lut6_2(m, name: str, inputs: list, function6: Callable, function5: Callable | None = None) -> LutOutputs:
    """(O6, O5) of a LUT6_2: two functions of the same inputs, which are 1-bit values.

    Raises
    ------
    ValueError
        if there are more than five inputs.
    """
    if len(inputs) > SHARED_INPUTS:
        raise BadValue(f"{name} needs {len(inputs)} inputs and a LUT6_2 shares {SHARED_INPUTS}")
    content = 0
    for k in range(1 << SHARED_INPUTS):
        bits = [k >> z & 1 for z in range(len(inputs))]
        content |= (function5(*bits) if function5 else 0) << k | function6(*bits) << (k + (1 << SHARED_INPUTS))
    o6, o5 = Signal(name=f"{name}_o6"), Signal(name=f"{name}_o5")
    pins = {f"i_I{z}": inputs[z] if z < len(inputs) else Const(0, 1) for z in range(SHARED_INPUTS)}
    m.submodules[name] = Instance("LUT6_2", p_INIT=Const(content, 64), **pins, i_I5=Const(1, 1), o_O6=o6, o_O5=o5)
    return LutOutputs(o6, o5)


class Carried(NamedTuple):
    """The bits that a carry chain makes, lowest first, and its last carry."""

    bits: list
    carry: Value


def carry_chain(m, name: str, propagate: list, generate: list, carry_in=None) -> Carried:
    """(exclusive or of `propagate` and the carries, the last carry). Where `propagate` is 0, `generate` is the carry."""
    out, carry = [], Const(0, 1) if carry_in is None else carry_in
    for start in range(0, len(propagate), CARRY_BITS):
        s, d = propagate[start:start + CARRY_BITS], generate[start:start + CARRY_BITS]
        pad = Const(0, CARRY_BITS - len(s))
        o, co = Signal(CARRY_BITS, name=f"{name}_o{start}"), Signal(CARRY_BITS, name=f"{name}_co{start}")
        m.submodules[f"{name}_carry{start}"] = Instance(
            "CARRY8", i_CI=carry, i_CI_TOP=Const(0, 1), i_DI=Cat(*d, pad), i_S=Cat(*s, pad), o_O=o, o_CO=co)
        out += [o[k] for k in range(len(s))]
        carry = co[len(s) - 1]
    return Carried(out, carry)
