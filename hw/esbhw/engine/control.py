"""The AXI4-Lite registers, and the life of a run: start, done, error, quiet again."""

from amaranth import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow import registers
from esbflow.engine_config import AXI_ADDRESS_BITS, INTERFACE_VERSION, EngineConfig
from esbflow.registers import COUNTERS, REGIONS, REGISTERS
from esbhw.engine.transfer import OFFSET_BITS, REGION_LAYOUT

CODES = {name: code for code, (name, _) in registers.ERRORS.items()}


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
    """Registers as in esbflow.registers; a write takes effect in the cycle after both its channels were accepted.

    A start is taken when the engine is idle and the bus is quiet, and ignored otherwise. `running` is high from the
    next cycle until done or an error; units are held in reset while it is low. `cycles` counts those cycles.
    Unknown addresses read as zero and ignore writes.

    Members
    -------
    axi : Out(lite_signature());  interrupt : Out(1), level
    running, start : Out(1); start is high in the first running cycle
    program_length, watchdog, regions : Out
    quiescent : In(1);  done : In(1)
    error : In(4) code or zero, error_unit, error_address, error_layer : In, what to keep when it is not zero
    layer : In(12);  counters : In(32 * number of counters)
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "axi": Out(lite_signature()), "interrupt": Out(1),
            "running": Out(1), "start": Out(1),
            "program_length": Out(32), "watchdog": Out(32), "regions": Out(REGION_LAYOUT),
            "quiescent": In(1), "done": In(1),
            "error": In(4), "error_unit": In(3), "error_address": In(AXI_ADDRESS_BITS), "error_layer": In(12),
            "layer": In(12), "counters": In(32 * len(COUNTERS)), "abort": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, axi = self._config, self.axi
        values = {name: Const(0, 32) for name in REGISTERS}

        # -- the bus ---------------------------------------------------------------------------------
        write = Signal()
        mask = Signal(32)
        m.d.comb += [
            write.eq(axi.awvalid & axi.wvalid & ~axi.bvalid), axi.awready.eq(write), axi.wready.eq(write),
            mask.eq(Cat(bit.replicate(8) for bit in axi.wstrb)),
            axi.arready.eq(~axi.rvalid),
        ]
        with m.If(axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        with m.If(write):
            m.d.sync += axi.bvalid.eq(1)
        with m.If(axi.rready):
            m.d.sync += axi.rvalid.eq(0)

        def written(name):
            return write & (axi.awaddr[2:] == REGISTERS[name].offset >> 2)

        def stored(name, width=32):
            register = Signal(width, name=name.lower())
            with m.If(written(name)):
                m.d.sync += register.eq((register & ~mask) | (axi.wdata & mask))
            values[name] = register
            return register

        # -- constants and plain registers -------------------------------------------------------------
        values["ID"] = Const(registers.ID_VALUE, 32)
        values["VERSION"] = Const(INTERFACE_VERSION, 32)
        values["HASH_LO"] = Const(config.hash & 0xFFFFFFFF, 32)
        values["HASH_HI"] = Const(config.hash >> 32, 32)
        values["SIZE"] = Const(config.rows | config.cols << 16, 32)
        stored("SCRATCH")
        enable = stored("IRQ_ENABLE", 2)
        m.d.comb += [self.program_length.eq(stored("PROGRAM_LENGTH")), self.watchdog.eq(stored("WATCHDOG"))]
        for i, region in enumerate(REGIONS):
            low, high, size = (stored(f"{region.upper()}_{part}", width)
                               for part, width in (("LO", 32), ("HI", AXI_ADDRESS_BITS - 32), ("BYTES", 32)))
            m.d.comb += [
                self.regions[i].base.eq(Cat(low, high)),
                self.regions[i].beats.eq(size[4:]),
            ]
        assert len(size[4:]) <= OFFSET_BITS

        # -- the life of a run ---------------------------------------------------------------------------
        control = REGISTERS["CONTROL"]
        bit = {name: low for name, low, _ in control.fields}
        done = Signal()
        failed = Signal()
        code = Signal(8)
        unit = Signal(8)
        error_layer = Signal(12)
        error_address = Signal(AXI_ADDRESS_BITS)
        pending = Signal(2)
        quiet = ~self.running & self.quiescent
        act = written("CONTROL") & axi.wstrb[0]
        with m.If(written("IRQ_STATUS")):
            m.d.sync += pending.eq(pending & ~(axi.wdata & mask))
        m.d.sync += self.start.eq(0)
        m.d.comb += self.abort.eq(act & axi.wdata[bit["abort"]])
        with m.If(act & axi.wdata[bit["start"]] & quiet):
            m.d.sync += [self.running.eq(1), self.start.eq(1), done.eq(0), failed.eq(0), code.eq(0), unit.eq(0)]
        with m.If(self.running):
            with m.If(self.error != 0):
                m.d.sync += [
                    self.running.eq(0), failed.eq(1), code.eq(self.error), unit.eq(self.error_unit),
                    error_address.eq(self.error_address), error_layer.eq(self.error_layer), pending[1].eq(1),
                ]
            with m.Elif(self.done):
                m.d.sync += [self.running.eq(0), done.eq(1), pending[0].eq(1)]
        m.d.comb += self.interrupt.eq((pending & enable).any())
        values["STATUS"] = Cat(self.running, done, failed, quiet, Const(0, 4), code, unit)
        values["IRQ_STATUS"] = pending
        values["ERROR_ADDRESS_LO"] = error_address[:32]
        values["ERROR_ADDRESS_HI"] = error_address[32:]
        values["ERROR_LAYER"] = error_layer
        values["LAYER"] = self.layer
        for i, (name, _) in enumerate(COUNTERS):
            values[f"COUNT_{name.upper()}"] = self.counters.word_select(i, 32)

        with m.If(axi.arvalid & axi.arready):
            m.d.sync += [axi.rvalid.eq(1), axi.rdata.eq(0)]
            with m.Switch(axi.araddr[2:]):
                for name, register in REGISTERS.items():
                    with m.Case(register.offset >> 2):
                        m.d.sync += axi.rdata.eq(values[name])
        return m
