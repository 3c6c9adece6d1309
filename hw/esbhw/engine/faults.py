"""Chooses what the error registers say, and notices when nothing moves any more."""

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_ADDRESS_BITS
from esbflow.registers import ERRORS, UNITS

LAYER_BITS = 12
ENCODE_CYCLES = 4
"""FaultEncoder: a condition to its code."""
CODES = {name: code for code, (name, _) in ERRORS.items()}


class Watchdog(wiring.Component):
    """`bark` is high CYCLES after `limit` cycles have passed without `progress`; a limit of zero never barks.

    Members
    -------
    limit : In(32);  progress : In(signs), any of them;  bark : Out(1)
    """

    CYCLES = 4  # progress, any of its signs, count, comparison

    def __init__(self, signs: int):
        super().__init__({"limit": In(32), "progress": In(signs), "bark": Out(1)})

    def elaborate(self, platform):
        m = Module()
        still = Signal(32)
        moved = Signal()
        set_ = Signal()
        signs = Signal(len(self.progress))
        m.d.sync += [signs.eq(self.progress), moved.eq(signs.any()), still.eq(still + 1), set_.eq(self.limit.any()),
                     self.bark.eq(set_ & ~moved & (still >= self.limit))]
        with m.If(moved):
            m.d.sync += still.eq(0)
        return m


class FaultEncoder(wiring.Component):
    """Keeps the first fault of a run; of several in one cycle, the one that was added first.

    A pipeline: the conditions of the first cycle that has one are caught, and with them all layers; the first of them is
    found; code, unit, address and layer come out ENCODE_CYCLES after the condition. Addresses must stay as they are until
    then: `caught` tells the ports to keep theirs.

    Members
    -------
    conditions : In(len(faults)), in the order in which they were added
    addresses : In(addresses * 40);  layers : In(layers * 12)
    caught : Out(1), CATCH_CYCLES after the first condition, for good
    error : Out(4), a code, or zero;  error_unit : Out(3);  error_address : Out(40);  error_layer : Out(12), with it
    """

    def __init__(self, faults: list, addresses: int, layers: int):
        """`faults`: (code name, unit name, index of an address or None, index of a layer or None), the first one first."""
        self._faults = faults
        super().__init__({
            "conditions": In(len(faults)), "addresses": In(AXI_ADDRESS_BITS * addresses), "layers": In(LAYER_BITS * layers),
            "caught": Out(1), "error": Out(4), "error_unit": Out(3), "error_address": Out(AXI_ADDRESS_BITS),
            "error_layer": Out(LAYER_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        seen = Signal(len(self._faults))
        held = Signal(len(self._faults))
        layers = Signal(len(self.layers))
        m.d.sync += seen.eq(self.conditions)
        with m.If(~self.caught):
            m.d.sync += [self.caught.eq(seen.any()), held.eq(seen), layers.eq(self.layers)]
        first = Signal(len(self._faults))
        m.d.sync += first.eq(Cat(held[i] & ~held[:i].any() for i in range(len(held))))

        def one_hot(field, values, width):
            """The value whose index a fault has in `field`, where that fault is the first."""
            total = Const(0, width)
            for k in range(len(values) // width):
                mine = [first[i] for i, fault in enumerate(self._faults) if fault[field] == k]
                if mine:
                    total |= Cat(mine).any().replicate(width) & values.word_select(k, width)
            return total

        def encoded(numbers, width):
            return Cat(Cat(first[i] for i, number in enumerate(numbers) if number >> bit & 1).any() for bit in range(width))

        m.d.sync += [
            self.error.eq(encoded([CODES[fault[0]] for fault in self._faults], len(self.error))),
            self.error_unit.eq(encoded([UNITS.index(fault[1]) for fault in self._faults], len(self.error_unit))),
            self.error_address.eq(one_hot(2, self.addresses, AXI_ADDRESS_BITS)),
            self.error_layer.eq(one_hot(3, layers, LAYER_BITS)),
        ]
        return m
