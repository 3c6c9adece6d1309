"""The whole FPGA of a board without a processor: engine, block RAM, host bridge; a clock, a serial line and LEDs."""

from amaranth import Cat, ClockDomain, DomainRenamer, Elaboratable, Module, Signal

from esbflow.engine_config import EngineConfig
from esbflow.errors import BadValue
from esbhw.engine.axi import read_signature, write_signature
from esbhw.engine.control import lite_signature
from esbhw.engine.engine import Engine
from esbhw.host_bridge.bridge import HostBridge
from esbhw.host_bridge.memory import BEAT_BYTES, BlockMemory
from esbhw.interfaces import masters

LEDS = 8


class BridgedEngine(Elaboratable):
    """Parameters: the engine, beats of memory, the clock in Hz and the line's bits a second.

    Members
    -------
    clock : the board's oscillator;  rx, tx : the serial line;  leds : 8, high is lit: interrupt, then a heartbeat
    Reset is by configuration: every register starts with its reset value.

    Raises
    ------
    ValueError
        if the clock has no whole divisor within 1 % of the line's rate, or the engine several ports that write.
    """

    def __init__(self, config: EngineConfig, beats: int, clock_hz: int, baud: int):
        if config.activation_ports > 1:
            raise BadValue(f"a board without a processor has one memory to store in and engine {config.name} "
                             f"{config.activation_ports} activation_ports; use an engine with one")
        self.config, self.beats, self.clock_hz = config, beats, clock_hz
        self.divisor = round(clock_hz / baud)
        if self.divisor < 4 or abs(clock_hz / self.divisor / baud - 1) > 0.01:
            raise BadValue(f"a clock of {clock_hz} Hz gives no serial line of {baud} bits a second; the nearest is "
                             f"{clock_hz // max(4, self.divisor)}")
        self.clock, self.rx, self.tx = Signal(name="clock"), Signal(name="rx", init=1), Signal(name="tx", init=1)
        self.leds = Signal(LEDS, name="leds")
        self.ports = [self.clock, self.rx, self.tx, self.leds]

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = domain = ClockDomain("sync", reset_less=True)
        engine = Engine(self.config)
        m.submodules.engine = DomainRenamer("engine")(engine)  # it makes a domain of its own, which has a reset
        m.submodules.memory = memory = BlockMemory(self.beats, len(masters(self.config)))
        m.submodules.bridge = bridge = HostBridge(self.divisor, self.beats * BEAT_BYTES, self.clock_hz)
        m.d.comb += [domain.clk.eq(self.clock), engine.ap_clk.eq(self.clock), bridge.rx.eq(self.rx), self.tx.eq(bridge.tx)]
        # The reset ends a few cycles after configuration.
        settle = Signal(4)
        m.d.sync += settle.eq(settle + ~settle.all())
        m.d.comb += engine.ap_rst_n.eq(settle.all())

        for i, name in enumerate(masters(self.config)):
            self._join(m, getattr(engine, name), getattr(memory, f"read_{i}"), read_signature())
        self._join(m, engine.m_axi_activations_write, memory.write, write_signature())
        self._join(m, engine.s_axi, bridge.lite, lite_signature())
        m.d.comb += [
            memory.host_request.eq(bridge.request), memory.host_write.eq(bridge.write),
            memory.host_address.eq(bridge.address), memory.host_data.eq(bridge.data),
            bridge.done.eq(memory.host_done), bridge.result.eq(memory.host_result),
        ]
        beat = Signal(24)
        m.d.sync += beat.eq(beat + 1)
        m.d.comb += self.leds.eq(Cat(engine.irq, beat[-1]))
        return m

    @staticmethod
    def _join(m, flat, other, signature):
        """The engine's flat ports and a block's interface of the same signature, seen from the other end."""
        for name in signature.members:
            signal, is_output = flat[name]
            m.d.comb += getattr(other, name).eq(signal) if is_output else signal.eq(getattr(other, name))
