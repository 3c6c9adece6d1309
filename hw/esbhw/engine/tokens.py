"""Semaphores between the units: each has one unit that posts and one that takes."""

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

NAMES = (
    "weights_full", "weights_free", "activations_full", "activations_free", "residual_full", "residual_free",
    "constants_full", "constants_free", "accumulators_full", "accumulators_free", "stores",
)
COUNT_BITS = 12


def token_signature():
    """Seen from the semaphore: `post` adds one, `take` removes `amount`, `count` is what there is."""
    return wiring.Signature({"post": In(1), "take": In(1), "amount": In(COUNT_BITS), "count": Out(COUNT_BITS)})


class Tokens(wiring.Component):
    """A post in one cycle is seen in `count` in the next. A take must not exceed the count.

    Members
    -------
    one token_signature() for each of NAMES;  overflow : Out(1), high for good when a count left its range
    """

    def __init__(self):
        super().__init__({**{name: Out(token_signature()) for name in NAMES}, "overflow": Out(1)})

    def elaborate(self, platform):
        m = Module()
        for name in NAMES:
            token = getattr(self, name)
            following = Signal(COUNT_BITS + 1, name=f"{name}_following")
            m.d.comb += following.eq(token.count + token.post)
            with m.If(token.take):
                m.d.comb += following.eq(token.count + token.post - token.amount)
            m.d.sync += token.count.eq(following)
            with m.If(following[COUNT_BITS]):
                m.d.sync += self.overflow.eq(1)
        return m
