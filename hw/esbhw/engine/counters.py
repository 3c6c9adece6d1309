"""Event counters, zero at the doorbell, still after the run."""

from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.registers import COUNTERS


class Counters(wiring.Component):
    """Counts each event's cycles while `running`; an event is in its count two cycles after it happened.

    Members
    -------
    clear : In(1), while running: only what happens from this cycle on counts;  running : In(1)
    events : In(len(COUNTERS)), bit i counts in COUNTERS[i]
    values : Out(32 * len(COUNTERS))
    """

    def __init__(self):
        super().__init__({
            "clear": In(1), "running": In(1), "events": In(len(COUNTERS)), "values": Out(32 * len(COUNTERS)),
        })

    def elaborate(self, platform):
        m = Module()
        happened, cleared = Signal(len(COUNTERS)), Signal()
        m.d.sync += [happened.eq(self.events & self.running.replicate(len(COUNTERS))), cleared.eq(self.clear)]
        for i, (name, _) in enumerate(COUNTERS):
            count = Signal(32, name=f"count_{name}")
            with m.If(cleared):
                m.d.sync += count.eq(happened[i])
            with m.Elif(happened[i]):
                m.d.sync += count.eq(count + 1)
            m.d.comb += self.values.word_select(i, 32).eq(count)
        return m
