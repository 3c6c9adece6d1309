"""A simulated ZCU102 for PYNQ: importing this module makes it PYNQ's device, with PYNQ's own code as it is.

    from esbsim import board
    overlay = pynq.Overlay(str(board.write_overlay(config, "build/overlay")))

The processor's side is Python; the PL is the engine's generated RTL, compiled. Engine time passes while registers are
accessed (ACCESS_CYCLES each, as an access from Python takes on a board) and while somebody waits for the interrupt.
"""

import json
import os
import struct
import threading
from pathlib import Path

from pynq._3rdparty import tinynumpy
from pynq.interrupt import _InterruptController
from pynq.pl_server.device import Device
from pynqmetadata.frontends import Metadata
from pynqmetadata.views.runtime import RuntimeMetadataParser

from esbflow.engine_config import EngineConfig
from esbflow.errors import BadValue
from esbhw.boards import BOARDS
from esbhw.hwh import CONTROLLER_RANGE, ENGINE_RANGE, hwh
from esbhw.manifest import manifest
from esbsim.ddr import Ddr
from esbsim.engine import simulate_engine
from esbsim.interrupts import InterruptController, UioDevice
from esbsim.simulator import MemoryTiming

MARK = "esbflow simulated overlay: this is text and no bitstream; only the simulated board loads it"
ZCU102 = BOARDS["zcu102"]
ENGINE_BASE, CONTROLLER_BASE, RAW_IRQ = ZCU102.registers, ZCU102.controller, ZCU102.raw_irq
DDR_BASE = 0x8_0000_0000
"""The ZCU102's upper DDR: addresses need both words of the engine's address registers."""
DDR_BYTES = 1 << 30
ACCESS_CYCLES = 100
PS_BASE, PS_TOP = 0xF900_0000, 0x1_0000_0000


def write_overlay(config: EngineConfig, folder: str | Path, name: str = "engine") -> Path:
    """Writes `name`.bit (marked text), `name`.hwh and `name`.json for a configuration; returns the .bit's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    bit = folder / f"{name}.bit"
    texts = {bit.with_suffix(".hwh"): hwh(config), bit.with_suffix(".json"): json.dumps(manifest(config), indent=2) + "\n",
             bit: f"{MARK}\n{json.dumps(config.to_dict(), indent=2)}\n"}
    for path, text in texts.items():
        unfinished = path.with_suffix(path.suffix + f".{os.getpid()}")
        unfinished.write_text(text)
        os.replace(unfinished, path)
    return bit


def read_overlay(path: str | Path) -> EngineConfig:
    """The configuration in a simulated .bit.

    Raises
    ------
    ValueError
        if the file is anything else, such as a real bitstream.
    """
    with open(path, "rb") as file:
        head = file.read(len(MARK))
        text = file.read(1 << 16) if head == MARK.encode() else b""
    if not text:
        raise BadValue(f"{path} was not made for the simulated board; make one with esbsim.board.write_overlay")
    try:
        return EngineConfig.from_dict(json.loads(text))
    except ValueError as error:
        raise BadValue(f"{path} is damaged ({error}); write it again with esbsim.board.write_overlay") from None


class SimulatedZcu102(Device):
    """PYNQ's view of the board, and the handles that only a simulation has.

    Attributes
    ----------
    simulator : esbsim.simulator.Simulator of the loaded overlay, or None. Faults and stalls are set on it.
    timing, shared_bytes_per_cycle : memory of the next overlay loaded, see Simulator.
    trace : path of a VCD file, or esbsim.waves.Waves, for the next overlay loaded, or None.
    access_cycles : engine cycles that pass with each register access.
    make_simulator : of the next overlay loaded: simulate_engine, or what has its parameters (esbsim.paced).
    """

    _probe_priority_ = 10  # before the real board's 50

    @classmethod
    def _probe_(cls):
        return [cls()]

    def __init__(self, tag: str = "esbflow_simulated_zcu102"):
        super().__init__(tag)
        self.name, self.arch = "zcu102", "aarch64"  # arch is what pynq.Clocks asks for
        self.capabilities = {"MEMORY_MAPPED": True}
        self.ddr = Ddr(DDR_BASE, DDR_BYTES)
        self.simulator = None
        self._bus = threading.RLock()  # threads wait for each other, and while an overlay is being loaded
        self.timing, self.shared_bytes_per_cycle, self.trace = MemoryTiming(), None, None
        self.access_cycles, self.make_simulator = ACCESS_CYCLES, simulate_engine
        self.controller = InterruptController(self._level)
        self._ps_registers = _reset_ps_registers()
        self.connect_interrupt(True)

    def connect_interrupt(self, connected: bool):
        """Whether Linux has a UIO device for the interrupt; without one, drivers have to poll."""
        if connected:
            _InterruptController._uio_devices[RAW_IRQ] = UioDevice(lambda: self.controller.irq, self._advance)
        else:
            _InterruptController._uio_devices.pop(RAW_IRQ, None)
        _InterruptController._controllers.clear()

    def _level(self):
        with self._bus:
            return self.simulator is not None and self.simulator.interrupt

    def _advance(self, cycles):
        with self._bus:
            if self.simulator is not None:
                self.simulator.run_until_interrupt(cycles)

    # -- what Overlay needs -------------------------------------------------------------------------------
    def get_bitfile_metadata(self, bitfile_name, partial=False):
        """PYNQ's hook: what the .hwh beside a .bit says."""
        path = Path(bitfile_name).with_suffix(".hwh")
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; an overlay is a .bit and a .hwh of the same name")
        return RuntimeMetadataParser(Metadata(input=path))

    def download(self, bitstream, parser=None):
        """'Configures the PL': builds or loads the simulator of the .bit's configuration, and resets it."""
        config = read_overlay(bitstream.bitfile_name)
        with self._bus:
            if self.simulator is not None:
                self.simulator.close()
                self.simulator = None
            self.simulator = self.make_simulator(config, self.ddr.memory, self.ddr.base, self.timing,
                                                 self.shared_bytes_per_cycle, self.trace)
            self.controller.__init__(self._level)
            super().post_download(bitstream, parser, self.name)

    def gen_cache(self, bitstream, parser=None):
        """PYNQ keeps metadata between processes on a board; a simulation ends with its process."""

    def shutdown(self):
        """Nothing to shut down: the real one talks to /sys/class/fpga_manager."""

    # -- what MMIO needs ----------------------------------------------------------------------------------
    def mmap(self, base_addr, length):
        """PYNQ's hook: a window of 32-bit registers, each access of which the bus carries out."""
        return tinynumpy.ndarray(shape=(length // 4,), dtype="u4", hook=_BusHook(self, base_addr))

    def read_register(self, address: int) -> int:
        """A 32-bit word on the processor's bus.

        Raises
        ------
        RuntimeError
            if nothing is there: a bus error on a board.
        """
        with self._bus:
            return self._read(address)

    def _read(self, address):
        if ENGINE_BASE <= address < ENGINE_BASE + ENGINE_RANGE:
            simulator = self._configured(address)
            value = simulator.read(address - ENGINE_BASE)
            simulator.run(self.access_cycles)
            return value
        if CONTROLLER_BASE <= address < CONTROLLER_BASE + CONTROLLER_RANGE:
            self._configured(address).run(self.access_cycles)
            return self.controller.read(address - CONTROLLER_BASE)
        if PS_BASE <= address < PS_TOP:
            return self._ps_registers.get(address, 0)
        raise RuntimeError(f"bus error: nothing answers a read of 0x{address:x}")

    def write_register(self, address: int, value: int):
        """Writes a 32-bit word; raises as read_register does."""
        with self._bus:
            self._write(address, value)

    def _write(self, address, value):
        if ENGINE_BASE <= address < ENGINE_BASE + ENGINE_RANGE:
            simulator = self._configured(address)
            simulator.write(address - ENGINE_BASE, value)
            simulator.run(self.access_cycles)
        elif CONTROLLER_BASE <= address < CONTROLLER_BASE + CONTROLLER_RANGE:
            self._configured(address).run(self.access_cycles)
            self.controller.write(address - CONTROLLER_BASE, value)
        elif PS_BASE <= address < PS_TOP:
            self._ps_registers[address] = value
        else:
            raise RuntimeError(f"bus error: nothing answers a write of 0x{address:x}")

    def _configured(self, address):
        if self.simulator is None:
            raise RuntimeError(f"bus error at 0x{address:x}: no overlay is loaded")
        return self.simulator

    # -- what allocate and its buffers need ---------------------------------------------------------------
    def allocate(self, shape, dtype="u4", cacheable=1, **_):
        """PYNQ's hook: contiguous memory, cached by the simulated processor or not."""
        return self.ddr.allocate(self, shape, dtype, bool(cacheable))

    def flush(self, bo, offset, virtual_address, nbytes):
        """PYNQ's hook: what the processor wrote goes to memory."""
        self.ddr.flush(bo, offset, virtual_address, nbytes)

    def invalidate(self, bo, offset, virtual_address, nbytes):
        """PYNQ's hook: what the processor has cached is forgotten."""
        self.ddr.invalidate(bo, offset, virtual_address, nbytes)


class _BusHook:
    """Lets pynq's tinynumpy array reach the bus, a word at a time."""

    def __init__(self, board, base):
        self._board, self._base = board, base

    def read(self, offset, length):
        return b"".join(struct.pack("<I", self._board.read_register(self._base + offset + i)) for i in range(0, length, 4))

    def write(self, offset, data):
        for i in range(0, len(data), 4):
            self._board.write_register(self._base + offset + i, struct.unpack_from("<I", bytes(data), i)[0])


def _reset_ps_registers() -> dict:
    """CRL_APB as the boot loader leaves it: PLLs at 45 * 33.333 MHz, PL clocks at 100 MHz."""
    registers = {0xFF5E_0020: 45 << 8, 0xFF5E_0030: 45 << 8}
    registers.update({0xFF5E_00C0 + 4 * clock: 1 << 24 | 1 << 16 | 15 << 8 for clock in range(4)})
    return registers


def board() -> SimulatedZcu102:
    """The simulated board that PYNQ uses."""
    return Device.active_device


def _become_active():
    """Also if PYNQ has looked for devices before this module was imported."""
    if hasattr(Device, "_devices"):
        device = SimulatedZcu102()
        Device._devices.insert(0, device)
        Device.active_device = device


_become_active()
