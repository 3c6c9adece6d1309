"""Multiplication by shifts and adds: no `*` ever reaches synthesis, so no DSP block can be inferred."""

from amaranth import Const, Mux, Signal, signed, unsigned


def partial_products(a, b):
    """The rows whose sum is a * b, for signed values: one row per bit of b.

    b's top bit weighs negatively; its row enters as a one's complement, and the missing one is the last row.
    """
    rows = [Mux(b[i], a, 0) << i for i in range(len(b))]
    return rows[:-1] + [~rows[-1], Const(1, 1)]


def add_level(m, rows, name, domain=None, operands=2):
    """Add neighbours `operands` at a time; registered when `domain` is given. Returns the shorter list."""
    sums = []
    for i in range(0, len(rows), operands):
        total = sum(rows[i + 1:i + operands], start=rows[i])
        shape = total.shape()
        register = Signal(signed(shape.width) if shape.signed else unsigned(shape.width), name=f"{name}_{i}")
        if domain:
            m.d[domain] += register.eq(total)
        else:
            m.d.comb += register.eq(total)
        sums.append(register)
    return sums


def small_product(a, b):
    """a * b of unsigned values as one combinational expression; for addresses."""
    total = Const(0, 1)
    for i in range(len(b)):
        total = total + (Mux(b[i], a, 0) << i)
    return total[:len(a) + len(b)]
