"""The PYNQ driver: importing this module binds it to the engine's VLNV, before `pynq.Overlay` is made.

The same on a board and on the simulated one.
"""

import asyncio

import numpy as np
import pynq
from pynq import DefaultIP

from esbflow.registers import VLNV
from esbflow.runtime.engine import WATCHDOG_CYCLES, Engine


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
        self.array.freebuffer()


class _PynqTransport:
    """Registers by MMIO, memory by pynq.allocate, the interrupt by asyncio where there is one."""

    def __init__(self, ip: "EsbEngineDriver"):
        self._ip = ip
        self._loop = None

    def read(self, offset: int) -> int:
        return self._ip.read(offset)

    def write(self, offset: int, value: int) -> None:
        self._ip.write(offset, value)

    def allocate(self, size: int) -> _PynqBuffer:
        return _PynqBuffer(size, self._ip.device)

    def wait_for_interrupt(self, seconds: float) -> bool:
        interrupt = getattr(self._ip, "irq", None)
        if interrupt is None:
            return False  # no UIO device for the line: the caller polls
        try:
            asyncio.get_running_loop()
            return False  # in a notebook: its loop cannot be entered again, so the caller polls
        except RuntimeError:
            pass

        async def wait():
            await asyncio.wait_for(interrupt.wait(), seconds)

        try:
            self._own_loop().run_until_complete(wait())
        except (asyncio.TimeoutError, TimeoutError):
            pass
        return True

    def _own_loop(self):
        # PYNQ's UIO readers sit on the thread's current loop; asyncio.run() leaves a thread without one.
        if self._loop is None or self._loop.is_closed():
            try:
                self._loop = asyncio.get_event_loop_policy().get_event_loop()
            except RuntimeError:
                self._loop = asyncio.new_event_loop()
                asyncio.set_event_loop(self._loop)
        return self._loop


class EsbEngineDriver(DefaultIP):
    """`overlay.<cell>` of an engine: load(program), run(images), counters(), recover(), abort(); see Engine."""

    bindto = [VLNV]

    def __init__(self, description):
        super().__init__(description=description)
        self._engine = None

    @property
    def engine(self) -> Engine:
        """The core driver; made at the first use, which checks the ID register."""
        if self._engine is None:
            self._engine = Engine(_PynqTransport(self), WATCHDOG_CYCLES)
        return self._engine

    def load(self, program) -> None:
        self.engine.load(program)

    def run(self, images, progress=None, deadline_cycles=None):
        return self.engine.run(images, progress, deadline_cycles)

    def counters(self) -> dict:
        return self.engine.counters()

    def recover(self, seconds: float = 2.0) -> None:
        self.engine.recover(seconds)

    def abort(self) -> None:
        self.engine.abort()
