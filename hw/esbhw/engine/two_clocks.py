"""An engine whose buses have one clock and whose arrays have another; `compute_clk` may have any ratio to `ap_clk`.

The engine is the one of a single clock, as it is. AXI lets both ends of a channel take as long as they like, so every
channel goes through a FIFO from clock to clock, and nothing else changes: a run gives the same values, and its counters
count cycles of `compute_clk`. The engine sees an answer after the bus gave it, so when it is quiescent the bus is.
"""

from amaranth import ClockDomain, DomainRenamer, Elaboratable, Module, Signal
from amaranth.lib.wiring import Flow

from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import activation_masters
from esbflow.errors import BadValue
from esbhw.engine.axi import read_signature, write_signature
from esbhw.engine.clock_crossing import ClockCrossing, LevelCrossing, ResetCrossing
from esbhw.engine.control import lite_signature
from esbhw.engine.engine import Engine
from esbhw.interfaces import SLAVE, masters

CONSTANT = ("size", "burst", "cache", "prot")
"""What an address channel says alike each time, or the slave does not look at; a master's `wstrb` too."""
CHANNELS = ("ar", "r", "aw", "w", "b")
MOST_MHZ = 1000


def check_mhz(compute_mhz: int | None) -> None:
    """Raises ValueError for a compute clock that no engine can have."""
    if compute_mhz is not None and not 1 <= compute_mhz <= MOST_MHZ:
        raise BadValue(f"the compute clock must be 1 to {MOST_MHZ} MHz, not {compute_mhz}")


def channels(config: EngineConfig) -> list:
    """[(crossing, "bus" or "compute" that it comes from, port prefix with the channel, names of what it carries)]."""
    found = []
    for bus in (SLAVE, *masters(config)):
        signatures = [lite_signature()] if bus == SLAVE else [read_signature()]
        if bus in activation_masters(config):
            signatures.append(write_signature())
        members = {name: member for signature in signatures for name, member in signature.members.items()}
        for channel in CHANNELS:
            if f"{channel}valid" not in members:
                continue
            source = "compute" if members[f"{channel}valid"].flow == Flow.Out else "bus"
            carried = [name for name in members if name.startswith(channel) and (bus == SLAVE or name != "wstrb")
                       and name[len(channel):] not in ("valid", "ready", *CONSTANT)]
            found.append((f"{bus}_{channel}_crossing", source, f"{bus}_{channel}", [f"{bus}_{name}" for name in carried]))
    return found


class TwoClockEngine(Elaboratable):
    """An Engine behind clock crossings: the same ports, all in `ap_clk`, and `compute_clk`. `ports` lists them.

    `ap_rst_n` resets both clocks' registers; one cycle of `ap_clk` is enough.
    """

    def __init__(self, config: EngineConfig):
        self.config = config
        self._core = Engine(config)
        self.outside = {port.name: Signal(port.shape(), name=port.name) for port in self._core.ports}
        self.compute_clk = Signal()
        self.ports = [*self.outside.values(), self.compute_clk]

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = self._core  # it declares the domain "sync"
        outside, inside = self.outside, {port.name: port for port in core.ports}
        m.domains.bus = bus = ClockDomain("bus")
        m.domains.compute = compute = ClockDomain("compute")
        m.submodules.reset_crossing = reset = ResetCrossing()
        m.d.comb += [
            bus.clk.eq(outside["ap_clk"]), bus.rst.eq(reset.bus_reset), compute.clk.eq(self.compute_clk),
            compute.rst.eq(reset.compute_reset), core.ap_clk.eq(self.compute_clk), core.ap_rst_n.eq(~reset.compute_reset),
            reset.reset_n.eq(outside["ap_rst_n"]),
        ]
        m.submodules.irq_crossing = irq = DomainRenamer({"source": "compute", "sink": "bus"})(LevelCrossing())
        m.d.comb += [irq.i.eq(core.irq), outside["irq"].eq(irq.o)]
        crossed = {"ap_clk", "ap_rst_n", "irq"}
        for name, source, prefix, carried in channels(self.config):
            sink = "bus" if source == "compute" else "compute"
            crossing = ClockCrossing(sum(len(outside[member]) for member in carried))
            m.submodules[name] = DomainRenamer({"source": source, "sink": sink})(crossing)
            come, go = (inside, outside) if source == "compute" else (outside, inside)
            valid, ready, at = f"{prefix}valid", f"{prefix}ready", 0
            m.d.comb += [crossing.i.valid.eq(come[valid]), come[ready].eq(crossing.i.ready),
                         go[valid].eq(crossing.o.valid), crossing.o.ready.eq(go[ready])]
            for member in carried:
                part = slice(at, at + len(outside[member]))
                m.d.comb += [crossing.i.payload[part].eq(come[member]), go[member].eq(crossing.o.payload[part])]
                at = part.stop
            crossed |= {valid, ready, *carried}
        for name in outside:  # constants of the masters; the slave looks at no `prot`
            if name not in crossed and not name.startswith(SLAVE):
                m.d.comb += outside[name].eq(inside[name])
        return m
