"""AXI4 memories for the benches: cocotbext.axi's RAM with pauses and error responses, and one with exact timing."""

import itertools
import random

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiReadBus, AxiWriteBus
from cocotbext.axi.axi_ram import AxiRamRead, AxiRamWrite


class BusError(Exception):
    """Makes cocotbext.axi answer SLVERR."""


class ReadMemory(AxiRamRead):
    """Read channels on a shared bytearray; `failing` is a set of addresses whose beat is answered with SLVERR.

    Parameters
    ----------
    prefix : port names up to the underscore before `araddr`
    """

    def __init__(self, dut, prefix: str, memory, clock=None, reset=None, active_level=True):
        self.failing = set()
        getattr(dut, f"{prefix}_arid").value = 0
        super().__init__(AxiReadBus.from_prefix(dut, prefix), dut.clk if clock is None else clock, reset, active_level,
                         size=len(memory), mem=memory)
        self.log.setLevel("ERROR")

    def pause(self, rate: float, seed: int) -> None:
        """Refuse addresses and withhold beats, each in `rate` of the cycles."""
        self.ar_channel.set_pause_generator(pauses(rate, seed))
        self.r_channel.set_pause_generator(pauses(rate, seed + 1))

    async def _read(self, address, length):
        if address in self.failing:
            raise BusError
        return await super()._read(address, length)


class WriteMemory(AxiRamWrite):
    """Write channels on a shared bytearray; see ReadMemory."""

    def __init__(self, dut, prefix: str, memory, clock=None, reset=None, active_level=True):
        self.failing = set()
        getattr(dut, f"{prefix}_awid").value = 0
        super().__init__(AxiWriteBus.from_prefix(dut, prefix), dut.clk if clock is None else clock, reset, active_level,
                         size=len(memory), mem=memory)
        self.log.setLevel("ERROR")

    def pause(self, rate: float, seed: int) -> None:
        for i, channel in enumerate((self.aw_channel, self.w_channel, self.b_channel)):
            channel.set_pause_generator(pauses(rate, seed + i))

    async def _write(self, address, data):
        if address in self.failing:
            raise BusError
        await super()._write(address, data)


def pauses(rate: float, seed: int):
    rng = random.Random(seed)
    return (rng.random() < rate for _ in itertools.count())


class IdealReadMemory:
    """Ideal memory as the cycle model means it.

    Addresses are taken at once; the first beat is on offer `latency` cycles after the cycle of the handshake, or one
    cycle after the previous burst's last beat; then one beat a cycle. The engine's masters always take it.
    """

    def __init__(self, dut, prefix: str, memory, latency: int, clock=None):
        self._pins = {name: getattr(dut, f"{prefix}_{name}") for name in (
            "araddr", "arlen", "arvalid", "arready", "rdata", "rresp", "rlast", "rvalid", "rready")}
        self._clock, self._memory, self._latency = dut.clk if clock is None else clock, memory, latency
        for name in ("arready", "rdata", "rresp", "rlast", "rvalid"):
            self._pins[name].value = int(name == "arready")
        cocotb.start_soon(self._run())

    async def _run(self):
        pins, cycle, free, beats = self._pins, 0, 0, []
        while True:
            await RisingEdge(self._clock)
            if pins["arvalid"].value == 1:
                address, length = int(pins["araddr"].value), int(pins["arlen"].value) + 1
                start = max(cycle + self._latency, free)
                beats += [(start + i, address + 16 * i, i == length - 1) for i in range(length)]
                free = start + length
            cycle += 1
            valid = bool(beats) and beats[0][0] == cycle
            pins["rvalid"].value = int(valid)
            if valid:
                _, address, last = beats.pop(0)
                pins["rdata"].value = int.from_bytes(self._memory[address:address + 16], "little")
                pins["rlast"].value = int(last)


class IdealWriteMemory:
    """Ideal memory's write side: addresses and data are taken at once, the answer is on offer `latency` cycles after
    the handshake of the last beat, or one cycle after the answer before it."""

    def __init__(self, dut, prefix: str, memory, latency: int, clock=None):
        self._pins = {name: getattr(dut, f"{prefix}_{name}") for name in (
            "awaddr", "awvalid", "awready", "wdata", "wlast", "wvalid", "wready", "bresp", "bvalid")}
        self._clock, self._memory, self._latency = dut.clk if clock is None else clock, memory, latency
        for name in ("awready", "wready", "bresp", "bvalid"):
            self._pins[name].value = int(name.endswith("ready"))
        cocotb.start_soon(self._run())

    async def _run(self):
        pins, cycle, addresses, data, answers = self._pins, 0, [], [], []
        while True:
            await RisingEdge(self._clock)
            if pins["awvalid"].value == 1:
                addresses.append(int(pins["awaddr"].value))
            if pins["wvalid"].value == 1:
                data.append(int(pins["wdata"].value).to_bytes(16, "little"))
                if pins["wlast"].value == 1:
                    start, burst, data = addresses.pop(0), b"".join(data), []
                    self._memory[start:start + len(burst)] = burst
                    answers.append(max(cycle + self._latency, answers[-1] + 1 if answers else 0))
            cycle += 1
            pins["bvalid"].value = int(cycle in answers[-70:])
