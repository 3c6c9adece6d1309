"""Rows that add a digit of a multiplier times a multiplicand to a sum: one LUT6 a bit and one carry chain.

The multiplier is cut into Booth digits of radix 4 (-2..2, each from three neighbouring bits), so that a product of
n x 12 bits takes six rows of n + 2 LUTs. A bit of a row is a function of six inputs: the sum's bit, two bits of the
multiplicand and three of the multiplier. The sum's bit reaches the carry chain directly. A negative digit enters as a
one's complement whose missing one is the chain's carry in.

Each row adds a constant, so that it is never negative and no sign is extended; see `rows_offset`.
"""

from amaranth import Cat, Const, Mux, Signal, Value

from esbflow.requantizer import DIGIT_STEP
from esbhw.fabric.primitives import carry_chain, lut6, lut6_2
from esbhw.target import has_primitives


def digits(multiplier: Value) -> list:
    """The Booth digits of a two's complement multiplier of even length, lowest first: three bits each."""
    padded = Cat(Const(0, 1), multiplier)
    return [padded[k:k + 3] for k in range(0, len(multiplier), DIGIT_STEP)]


def _choose(low, middle, high, same, below):
    """A bit of the digit times the multiplicand, before the carry in; all arguments 0 or 1."""
    one, two = low ^ middle, (high ^ middle) & ~(low ^ middle) & 1
    return (one & same | two & below) ^ high


def digit_row(m, platform, addend: Value, multiplicand: Value, digit: Value, name: str) -> Signal:
    """addend + digit * multiplicand + 2**(n + 1) in n + 3 bits, for a multiplicand of n bits; combinational.

    Parameters
    ----------
    addend : unsigned, n + 2 bits at most.
    multiplicand : unsigned or signed.
    digit : three bits as `digits` gives them, worth -2*high + middle + low.
    """
    n, is_signed = len(multiplicand), multiplicand.shape().signed
    assert len(addend) <= n + 2
    total = Signal(n + 3, name=name)
    low, middle, high = digit[0], digit[1], digit[2]
    if not has_primitives(platform):
        one, two = low ^ middle, (high ^ middle) & ~(low ^ middle)
        term = Signal(n + 2, name=f"{name}_term")
        m.d.comb += [
            term.eq(Mux(two, multiplicand << 1, Mux(one, multiplicand, 0)) ^ high.replicate(n + 2)),
            total.eq(addend + (term ^ (1 << n + 1)) + high),
        ]
        return total
    propagate, direct = [], []
    for i in range(n + 2):
        top = i == n + 1
        same = multiplicand[min(i, n - 1)] if i < n or is_signed else None
        below = multiplicand[min(i, n) - 1] if i and (i <= n or is_signed) else None
        inputs, places = [low, middle, high], {}
        for label, bit in (("same", same), ("below", below), ("addend", addend[i] if i < len(addend) else None)):
            if bit is not None and not (label == "below" and same is bit):
                places[label] = len(inputs)
                inputs.append(bit)
        if same is not None and below is not None and "below" not in places:
            places["below"] = places["same"]

        def value(*bits, places=places, top=top):
            taken = {label: bits[place] for label, place in places.items()}
            chosen = _choose(*bits[:3], taken.get("same", 0), taken.get("below", 0))
            return chosen ^ taken.get("addend", 0) ^ top

        if i == 0:
            # The site's bypass input is taken by the carry in.
            o6, o5 = lut6_2(m, f"{name}_bit{i}", inputs, value,
                            lambda *bits, places=places: bits[places["addend"]] if "addend" in places else 0)
            propagate.append(o6)
            direct.append(o5)
        else:
            propagate.append(lut6(m, f"{name}_bit{i}", inputs, value))
            direct.append(addend[i] if i < len(addend) else Const(0, 1))
    bits, carry = carry_chain(m, name, propagate, direct, high)
    m.d.comb += total.eq(Cat(*bits, carry))
    return total
