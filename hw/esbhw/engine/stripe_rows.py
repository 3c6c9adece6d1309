"""Which rows lie on the map, for each slice: slices on stripes of one image do not begin with the same row."""

from amaranth import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow import instructions

ROW_BITS = dict(instructions.STRIPE_FIELDS["PASS"])["stripe"]
BOUND_BITS = ROW_BITS + 5
"""Of the map's ends as the last of 16 slices sees them, with a sign."""


class StripeRows(wiring.Component):
    """Row y of slice 0 is row y + s * stripe of slice s. It is on the map if `low` <= y < `high`.

    Bounds are worked out while a pass is staged: multiples of `stripe` as it is accepted, differences in the next cycle. A
    pass begins two cycles after it was accepted, at the earliest.

    Members
    -------
    accept : In(1), the pass with `stripe` is staged in the next cycle;  stripe : In(ROW_BITS)
    rows : In(ROW_BITS), of the map of the pass that is staged
    take : In(1), the pass that is staged begins in the next cycle
    low, high : Out(slices * BOUND_BITS), of the pass under way
    """

    def __init__(self, slices: int):
        self._slices = slices
        super().__init__({
            "accept": In(1), "stripe": In(ROW_BITS), "take": In(1), "rows": In(ROW_BITS),
            "low": Out(slices * BOUND_BITS), "high": Out(slices * BOUND_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        for k in range(self._slices):
            low, high = (Signal(signed(BOUND_BITS), name=f"{name}_{k}") for name in ("low", "high"))
            if k:
                behind, coming_low, coming_high = (Signal(signed(BOUND_BITS), name=f"{name}_{k}")
                                                   for name in ("behind", "coming_low", "coming_high"))
                with m.If(self.accept):
                    m.d.sync += behind.eq(_multiple(self.stripe, k))
                m.d.sync += [coming_low.eq(-behind), coming_high.eq(self.rows - behind)]
                with m.If(self.take):
                    m.d.sync += [low.eq(coming_low), high.eq(coming_high)]
            else:
                with m.If(self.take):
                    m.d.sync += high.eq(self.rows)
            m.d.comb += [self.low.word_select(k, BOUND_BITS).eq(low), self.high.word_select(k, BOUND_BITS).eq(high)]
        return m


class RowsInside(wiring.Component):
    """Whether row y lies on the map, for each slice. A block of its own: so the column, which is known as late, is not
    joined with a part of it first.

    Members
    -------
    low, high : In(slices * BOUND_BITS), as StripeRows;  y : In(y_bits), signed;  inside : Out(slices)
    """

    def __init__(self, slices: int, y_bits: int):
        self._slices = slices
        super().__init__({"low": In(slices * BOUND_BITS), "high": In(slices * BOUND_BITS), "y": In(signed(y_bits)),
                          "inside": Out(slices)})

    def elaborate(self, platform):
        m = Module()
        for k in range(self._slices):
            low, high = (part.word_select(k, BOUND_BITS).as_signed() for part in (self.low, self.high))
            m.d.comb += self.inside[k].eq((self.y >= low) & (self.y < high))
        return m


def _multiple(value, factor: int):
    """Adders and subtractors: synthesis makes a DSP block of a product, even with a constant of -1."""
    parts = {sign: sum(value << place for found, place in _terms(factor) if found == sign) for sign in (1, -1)}
    return parts[1] - parts[-1]


def _terms(factor: int) -> list:
    """(sign, power of two) of at most three terms whose sum is a factor up to 15.

    >>> [_terms(factor) for factor in (5, 7, 11)]
    [[(1, 0), (1, 2)], [(-1, 0), (1, 3)], [(-1, 0), (-1, 2), (1, 4)]]
    """
    terms, place = [], 0
    while factor:
        if factor & 1:
            sign = -1 if factor & 3 == 3 else 1
            terms.append((sign, place))
            factor -= sign
        factor, place = factor >> 1, place + 1
    return terms
