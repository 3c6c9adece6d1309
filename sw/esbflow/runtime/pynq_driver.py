"""The PYNQ driver: importing this module binds it to every named engine, before `pynq.Overlay` is made.

An engine of your own is bound by `bind`. The same on a board and on the simulated one.
"""

import os
import threading
from typing import Any, ClassVar

import numpy as np
import pynq
from pynq import DefaultIP

from esbflow import handoff
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.registers import is_engine, vlnv
from esbflow.runtime.engine import QUIET_SECONDS, WATCHDOG_CYCLES, Engine
from esbflow.runtime.errors import EngineMissing, EngineReplaced
from esbflow.runtime.pynq_interrupt import Line
from esbflow.runtime.turn import Turn

_TURNS: dict = {}
_MAKING = threading.Lock()


class _PynqBuffer:
    """A pynq.allocate buffer as the core driver wants it."""

    def __init__(self, size: int, target=None):
        self.array = pynq.allocate(shape=(size,), dtype=np.uint8, target=target)
        self.address = int(self.array.device_address)

    def flush(self):
        self.array.flush()

    def invalidate(self):
        self.array.invalidate()

    def free(self):
        self.array, freed = None, self.array
        freed.freebuffer()


class _PynqTransport:
    """Registers by MMIO, memory by pynq.allocate, the interrupt by asyncio where there is one."""

    def __init__(self, ip: "EsbEngineDriver"):
        self._ip = ip
        self._line = Line(ip, ip.made_by)
        self._configured = _configuration(ip.device)

    def read(self, offset: int) -> int:
        self._check()
        return self._ip.read(offset)

    def write(self, offset: int, value: int) -> None:
        self._check()
        self._ip.write(offset, value)

    def allocate(self, size: int) -> _PynqBuffer:
        return _PynqBuffer(size, self._ip.device)

    def wait_for_interrupt(self, seconds: float) -> bool:
        return self._line.wait(seconds, self.read)

    def _check(self) -> None:
        """Before each access: where no slave answers, an access hangs a board or ends the process."""
        now = _configuration(self._ip.device)
        if now == self._configured:
            return
        name, address = self._ip.cell, self._ip.mmio.base_addr
        entry = (self._ip.device.ip_dict or {}).get(name, {})
        if not is_engine(entry.get("type")) or entry.get("phys_addr") != address:
            raise EngineReplaced(f"another overlay is loaded now ({self._ip.device.bitfile_name}), and it has no engine "
                                 f"{name} at 0x{address:x}; load the engine's overlay again and take the driver from it")
        self._configured = now
        self._line.renew()


def _configuration(device):
    """Another value after each download of a whole bitstream."""
    return getattr(device, "timestamp", None)


class EsbEngineDriver(DefaultIP):
    """`overlay.<cell>` of an engine: load(program), run(images), unload(), counters(), recover(), abort(); see Engine.

    submit(images), run_async(images) and another() have several runs and programs in flight.
    """

    bindto: ClassVar = [vlnv(config) for config in ENGINES.values()]

    def __init__(self, description):
        super().__init__(description=description)
        self.cell = description["fullpath"]
        self.pin = description.get("interrupts", {}).get("irq", {}).get("fullpath")
        self.made_by = threading.get_ident()
        self._engine = None

    @property
    def engine(self) -> Engine:
        """The core driver; made at the first use, which checks the ID register."""
        if self._engine is None:
            with _MAKING:
                if self._engine is None:
                    # Two overlays, one engine: their drivers wait for each other.
                    turn = _TURNS.setdefault((os.getpid(), self.device.tag, self.mmio.base_addr), Turn())
                    self._engine = Engine(_PynqTransport(self), WATCHDOG_CYCLES, turn)
        return self._engine

    def load(self, program) -> None:
        """`Engine.load`."""
        self.engine.load(program)

    def run(self, images, progress=None, deadline_cycles=None):
        """`Engine.run`."""
        return self.engine.run(images, progress, deadline_cycles)

    def submit(self, images, progress=None, deadline_cycles=None):
        """`Engine.submit`."""
        return self.engine.submit(images, progress, deadline_cycles)

    async def run_async(self, images, progress=None, deadline_cycles=None):
        return await self.engine.run_async(images, progress, deadline_cycles)

    def another(self) -> Engine:
        """`Engine.another`."""
        return self.engine.another()

    def unload(self) -> None:
        """`Engine.unload`."""
        self.engine.unload()

    def counters(self) -> dict:
        """`Engine.counters`."""
        return self.engine.counters()

    def recover(self, seconds: float = QUIET_SECONDS) -> None:
        """`Engine.recover`."""
        self.engine.recover(seconds)

    def abort(self) -> None:
        """`Engine.abort`."""
        self.engine.abort()


def bind(config: EngineConfig) -> None:
    """Let `pynq.Overlay` find this driver for an engine that is not one of the named ones.

    PYNQ looks drivers up by vendor, library, name and version, and an engine's name is part of its core's.
    """
    if config.name not in ENGINES:
        metaclass: Any = type(EsbEngineDriver)
        metaclass(EsbEngineDriver.__name__, (EsbEngineDriver,), {"bindto": [vlnv(config)]})  # PYNQ registers it


def open_engine(bit, device=None) -> EsbEngineDriver:
    """Load an overlay of one engine, named or your own, and return its driver: .bit, .hwh and .json of one build.

    The files are compared first, and the engine's registers with them afterwards, so that a program never meets an engine
    that its files do not describe.

    Raises
    ------
    esbflow.handoff.HandoffError
        naming each fact in which .hwh and .json differ, or the file that is missing; nothing was loaded then.
    EngineMissing
        if PYNQ finds no board; if the engine in the FPGA is not the one that the files describe, and which it is.
    """
    config = handoff.check_overlay(bit)
    bind(config)
    # PYNQ keeps what it knows of an overlay by its .bit, and would serve it for a rebuilt .hwh too.
    try:
        overlay = pynq.Overlay(str(bit), device=device)
    except RuntimeError as error:
        if "No Devices" not in str(error):
            raise
        raise EngineMissing("PYNQ finds no board on this machine; run this on a board with PYNQ's image, or on the "
                            "simulated one (--backend rtl, or import esbsim.board first)") from None
    place = handoff.read(str(bit).removesuffix(".bit") + ".hwh")
    entry = overlay.ip_dict.get(place.cell, {})
    if entry.get("phys_addr") != place.address:
        raise EngineMissing(f"PYNQ knows {place.cell} at 0x{entry.get('phys_addr') or 0:x}, and the .hwh beside the "
                            f"bitstream has it at 0x{place.address:x}: PYNQ's stored metadata is of an earlier build; call "
                            "pynq.PL.reset()")
    driver = getattr(overlay, place.cell)
    driver.overlay = overlay
    found = driver.engine.hash
    if found != config.hash:
        raise EngineMissing(f"the engine in the FPGA is {found:016x}, and {bit} is of {config.name}, {config.hash:016x}: "
                            "the bitstream is of another build than its .hwh and .json; copy all three of one build")
    return driver
