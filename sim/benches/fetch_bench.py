"""Fetch: every instruction to its unit, in order; back-pressure, credit, and all its faults."""

import random

import cocotb

from esbflow.engine_facts import FETCH_BUFFERED, FIFO_LATENCY
from esbflow.instructions import OPCODES, encode
from esbflow.registers import REGIONS
from esbhw.engine.fetch import UNITS, Fetch, opcodes
from esbhw.engine.transfer import REGION_LAYOUT
from sim.benches.axi_memory import IdealReadMemory, ReadMemory
from sim.benches.testbench import Sink, Testbench, config
from sim.benches.toplevels import AxiTop

BASE = 0x3000
UNIT_OF = {name: unit for unit, names in UNITS.items() for name in names}


def random_program(rng, length: int) -> list:
    body = [name for name in opcodes(config()) if name != "END"]
    names = [rng.choice(body) for _ in range(length - 1)] + ["END"]
    return [encode(name, layer=i) | (rng.getrandbits(240) << 16 if name != "END" else 0)
            for i, name in enumerate(names)]


class Bench(Testbench):
    def __init__(self, dut):
        super().__init__(dut, AxiTop(Fetch(config())).signature)
        self.memory = bytearray(1 << 16)
        self.order, self.dispatched, self.beats = [], [], []

    async def begin(self, program: list, bus=None, rate: float = 1.0, length: int | None = None,
                    size: int | None = None):
        """Start fetching `program`; `bus` makes the memory, `rate` is that of the units' queues."""
        data = b"".join(word.to_bytes(32, "little") for word in program)
        self.memory[BASE:BASE + len(data)] = data
        self.bus = (bus or (lambda dut, memory: IdealReadMemory(dut, "axi_", memory, latency=8)))(
            self.dut, self.memory)
        await self.reset()
        regions = [{"base": 0, "beats": 0} for _ in REGIONS]
        regions[REGIONS.index("program")] = {"base": BASE, "beats": 2 * len(program) if size is None else size}
        self.set(run=1, regions=REGION_LAYOUT.const(regions).as_bits(), axi__arready=1)
        self.sinks = {unit: Sink(self, unit, rate, seed) for seed, unit in enumerate(UNITS)}
        cocotb.start_soon(self._watch())
        await self.tick()
        self.set(start=1, length=len(program) if length is None else length)
        await self.tick()
        self.set(start=0, length=12345)
        self.started = self.cycle

    async def _watch(self):
        while True:
            await self.tick()
            if self.get("dispatched"):
                self.dispatched.append(self.cycle)
                units = [unit for unit in UNITS if self.get(f"{unit}__valid") and self.get(f"{unit}__ready")]
                assert len(units) == 1
                self.order.append((units[0], self.get(f"{units[0]}__payload")))
            if self.get("beat"):
                self.beats.append(self.cycle)

    async def wait(self, count: int, within: int = 3000):
        for _ in range(within):
            if len(self.order) >= count:
                return
            await self.tick()
        raise AssertionError(f"{len(self.order)} of {count} instructions within {within} cycles")

    def faults(self) -> set:
        return {name for name in ("opcode_fault", "end_fault", "range_fault") if self.get(name)}


def paused(rate, seed):
    def make(dut, memory):
        bus = ReadMemory(dut, "axi_", memory)
        bus.pause(rate, seed)
        return bus
    return make


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[(0.0, 1.0), (0.4, 1.0), (0.0, 0.1), (0.3, 0.4)])
async def instructions_reach_their_units_in_order(dut, stall):
    """More instructions than a 4 KB page and the buffer hold, with a slow bus, slow units, or both."""
    tb = Bench(dut)
    program = random_program(random.Random(1), 150)
    await tb.begin(program, paused(stall[0], 5), rate=stall[1])
    await tb.wait(len(program))
    names = {code: name for name, code in OPCODES.items()}
    assert tb.order == [(UNIT_OF[names[word & 15]], word) for word in program]
    assert not tb.faults() and len(tb.beats) == 2 * len(program)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_instruction_leaves_two_cycles_after_its_second_beat(dut):
    tb = Bench(dut)
    program = random_program(random.Random(2), 20)
    await tb.begin(program)
    await tb.wait(len(program))
    assert tb.dispatched == [cycle + FIFO_LATENCY for cycle in tb.beats[1::2]]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def it_asks_for_no_more_than_it_has_room_for(dut):
    tb = Bench(dut)
    program = random_program(random.Random(3), 100)
    await tb.begin(program, rate=0.0)
    await tb.tick(400)
    assert len(tb.beats) == 2 * FETCH_BUFFERED and not tb.order
    for sink in tb.sinks.values():
        sink.rate = 1.0
    await tb.wait(len(program))
    assert [word for _, word in tb.order] == program


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(opcode=range(16))
async def an_unknown_opcode_stops_dispatch_and_names_its_layer(dut, opcode):
    """Those of units that the engine is built without are unknown too."""
    tb = Bench(dut)
    if opcode in opcodes(config()).values():
        return
    program = [encode("LOAD", layer=1), encode("PASS", layer=2), opcode | 77 << 4, encode("END", layer=4)]
    await tb.begin(program)
    await tb.wait(2)
    await tb.tick(30)
    assert len(tb.order) == 2 and tb.faults() == {"opcode_fault"} and tb.get("layer") == 77


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_program_without_an_end_is_noticed_after_its_last_instruction(dut):
    tb = Bench(dut)
    await tb.begin([encode("LOAD", layer=i) for i in range(5)])
    await tb.wait(4)
    assert not tb.faults()
    await tb.wait(5)
    await tb.tick(6)
    assert tb.faults() == {"end_fault"} and tb.get("layer") == 4


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def nothing_is_dispatched_behind_an_end(dut):
    tb = Bench(dut)
    await tb.begin([encode("LOAD"), encode("END"), encode("PASS"), encode("END")])
    await tb.tick(100)
    assert len(tb.order) == 2 and not tb.faults()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_length_beyond_the_region_is_a_range_fault(dut):
    tb = Bench(dut)
    await tb.begin(random_program(random.Random(4), 10), size=19)
    await tb.tick(60)
    assert tb.faults() == {"range_fault"} and tb.get("fault_address") == BASE and not tb.beats


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_empty_program_has_no_end(dut):
    tb = Bench(dut)
    await tb.begin([encode("END")], length=0)
    await tb.tick(6)
    assert tb.faults() == {"end_fault"} and not tb.beats


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_stopped_run_leaves_nothing_for_the_next(dut):
    """Reset in mid-program with beats still on their way, then another program from its first instruction."""
    tb = Bench(dut)
    await tb.begin(random_program(random.Random(6), 60), paused(0.5, 8))
    await tb.wait(7)
    tb.set(run=0)
    await tb.tick()
    await tb.until("quiescent", within=400)
    await tb.tick(2)
    program = random_program(random.Random(7), 12)
    tb.memory[BASE:BASE + 32 * len(program)] = b"".join(word.to_bytes(32, "little") for word in program)
    tb.order.clear()
    tb.set(run=1, start=1, length=len(program))
    await tb.tick()
    tb.set(start=0)
    await tb.wait(len(program))
    assert [word for _, word in tb.order] == program
