"""What the benches share: a clock, the ports of a component by name, stream sources and sinks.

All benches keep one convention. After `await tick()` reads give the values of the cycle that has just ended, as the
registers saw them, and writes set the inputs of the cycle that begins. `cycle` numbers the cycle that has just ended.
"""

import json
import os
import random

import cocotb
from amaranth.lib.wiring import Flow, Signature
from cocotb.clock import Clock
from cocotb.simtime import get_sim_time
from cocotb.triggers import RisingEdge

from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.registers import REGISTERS

PERIOD_NS = 10


def config() -> EngineConfig:
    """The engine configuration that `build.run` was given."""
    return EngineConfig.from_dict(json.loads(os.environ["BENCH_CONFIG"]))


def port_write(ports: int, address: int, data: int, bank: int | None = None) -> dict:
    """The `write_*` members of a buffer that `ports` ports fill, of which one writes beat `address`."""
    port, row = address % ports, address // ports
    members = {"write_valid": 1 << port, "write_address": row << 16 * port, "write_data": data << AXI_BEAT_BITS * port}
    return members if bank is None else members | {"write_bank": bank << port}


def parameters() -> dict:
    return json.loads(os.environ["BENCH_PARAMETERS"])


def pack(layout, **fields) -> int:
    """An integer with these fields of an Amaranth layout; those not named are zero.

    >>> from amaranth.lib.data import StructLayout
    >>> pack(StructLayout({"a": 4, "b": 4}), b=2)
    32
    """
    return layout.const(fields).as_bits()


def signed(value: int, width: int) -> int:
    """
    >>> signed(15, 4), signed(7, 4)
    (-1, 7)
    """
    return value - (1 << width) if value >> (width - 1) else value




def join(values, width: int) -> int:
    """The packed bus of a list of elements, each taken modulo its width.

    >>> hex(join([1, -1, 3], 4))
    '0x3f1'
    """
    word = 0
    for i, value in enumerate(values):
        word |= (int(value) & ((1 << width) - 1)) << (i * width)
    return word


def cut(word: int, width: int, count: int, as_signed: bool = False) -> list:
    """The opposite of `join`."""
    values = [(word >> (i * width)) & ((1 << width) - 1) for i in range(count)]
    return [signed(value, width) for value in values] if as_signed else values


class Testbench:
    """Clock, reset and ports of one component.

    Parameters
    ----------
    dut : cocotb's handle
    signature : of the component; its inputs are set to zero by `reset`
    """

    __test__ = False

    def __init__(self, dut, signature: Signature):
        self.dut = dut
        self._signature = signature
        self._handles = {}
        cocotb.start_soon(Clock(dut.clk, PERIOD_NS, "ns").start(start_high=False))

    @property
    def cycle(self) -> int:
        return int(get_sim_time("ns")) // PERIOD_NS

    async def reset(self) -> None:
        for name in _inputs(self._signature):
            self.set(**{name: 0})
        self.dut.rst.value = 1
        await self.tick(2)
        self.dut.rst.value = 0

    async def tick(self, cycles: int = 1) -> None:
        for _ in range(cycles):
            await RisingEdge(self.dut.clk)

    def set(self, **values: int) -> None:
        for name, value in values.items():
            handle = self._handle(name)
            handle.value = int(value) & ((1 << len(handle)) - 1)

    def get(self, name: str) -> int:
        return int(self._handle(name).value)

    async def until(self, name: str, within: int = 1000) -> int:
        """Tick until an output was high; returns the cycle in which it was."""
        for _ in range(within):
            await self.tick()
            if self.get(name):
                return self.cycle
        raise AssertionError(f"{name} did not rise within {within} cycles")

    def _handle(self, name: str):
        if name not in self._handles:
            self._handles[name] = getattr(self.dut, name)
        return self._handles[name]


class RegisterAccess:
    """Registers by name over `bus`, an AxiLiteMaster that the bench has."""

    async def write(self, name: str, value: int) -> None:
        await self.bus.write_dword(REGISTERS[name].offset, value)

    async def read(self, name: str) -> int:
        return await self.bus.read_dword(REGISTERS[name].offset)

    async def status(self) -> dict:
        word = await self.read("STATUS")
        return {name: word >> low & ((1 << width) - 1) for name, low, width in REGISTERS["STATUS"].fields}


class Source:
    """Drives stream `name`; `taken` holds the cycle of every transfer. `rate` is the chance of valid in a cycle."""

    def __init__(self, tb: Testbench, name: str, rate: float = 1.0, seed: int = 0):
        self._tb, self._name, self._rate = tb, name, rate
        self._random = random.Random(seed)
        self.taken = []

    async def send(self, payloads, within: int = 5000) -> None:
        tb, name = self._tb, self._name
        for payload in payloads:
            while self._random.random() >= self._rate:
                await tb.tick()
            tb.set(**{f"{name}__valid": 1, f"{name}__payload": payload})
            for _ in range(within):
                await tb.tick()
                if tb.get(f"{name}__ready"):
                    break
            else:
                raise AssertionError(f"stream {name} was not ready within {within} cycles")
            self.taken.append(tb.cycle)
            tb.set(**{f"{name}__valid": 0, f"{name}__payload": self._random.getrandbits(16)})


class Sink:
    """Collects stream `name` as (cycle, payload) in `items`, and checks that what is offered stays.

    `rate` is the chance of ready in a cycle.
    """

    def __init__(self, tb: Testbench, name: str, rate: float = 1.0, seed: int = 0):
        self._tb, self._name, self.rate = tb, name, rate
        self._random = random.Random(seed)
        self.items = []
        self.task = cocotb.start_soon(self._run())

    @property
    def payloads(self) -> list:
        return [payload for _, payload in self.items]

    async def wait_for(self, count: int, within: int = 5000) -> None:
        for _ in range(within):
            if len(self.items) >= count:
                return
            await self._tb.tick()
        raise AssertionError(f"stream {self._name} gave {len(self.items)} of {count} items within {within} cycles")

    async def _run(self):
        tb, name = self._tb, self._name
        waiting = None
        while True:
            ready = self._random.random() < self.rate
            tb.set(**{f"{name}__ready": ready})
            await tb.tick()
            offered = tb.get(f"{name}__payload") if tb.get(f"{name}__valid") else None
            assert waiting is None or offered == waiting, f"stream {name} changed what it offered"
            waiting = offered
            if offered is not None and ready:
                self.items.append((tb.cycle, offered))
                waiting = None


def _inputs(signature: Signature, prefix: str = ""):
    for name, member in signature.members.items():
        if member.is_signature:
            yield from _inputs(member.signature, f"{prefix}{name}__")
        elif member.flow == Flow.In:
            yield f"{prefix}{name}"
