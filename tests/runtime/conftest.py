"""A register-level stand-in for the engine: it copies its input's first channels to its output."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from esbflow.engine_config import INTERFACE_VERSION
from esbflow.engines import ENGINES
from esbflow.registers import COUNTERS, ID_VALUE, REGISTERS
from esbflow.runtime import layout
from esbflow.runtime.engine import Engine

CONFIG = ENGINES["small8x16"]
NAMES = {register.offset: name for name, register in REGISTERS.items()}


class FakeBuffer:
    """Host copy and device copy, as a board without cache coherence has them."""

    def __init__(self, transport, size, address):
        self._transport, self.address = transport, address
        self.array = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
        self._freed = False

    def flush(self):
        assert not self._freed
        self._transport.memory[self.address:self.address + len(self.array)] = self.array

    def invalidate(self):
        assert not self._freed
        self.array[:] = self._transport.memory[self.address:self.address + len(self.array)]

    def free(self):
        assert not self._freed and not self._transport.busy
        self._freed = True
        self.array[:] = self._transport.memory[self.address:self.address + len(self.array)] = 0xDD
        self._transport.freed += 1


class FakeEngine:
    """A transport. Ten cycles pass with each register access, a thousand with each wait."""

    def __init__(self, has_interrupt=False, duration=500):
        self.has_interrupt, self.duration = has_interrupt, duration
        self.memory = np.full(1 << 20, 0xEE, np.uint8)
        self.next_address, self.allocated, self.freed, self.starts = 0x1000, 0, 0, 0
        self.values = dict.fromkeys(REGISTERS, 0)
        self.values.update(ID=ID_VALUE, VERSION=INTERFACE_VERSION, HASH_LO=CONFIG.hash & 0xFFFFFFFF,
                           HASH_HI=CONFIG.hash >> 32, SIZE=CONFIG.rows | CONFIG.cols << 16)
        self.busy = self.done = self.error = False
        self.quiet_after = 0  # reads of STATUS until the bus is quiet
        self.clock, self.fault, self.meta, self.deaf = True, None, None, False

    def allocate(self, size):
        buffer = FakeBuffer(self, size, self.next_address)
        self.allocated += 1
        self.next_address += -(-size // 4096) * 4096
        return buffer

    def read(self, offset):
        self._advance(10)
        name = NAMES[offset]
        if name == "STATUS":
            self.quiet_after = max(0, self.quiet_after - 1)
            quiet = not self.busy and not self.quiet_after
            code, unit = self.fault[:2] if self.error and self.fault else (0, 0)
            return self.busy | self.done << 1 | self.error << 2 | quiet << 3 | code << 8 | unit << 16
        return self.values[name]

    def write(self, offset, value):
        self._advance(10)
        name = NAMES[offset]
        assert type(value) is int and 0 <= value < 2**32 and REGISTERS[name].access == "read-write"
        self.values[name] = value
        if name == "CONTROL" and value & 2 and self.busy:
            self.fault = (9, 0, 0, 0)
            self.busy, self.error = False, True
        if name == "CONTROL" and value & 1 and not self.busy and not self.quiet_after and not self.deaf:
            self.busy, self.done, self.error = True, False, False
            self.starts += 1
            self.values["COUNT_CYCLES"] = 0

    def wait_for_interrupt(self, seconds):
        self._advance(1000)
        return self.has_interrupt

    def _advance(self, cycles):
        if not self.busy or not self.clock:
            return
        self.values["COUNT_CYCLES"] += cycles
        if self.fault and self.fault[0] != 9:
            layer, address = self.fault[2:]
            self.values.update(ERROR_LAYER=layer, ERROR_ADDRESS_LO=address & 0xFFFFFFFF, ERROR_ADDRESS_HI=address >> 32)
            self.busy, self.error = False, True
        elif self.values["COUNT_CYCLES"] >= self.duration:
            self._compute()
            self.values["COUNT_CYCLES"] = self.duration
            self.busy, self.done = False, True

    def _region(self, name):
        low = self.values[f"{name}_LO"] | self.values[f"{name}_HI"] << 32
        return self.memory[low:low + self.values[f"{name}_BYTES"]]

    def _compute(self):
        source, target, batch = self.meta["input"], self.meta["output"], self.meta["batch"]
        codes = layout.unpack(self._region("INPUT"), (source["channels"], source["height"], source["width"]), batch,
                              CONFIG.rows, source["digits"], source["pitch"], True)
        channels, height, width = target["shape"]
        packed = layout.pack(codes[:, :channels, :height, :width], CONFIG.rows, target["digits"], target["pitch"])
        self._region("OUTPUT")[:len(packed)] = packed
        log = self._region("LOG").view("<u4").reshape(-1, 16)
        for layer, record in enumerate(log):
            record[:len(COUNTERS)] = (np.arange(len(COUNTERS)) + 1) * (layer + 1) * 10
            record[-1] = layer


@pytest.fixture
def fake():
    return FakeEngine


@pytest.fixture
def make_program():
    """A program for the stand-in: `batch` images (c, h, w), output the first channels as 16-bit integers."""
    def make(batch=2, shape=(3, 5, 7), **changes):
        channels, height, width = shape
        pitch = -(-width // CONFIG.words_per_beat) * CONFIG.words_per_beat
        plane = batch * height * pitch * CONFIG.rows // 2  # bytes of one digit of one channel group
        meta = {
            "format": "esbflow program", "version": 2, "name": "copy", "batch": batch,
            "engine": CONFIG.to_dict(), "engine_hash": f"{CONFIG.hash:016x}",
            "input": {"shape": list(shape), "digits": 2, "channels": channels, "height": height, "width": width,
                      "pitch": pitch, "fold": None},
            "output": {"shape": list(shape), "digits": 4, "signed": True, "pitch": pitch, "scale": 0.5},
            "regions": {"workspace": 0, "log": 128,
                        "input": -(-channels // CONFIG.rows) * 2 * plane,
                        "output": -(-channels // CONFIG.rows) * 4 * plane},
            "layers": [{"name": "first", "op": "conv2d", "macs": 10}, {"name": "second", "op": "linear", "macs": 1}],
            **changes,
        }
        meta = json.loads(json.dumps(meta))
        table = np.tile(np.arange(256, dtype=np.int64) - 128, (channels, 1))
        return SimpleNamespace(meta=meta, instructions=np.ones((3, 4), np.uint64),
                               weights=np.arange(100, dtype=np.uint8), table=table)
    return make


@pytest.fixture
def engine(fake, make_program):
    """(driver with a loaded program, the stand-in behind it)"""
    transport, program = fake(), make_program()
    transport.meta = program.meta
    driver = Engine(transport)
    driver.load(program)
    return driver, transport
