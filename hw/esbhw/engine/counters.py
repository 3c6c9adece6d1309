"""Event counters, zero at the doorbell, still after the run."""

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.registers import COUNTERS


class Counters(wiring.Component):
    """Counts each event's cycles while `running`; an event counts in the cycle after it happened.

    Members
    -------
    clear : In(1);  running : In(1);  events : In(number of COUNTERS), bit i counts in COUNTERS[i]
    values : Out(32 * number of COUNTERS)
    """

    def __init__(self):
        super().__init__({
            "clear": In(1), "running": In(1), "events": In(len(COUNTERS)), "values": Out(32 * len(COUNTERS)),
        })

    def elaborate(self, platform):
        m = Module()
        for i, (name, _) in enumerate(COUNTERS):
            count = Signal(32, name=f"count_{name}")
            with m.If(self.clear):
                m.d.sync += count.eq(self.events[i])
            with m.Elif(self.running & self.events[i]):
                m.d.sync += count.eq(count + 1)
            m.d.comb += self.values.word_select(i, 32).eq(count)
        return m
