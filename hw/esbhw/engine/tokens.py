"""Semaphores between the units: each has one unit that posts and one that takes."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbhw.engine.fifo import above_two
from esbhw.fabric.idioms import count_both_ways, own_lut

NAMES = (
    "weights_full", "weights_free", "activations_full", "activations_free", "residual_full", "residual_free",
    "constants_full", "constants_free", "accumulators_full", "accumulators_free", "stores",
)
COUNT_BITS = 12
IMAGE = "image_full"
"""The semaphore that an engine with an image buffer has beside these."""
SEVERAL = ("stores",)
"""Of these a taker may take more than one at once."""


def token_signature(name: str):
    """Seen from the semaphore: `post` adds one; `take` removes one, or `amount`; what is there: `available`, or `count`."""
    several = {"amount": In(COUNT_BITS), "count": Out(COUNT_BITS)}
    return wiring.Signature({"post": In(1), "take": In(1), **(several if name in SEVERAL else {"available": Out(1)})})


TOGETHER = 3
"""Signs and their registers that one LUT of six inputs looks at."""


def joined(m, signs: list, post, bits: int, name: str = "", shallow: bool = False) -> None:
    """Drives `post`: high once for each time that all of the signs have been high, now or earlier.

    A sign may be up to 2**bits - 1 times ahead of another.

    shallow : of up to nine signs in two levels of LUTs, whatever Yosys would share with other logic.
    """
    if len(signs) == 1:
        m.d.comb += post.eq(signs[0])
        return
    here, registers = [], []
    for k, now in enumerate(signs):
        # How often it was high and not all the others; and registers that say whether that is at least once, or twice.
        count = Signal(bits, name=f"{name}ahead_{k}")
        some, several = Signal(name=f"{name}some_{k}"), Signal(name=f"{name}several_{k}")
        here.append(now | some)
        registers.append(some)
        with m.If(now ^ post):
            m.d.sync += count.eq(count + Cat(Const(1, 1), (~now).replicate(bits - 1)))
        m.d.sync += [
            some.eq(Mux(post, Mux(now, some, several), now | some)),
            several.eq(Mux(post, Mux(now, several, above_two(m, count)), Mux(now, some, several))),
        ]
    if shallow:
        here = []
        for k in range(0, len(signs), TOGETHER):
            here.append(own_lut(m, f"{name}together_{k}", lambda now, some: (now | some).all(),
                                now=Cat(signs[k:k + TOGETHER]), some=Cat(registers[k:k + TOGETHER])))
    m.d.comb += post.eq(Cat(*here).all())


class Tokens(wiring.Component):
    """A post or take in one cycle is seen TOKEN_CYCLES later. A take must not exceed what is there.

    Members
    -------
    NAME : Out(token_signature(NAME)), for each of the names
    overflow : Out(1), high for good when a count left its range
    """

    def __init__(self, names: tuple = NAMES):
        self._names = names
        super().__init__({**{name: Out(token_signature(name)) for name in names}, "overflow": Out(1)})

    def elaborate(self, platform):
        m = Module()
        left = Signal(len(self._names))  # a count that is negative, or too large, has one bit more
        for i, name in enumerate(self._names):
            token = getattr(self, name)
            count = Signal(COUNT_BITS + 1, name=f"{name}_count")
            if name in SEVERAL:
                # -1 - change, so that no adder needs a carry in.
                change = Signal(COUNT_BITS + 1, name=f"{name}_change", init=-1)
                m.d.sync += [
                    change.eq((token.amount & token.take.replicate(COUNT_BITS)) + Cat(~token.post, Const(-1, COUNT_BITS))),
                    count.eq(count + ~change),
                ]
                m.d.comb += token.count.eq(count)
            else:
                posted, taken = Signal(name=f"{name}_posted"), Signal(name=f"{name}_taken")
                m.d.sync += [posted.eq(token.post), taken.eq(token.take)]
                count_both_ways(m, count, posted, taken)
                # One is posted, or there are as many as are taken and one more.
                m.d.sync += token.available.eq(posted | (count[1:].any() | (count[0] & ~taken)))
            m.d.comb += left[i].eq(count[COUNT_BITS])
        with m.If(left.any()):
            m.d.sync += self.overflow.eq(1)
        return m
