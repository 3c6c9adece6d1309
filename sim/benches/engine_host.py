"""A host for the engine inside a cocotb bench: registers through cocotbext.axi, programs and images in its memory."""

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from esbflow.compiler.program import Program
from esbflow.engine_config import AXI_BEAT_BITS
from esbflow.engine_facts import weight_masters
from esbflow.graph import ir
from esbflow.numbers import ESB, Signed, Unsigned
from esbflow.registers import COUNTERS, LOG_BEATS, REGIONS
from esbflow.runtime.layout import encode_images, fold_windows, pack, unpack
from sim.benches.axi_memory import IdealReadMemory, IdealWriteMemory, ReadMemory, WriteMemory
from sim.benches.testbench import PERIOD_NS, RegisterAccess

PAGE = 4096
BEAT_BYTES = AXI_BEAT_BITS // 8
START, ABORT = 1, 2
BOTH = 3


def small_graph(channels: int = 4, height: int = 3, width: int = 36, seed: int = 0) -> ir.Graph:
    """Two convolutions, the second with a residual and wide weights, and a pooled layer: most of what an engine does."""
    rng = np.random.default_rng(seed)

    def requantizer(shift: int, residual: bool = False) -> ir.Requantizer:
        return ir.Requantizer(
            m=rng.integers(1, 100, channels), b=rng.integers(-500, 500, channels), s=np.full(channels, shift),
            n=rng.integers(-60, 60, channels) if residual else np.zeros(channels, dtype=np.int64))

    def conv(name, inputs, form, kernel, weights, rule):
        return ir.Conv2d(name, inputs, (channels, height, width), form, 1.0,
                         weight=rng.choice(weights, (channels, channels, *kernel)), weight_format=ESB(4, 1),
                         weight_scale=np.ones(channels), padding=(kernel[0] // 2, kernel[1] // 2), requantizer=rule)

    esb = [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]
    table = np.tile(np.arange(256) // 2 - 64, (channels, 1))
    return ir.Graph("small", [
        ir.Input("image", (), (channels, height, width), Signed(8), 1.0, table=table),
        conv("first", ("image",), Unsigned(4), (3, 1), esb, requantizer(13)),
        conv("second", ("first", "first"), ESB(4, 1), (1, 3), list(range(-60, 60)), requantizer(13, residual=True)),
        ir.MaxPool2d("pooled", ("second",), (channels, -(-height // 2), -(-width // 2)), ESB(4, 1), 1.0,
                     kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    ])


class Host(RegisterAccess):
    """Clock, reset, registers, and one memory behind the three masters.

    Parameters
    ----------
    program : where each region lies follows from its sizes; regions begin at multiples of 4 KB.
    ideal : the memory's latency in cycles, or None for cocotbext.axi's memory.
    """

    def __init__(self, dut, program: Program, ideal: int | None = None):
        self.dut, self.program = dut, program
        sizes = dict(program.meta["regions"], program=program.instructions.nbytes, weights=program.weights.nbytes)
        self.sizes = {name: -(-sizes[name] // BEAT_BYTES) * BEAT_BYTES for name in REGIONS}
        self.bases, end = {}, 16 * PAGE
        for name in REGIONS:
            self.bases[name] = end
            end += (self.sizes[name] // PAGE + 1) * PAGE
        self.memory = bytearray(end)
        cocotb.start_soon(Clock(dut.ap_clk, PERIOD_NS, "ns").start(start_high=False))
        clock = {"clock": dut.ap_clk, "reset": dut.ap_rst_n, "active_level": False}
        read_ports = ("program", "activations", *(name.removeprefix("m_axi_") for name in weight_masters(program.config)))
        if ideal is None:
            self.reads = {port: ReadMemory(dut, f"m_axi_{port}", self.memory, **clock) for port in read_ports}
            self.writes = WriteMemory(dut, "m_axi_activations", self.memory, **clock)
        else:
            for port in read_ports:
                IdealReadMemory(dut, f"m_axi_{port}", self.memory, ideal, dut.ap_clk)
            IdealWriteMemory(dut, "m_axi_activations", self.memory, ideal, dut.ap_clk)
        self.bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.ap_clk, dut.ap_rst_n,
                                 reset_active_level=False)
        for side in (self.bus.write_if, self.bus.read_if):
            side.log.setLevel("ERROR")

    async def tick(self, cycles: int = 1) -> None:
        for _ in range(cycles):
            await RisingEdge(self.dut.ap_clk)

    async def reset(self) -> None:
        self.dut.ap_rst_n.value = 0
        await self.tick(4)
        self.dut.ap_rst_n.value = 1
        await self.tick(2)

    async def counters(self) -> dict:
        return {name: await self.read(f"COUNT_{name.upper()}") for name, _ in COUNTERS}

    def put(self, region: str, data: bytes) -> None:
        self.memory[self.bases[region]:self.bases[region] + len(data)] = data

    async def load(self) -> None:
        """Put the program into memory and its regions into the registers."""
        self.put("program", self.program.instructions.astype("<u8").tobytes())
        self.put("weights", self.program.weights.tobytes())
        for region in REGIONS:
            await self.write(f"{region.upper()}_LO", self.bases[region])
            await self.write(f"{region.upper()}_HI", 0)
            await self.write(f"{region.upper()}_BYTES", self.sizes[region])
        await self.write("PROGRAM_LENGTH", len(self.program.instructions))
        await self.write("IRQ_ENABLE", BOTH)

    async def start(self, images: np.ndarray) -> None:
        """Ring the doorbell; outputs and log are filled with a pattern first."""
        meta = self.program.meta["input"]
        codes = fold_windows(encode_images(images, self.program.table), meta)
        self.put("input", pack(codes, self.program.config.rows, meta["digits"], meta["pitch"],
                              self.program.config.digit_bits).tobytes())
        for region in ("output", "log"):
            self.put(region, b"\xa5" * self.sizes[region])
        await self.write("IRQ_STATUS", BOTH)
        await self.write("CONTROL", START)

    async def finish(self, within: int = 20000) -> dict:
        """Wait for the interrupt and for a quiet bus; returns the status."""
        for _ in range(within):
            await self.tick()
            if self.dut.irq.value == 1:
                break
        else:
            raise AssertionError(f"no interrupt within {within} cycles: {await self.status()}")
        for _ in range(200):
            status = await self.status()
            if status["quiescent"]:
                return status
        raise AssertionError(f"the bus did not become quiet: {status}")

    @property
    def outputs(self) -> np.ndarray:
        meta = self.program.meta["output"]
        data = self.memory[self.bases["output"]:self.bases["output"] + self.program.meta["regions"]["output"]]
        return unpack(np.frombuffer(bytes(data), dtype=np.uint8), tuple(meta["shape"]), self.program.meta["batch"],
                      self.program.config.rows, meta["digits"], meta["pitch"], meta["signed"],
                      self.program.config.digit_bits)

    @property
    def log(self) -> np.ndarray:
        """(layers, words of a record)."""
        data = bytes(self.memory[self.bases["log"]:self.bases["log"] + self.sizes["log"]])
        return np.frombuffer(data, dtype="<u4").reshape(-1, LOG_BEATS * BEAT_BYTES // 4)
