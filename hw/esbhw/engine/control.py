"""The AXI4-Lite registers, and the life of a run: start, done, error, quiet again."""

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow import registers
from esbflow.engine_config import AXI_ADDRESS_BITS, INTERFACE_VERSION, EngineConfig
from esbflow.engine_facts import CATCH_CYCLES
from esbflow.registers import COUNTERS, REGIONS, REGISTERS
from esbhw.engine.spread import STRIDE_BITS
from esbhw.engine.transfer import OFFSET_BITS, PAGE_BITS, REGION_LAYOUT
from esbhw.fabric.idioms import pick

READ_WORDS = 8
"""Registers that are chosen from in one step, by the low bits of the address."""


def lite_signature():
    """A 32-bit AXI4-Lite slave, seen from the slave."""
    return wiring.Signature({
        "awaddr": In(registers.ADDRESS_BITS), "awprot": In(3), "awvalid": In(1), "awready": Out(1),
        "wdata": In(32), "wstrb": In(4), "wvalid": In(1), "wready": Out(1),
        "bresp": Out(2), "bvalid": Out(1), "bready": In(1),
        "araddr": In(registers.ADDRESS_BITS), "arprot": In(3), "arvalid": In(1), "arready": Out(1),
        "rdata": Out(32), "rresp": Out(2), "rvalid": Out(1), "rready": In(1),
    })


class Control(wiring.Component):
    """Registers as in esbflow.registers, one access a direction at a time.

    A write has taken effect three cycles after it was accepted, and is answered in the next one. A read is answered four
    cycles after its address.

    A start is taken when the engine is idle and the bus is quiet, and ignored otherwise. `running` is high until done or an
    error; units are held in reset while it is low. Unknown addresses read as zero and ignore writes.

    Members
    -------
    axi : Out(lite_signature());  interrupt : Out(1), level
    running, start : Out(1); start is high in the first running cycle;  stopped : Out(1), ~running
    program_length, watchdog : Out(32);  regions : Out(REGION_LAYOUT);  stride : Out(STRIDE_BITS), of slices, in pages
    quiescent : In(1);  done : In(1), stays
    caught : In(1), an error will come
    error : In(4), a code, or zero;  error_unit : In(3);  error_address : In(40);  error_layer : In(12), what to keep when it
        is not zero
    abort : Out(1), for one cycle, the host wants to stop
    layer : In(12);  counters : In(32 * len(COUNTERS))
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "axi": Out(lite_signature()), "interrupt": Out(1),
            "running": Out(1), "start": Out(1), "stopped": Out(1, init=1),
            "program_length": Out(32), "watchdog": Out(32), "regions": Out(REGION_LAYOUT),
            "stride": Out(STRIDE_BITS),
            "quiescent": In(1), "done": In(1), "caught": In(1),
            "error": In(4), "error_unit": In(3), "error_address": In(AXI_ADDRESS_BITS), "error_layer": In(12),
            "layer": In(12), "counters": In(32 * len(COUNTERS)), "abort": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        self._values = {name: Const(0, 32) for name in REGISTERS if name != "SLICE_BYTES"}
        self._written = self._writes(m)
        self._describe()
        enable = self._settings(m)
        self._life(m, enable)
        for i, (name, _) in enumerate(COUNTERS):
            self._values[f"COUNT_{name.upper()}"] = self.counters.word_select(i, 32)
        self._reads(m)
        return m

    def _describe(self) -> None:
        """What the engine is: constants."""
        values, config = self._values, self._config
        values["ID"] = Const(registers.ID_VALUE, 32)
        values["VERSION"] = Const(INTERFACE_VERSION, 32)
        values["HASH_LO"] = Const(config.hash & 0xFFFFFFFF, 32)
        values["HASH_HI"] = Const(config.hash >> 32, 32)
        values["SIZE"] = Const(config.rows | config.cols << 16, 32)

    def _stored(self, m, name: str, width: int = 32, low: int = 0):
        """A register that is written byte by byte; the `low` lowest bits are zero."""
        register, meant = Signal(width - low, name=name.lower()), self._written(name)
        for byte in range(low // 8, (width + 7) // 8):
            begin, end = max(8 * byte, low), min(8 * byte + 8, width)
            with m.If(meant & self._strobes[byte]):
                m.d.sync += register[begin - low:end - low].eq(self._data[begin:end])
        self._values[name] = whole = Cat(Const(0, low), register)
        return whole

    def _settings(self, m):
        """What the host sets before a run; the result is IRQ_ENABLE."""
        self._stored(m, "SCRATCH")
        enable = self._stored(m, "IRQ_ENABLE", 2)
        m.d.comb += [self.program_length.eq(self._stored(m, "PROGRAM_LENGTH")),
                     self.watchdog.eq(self._stored(m, "WATCHDOG"))]
        for i, region in enumerate(REGIONS):
            name = region.upper()
            low = self._stored(m, f"{name}_LO", 32, PAGE_BITS)
            high, size = self._stored(m, f"{name}_HI", AXI_ADDRESS_BITS - 32), self._stored(m, f"{name}_BYTES")
            m.d.comb += [self.regions[i].base.eq(Cat(low, high)), self.regions[i].beats.eq(size[4:])]
            assert len(size[4:]) <= OFFSET_BITS
        if self._config.slices > 1:
            m.d.comb += self.stride.eq(self._stored(m, "SLICE_BYTES", 32, PAGE_BITS)[PAGE_BITS:])
        return enable

    def _life(self, m, enable) -> None:
        """A run from its start to done or an error, and what STATUS and the interrupt say of it."""
        values, data = self._values, self._data
        bit = {name: low for name, low, _ in REGISTERS["CONTROL"].fields}
        done = Signal()
        failed = Signal()
        code = Signal(8)
        unit = Signal(8)
        error_layer = Signal(12)
        error_address = Signal(AXI_ADDRESS_BITS)
        pending = Signal(2)
        cleared = Signal(2)
        ringing = Signal()  # the doorbell
        finished = Signal(CATCH_CYCLES)  # `done` so many cycles ago: what went wrong before it is caught by then
        quiet = Signal()  # the bus was quiet a cycle ago, with no run that could have begun something since
        act = self._written("CONTROL") & self._strobes[0]
        clears = self._written("IRQ_STATUS") & self._strobes[0]
        m.d.sync += [
            ringing.eq(act & data[bit["start"]]), self.abort.eq(act & data[bit["abort"]]),
            cleared.eq(data[:2] & clears.replicate(2)), quiet.eq(~self.running & self.quiescent),
            finished.eq(Cat(self.done, finished)),
            self.start.eq(0), pending.eq(pending & ~cleared),
        ]
        with m.If(ringing & quiet & ~self.running):
            m.d.sync += [self.running.eq(1), self.stopped.eq(0), self.start.eq(1), done.eq(0), failed.eq(0), code.eq(0),
                         unit.eq(0)]
        with m.If(self.running):
            with m.If(self.error != 0):
                m.d.sync += [
                    self.running.eq(0), self.stopped.eq(1), failed.eq(1), code.eq(self.error), unit.eq(self.error_unit),
                    error_address.eq(self.error_address), error_layer.eq(self.error_layer), pending[1].eq(1),
                ]
            with m.Elif(finished[-1] & ~self.caught):
                m.d.sync += [self.running.eq(0), self.stopped.eq(1), done.eq(1), pending[0].eq(1)]
        m.d.comb += self.interrupt.eq((pending & enable).any())
        values["STATUS"] = Cat(self.running, done, failed, quiet & ~self.running, Const(0, 4), code, unit)
        values["IRQ_STATUS"] = pending
        values["ERROR_ADDRESS_LO"] = error_address[:32]
        values["ERROR_ADDRESS_HI"] = error_address[32:]
        values["ERROR_LAYER"] = error_layer
        values["LAYER"] = self.layer

    def _writes(self, m):
        """Both channels into registers, then which register they mean; returns written(name), high for one cycle.

        The answer comes when a start has begun, too.
        """
        axi = self.axi
        address = Signal(registers.ADDRESS_BITS - 2)
        decode = Signal()
        act = Signal()
        settle = Signal()
        self._data, self._strobes = data, strobes = Signal(32), Signal(4)
        accept = axi.awvalid & axi.wvalid & ~axi.bvalid & ~decode & ~act & ~settle
        m.d.comb += [axi.awready.eq(accept), axi.wready.eq(accept)]
        m.d.sync += [decode.eq(accept), act.eq(decode), settle.eq(act),
                     axi.bvalid.eq(settle | (axi.bvalid & ~axi.bready))]
        with m.If(~decode & ~act):
            m.d.sync += [address.eq(axi.awaddr[2:]), data.eq(axi.wdata), strobes.eq(axi.wstrb)]

        def written(name):
            meant = Signal(name=f"{name.lower()}_written")
            m.d.sync += meant.eq(decode & (address == REGISTERS[name].offset >> 2))
            return meant
        return written

    def _reads(self, m) -> None:
        """A read is answered four cycles after its address: each group of registers chooses one, then they are joined."""
        axi = self.axi
        address = Signal(registers.ADDRESS_BITS - 2)
        low_bits = (READ_WORDS - 1).bit_length()
        places = {registers.REGISTERS[name].offset >> 2: value for name, value in self._values.items()}
        groups = sorted({place // READ_WORDS for place in places})
        here = Signal(len(groups))
        look = Signal()
        choose = Signal()
        answer = Signal()
        accept = axi.arvalid & axi.arready
        m.d.comb += axi.arready.eq(~look & ~choose & ~answer & ~axi.rvalid)
        m.d.sync += [
            look.eq(accept), choose.eq(look), answer.eq(choose), axi.rvalid.eq(answer | (axi.rvalid & ~axi.rready)),
            here.eq(Cat(address[low_bits:] == group for group in groups)),
        ]
        with m.If(axi.arready):
            m.d.sync += address.eq(axi.araddr[2:])
        words = []
        for group in groups:
            words.append(Signal(32, name=f"group_{group}"))
            own = [_wide(places.get(READ_WORDS * group + k, Const(0, 32))) for k in range(READ_WORDS)]
            m.d.sync += words[-1].eq(pick(address[:low_bits], own))
        with m.If(answer):
            m.d.sync += axi.rdata.eq(_any(word & here[k].replicate(32) for k, word in enumerate(words)))


def _wide(value):
    """A value of up to 32 bits in 32."""
    return Cat(value, Const(0, 32 - len(value)))


def _any(words):
    """The words or-ed together: all but one are zero."""
    total = Const(0, 32)
    for word in words:
        total |= word
    return total
