"""Control: every register through AXI4-Lite, strobes, write-one-to-clear, the life of a run, the interrupt."""

import random

import cocotb
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from esbflow import registers
from esbflow.engine_config import INTERFACE_VERSION
from esbflow.registers import COUNTERS, REGIONS, REGISTERS
from esbhw.engine.control import Control
from esbhw.engine.faults import CODES
from esbhw.engine.transfer import REGION_LAYOUT
from sim.benches.axi_memory import pauses
from sim.benches.testbench import RegisterAccess, Testbench, config, join

CLEARED = 1
"""Cycles from a write's acceptance to a `done` that it does not clear."""
NARROW = {"IRQ_ENABLE": 2, **{f"{region.upper()}_HI": 8 for region in REGIONS}}
SLICED = {"SLICE_BYTES"}  # only there with several slices
PLAIN = [r.name for r in REGISTERS.values()
         if r.access == "read-write" and r.name not in {"CONTROL", "IRQ_STATUS"} | SLICED]


class Bench(Testbench, RegisterAccess):
    def __init__(self, dut):
        super().__init__(dut, Control(config()).signature)
        self.bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "axi_"), dut.clk)
        for side in (self.bus.write_if, self.bus.read_if):
            side.log.setLevel("ERROR")
        self.starts, self.running_cycles, self.aborts = 0, 0, 0

    async def begin(self, stall: float = 0.0):
        await self.reset()
        self.set(quiescent=1)
        for i, channel in enumerate((self.bus.write_if.aw_channel, self.bus.write_if.w_channel,
                                     self.bus.write_if.b_channel, self.bus.read_if.ar_channel,
                                     self.bus.read_if.r_channel)):
            channel.set_pause_generator(pauses(stall, i))
        cocotb.start_soon(self._watch())

    async def _watch(self):
        while True:
            await self.tick()
            self.starts += self.get("start")
            self.running_cycles += self.get("running")
            self.aborts += self.get("abort")
            assert not self.get("start") or self.get("running")

    async def pulse(self, **values):
        self.set(**values)
        await self.tick()
        self.set(**dict.fromkeys(values, 0))
        await self.tick(2)


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def plain_registers_read_back_what_was_written(dut, stall):
    tb = Bench(dut)
    await tb.begin(stall)
    rng = random.Random(1)
    values = {name: rng.getrandbits(32) for name in PLAIN}
    for name in rng.sample(PLAIN, len(PLAIN)):
        assert await tb.read(name) == 0
    for name, value in values.items():
        await tb.write(name, value)
    for name, value in values.items():
        low = 0xFFF if name.endswith("_LO") else 0
        assert await tb.read(name) == value & ((1 << NARROW.get(name, 32)) - 1) & ~low, name
    assert tb.get("program_length") == values["PROGRAM_LENGTH"] and tb.get("watchdog") == values["WATCHDOG"]
    regions = REGION_LAYOUT.from_bits(tb.get("regions"))
    for i, region in enumerate(REGIONS):
        low, high, size = (values[f"{region.upper()}_{part}"] for part in ("LO", "HI", "BYTES"))
        assert regions[i].base == low & ~0xFFF | (high & 0xFF) << 32 and regions[i].beats == size >> 4


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def byte_strobes_write_only_their_bytes(dut):
    tb = Bench(dut)
    await tb.begin()
    await tb.write("SCRATCH", 0x11223344)
    offset = REGISTERS["SCRATCH"].offset
    await tb.bus.write(offset + 1, b"\xaa")
    assert await tb.read("SCRATCH") == 0x1122AA44
    await tb.bus.write(offset + 2, b"\xbb\xcc")
    assert await tb.read("SCRATCH") == 0xCCBBAA44
    await tb.bus.write(REGISTERS["CONTROL"].offset + 1, b"\x01")  # start is in byte 0
    await tb.tick(3)
    assert tb.starts == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def read_only_registers_show_the_engine(dut):
    tb = Bench(dut)
    await tb.begin()
    size = config()
    counters = [1000 + i for i in range(len(COUNTERS))]
    tb.set(counters=join(counters, 32), layer=321)
    expected = {"ID": registers.ID_VALUE, "VERSION": INTERFACE_VERSION, "HASH_LO": size.hash & 0xFFFFFFFF,
                "HASH_HI": size.hash >> 32, "SIZE": size.rows | size.cols << 16, "LAYER": 321,
                **{f"COUNT_{name.upper()}": value for (name, _), value in zip(COUNTERS, counters)}}
    for name, value in expected.items():
        await tb.write(name, 0xFFFFFFFF)
        assert await tb.read(name) == value, name
    assert set(expected) | set(PLAIN) | SLICED | {"CONTROL", "STATUS", "IRQ_STATUS", "ERROR_ADDRESS_LO", "ERROR_ADDRESS_HI",
                                         "ERROR_LAYER"} == set(REGISTERS)
    used = {register.offset for register in REGISTERS.values()}
    for offset in (0x03C + 4 + 0x0C, 0x0F0, 0x0A0, 0x200, 0xFFC):
        if offset not in used:
            await tb.bus.write_dword(offset, 0xFFFFFFFF)
            assert await tb.bus.read_dword(offset) == 0
    assert await tb.read("SCRATCH") == 0 and tb.starts == 0


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_write_waits_for_both_channels_and_then_takes_three_cycles(dut):
    tb = Bench(dut)
    await tb.begin()
    tb.bus.write_if.aw_channel.set_pause_generator(pauses(1.0, 0))
    writing = cocotb.start_soon(tb.write("PROGRAM_LENGTH", 5))
    await tb.tick(10)
    assert tb.get("axi__wvalid") and not tb.get("axi__wready") and tb.get("program_length") == 0
    tb.bus.write_if.aw_channel.set_pause_generator(pauses(0.0, 0))
    accepted = await tb.until("axi__awready", within=20)
    assert tb.get("axi__wready") and tb.get("program_length") == 0
    await tb.tick(3)
    assert tb.get("program_length") == 5 and tb.cycle == accepted + 3
    await tb.until("axi__bvalid", within=1)
    await writing


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_read_is_answered_four_cycles_after_its_address(dut):
    tb = Bench(dut)
    await tb.begin()
    reading = cocotb.start_soon(tb.read("ID"))
    accepted = await tb.until("axi__arvalid", within=20)
    assert tb.get("axi__arready")
    assert await tb.until("axi__rvalid", within=20) == accepted + 4
    assert await reading == registers.ID_VALUE


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_run_ends_with_done(dut):
    tb = Bench(dut)
    await tb.begin()
    assert await tb.status() == {"busy": 0, "done": 0, "error": 0, "quiescent": 1, "code": 0, "unit": 0}
    await tb.write("CONTROL", 1)
    assert tb.starts == 1 and await tb.read("CONTROL") == 0
    assert await tb.status() == {"busy": 1, "done": 0, "error": 0, "quiescent": 0, "code": 0, "unit": 0}
    await tb.pulse(done=1)
    assert await tb.status() == {"busy": 0, "done": 1, "error": 0, "quiescent": 1, "code": 0, "unit": 0}
    await tb.write("CONTROL", 1)
    assert tb.starts == 2 and (await tb.status())["done"] == 0, "a start clears done"


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def running_is_high_from_the_start_to_two_cycles_after_done(dut):
    tb = Bench(dut)
    await tb.begin()
    await tb.write("CONTROL", 1)
    await tb.tick(20)
    before = tb.running_cycles
    tb.set(done=1)
    await tb.tick(4)
    tb.set(done=0)
    assert tb.running_cycles == before + 3 and not tb.get("running")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_start_is_ignored_while_busy_and_while_the_bus_is_not_quiet(dut):
    tb = Bench(dut)
    await tb.begin()
    await tb.write("CONTROL", 1)
    await tb.write("CONTROL", 1)
    assert tb.starts == 1
    tb.set(quiescent=0)
    await tb.pulse(done=1)
    await tb.write("CONTROL", 1)
    assert tb.starts == 1 and (await tb.status())["quiescent"] == 0
    assert (await tb.status())["done"] == 1, "an ignored start changes nothing"
    tb.set(quiescent=1)
    await tb.write("CONTROL", 1)
    assert tb.starts == 2


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(code=sorted(set(CODES.values()) - {0}))
async def an_error_stops_the_run_and_is_kept(dut, code):
    tb = Bench(dut)
    await tb.begin()
    await tb.write("CONTROL", 1)
    await tb.pulse(error=code, error_unit=3, error_address=0xAB_1234_5670, error_layer=77, done=1)
    wrong = {"error": 9, "error_unit": 1, "error_address": 1, "error_layer": 1}
    await tb.pulse(**wrong)  # the run is over: not taken
    assert await tb.status() == {"busy": 0, "done": 0, "error": 1, "quiescent": 1, "code": code, "unit": 3}
    assert (await tb.read("ERROR_ADDRESS_LO"), await tb.read("ERROR_ADDRESS_HI")) == (0x12345670, 0xAB)
    assert await tb.read("ERROR_LAYER") == 77 and await tb.read("IRQ_STATUS") == 2
    await tb.write("CONTROL", 1)
    assert await tb.status() == {"busy": 1, "done": 0, "error": 0, "quiescent": 0, "code": 0, "unit": 0}


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_abort_is_a_pulse_for_the_fault_encoder(dut):
    tb = Bench(dut)
    await tb.begin()
    await tb.write("CONTROL", 2)
    assert tb.aborts == 1 and tb.starts == 0
    await tb.write("CONTROL", 0)
    assert tb.aborts == 1


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_interrupt_is_the_enabled_pending_sources_until_cleared(dut):
    tb = Bench(dut)
    await tb.begin()
    for enable, end, source in ((1, "done", 1), (2, "error", 2), (2, "done", 1), (0, "done", 1), (3, "error", 2)):
        await tb.write("IRQ_ENABLE", enable)
        await tb.write("CONTROL", 1)
        await tb.pulse(**{end: 1})
        assert await tb.read("IRQ_STATUS") == source
        assert tb.get("interrupt") == bool(enable & source)
        await tb.write("IRQ_STATUS", 3 - source)  # the other bit: nothing happens
        assert await tb.read("IRQ_STATUS") == source
        await tb.write("IRQ_STATUS", source)
        await tb.tick()
        assert await tb.read("IRQ_STATUS") == 0 and not tb.get("interrupt")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_source_that_rises_while_it_is_cleared_is_not_lost(dut):
    """Done in every cycle around the write: it survives from CLEARED cycles after the write was accepted on."""
    outcomes = set()
    for delay in range(12):
        tb = Bench(dut)
        await tb.begin()
        await tb.write("CONTROL", 1)
        clearing = cocotb.start_soon(tb.write("IRQ_STATUS", 3))
        accepted, pulsed = None, None
        for i in range(16):
            tb.set(done=i == delay)
            await tb.tick()
            pulsed = tb.cycle if i == delay else pulsed
            accepted = tb.cycle if tb.get("axi__awready") else accepted
        await clearing
        assert await tb.read("IRQ_STATUS") == (pulsed >= accepted + CLEARED), (pulsed, accepted)
        outcomes.add(pulsed - accepted)
    assert {CLEARED - 1, CLEARED, CLEARED + 1} <= outcomes
