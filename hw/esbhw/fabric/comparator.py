"""Comparison of two values: two bits a LUT6_2, the answer is the end of a carry chain."""

from amaranth import Signal, Value

from esbhw.fabric.primitives import carry_chain, lut6_2
from esbhw.target import has_primitives


def greater(m, platform, a: Value, b: Value, name: str, is_signed: bool = True) -> Signal:
    """Whether a > b, two's complement of equal length, or without signs; combinational."""
    assert len(a) == len(b)
    out = Signal(name=name)
    if not has_primitives(platform):
        m.d.comb += out.eq(a.as_signed() > b.as_signed() if is_signed else a.as_unsigned() > b.as_unsigned())
        return out
    propagate, generate = [], []
    for i in range(0, len(a), 2):
        width = min(2, len(a) - i)
        sign = 1 << width - 1 if is_signed and i + width == len(a) else 0

        def values(bits, width=width, sign=sign):
            x, y = (sum(bit << k for k, bit in enumerate(part)) ^ sign for part in (bits[:width], bits[width:]))
            return x, y

        equal, above = lut6_2(
            m, f"{name}_bits{i}", [*(a[i + k] for k in range(width)), *(b[i + k] for k in range(width))],
            lambda *bits, values=values: int(values(bits)[0] == values(bits)[1]),
            lambda *bits, values=values: int(values(bits)[0] > values(bits)[1]))
        propagate.append(equal)
        generate.append(above)
    _, carry = carry_chain(m, name, propagate, generate)
    m.d.comb += out.eq(carry)
    return out
