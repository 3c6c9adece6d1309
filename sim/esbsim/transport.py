"""The driver's transport straight onto a simulator: no PYNQ between, for tests and long runs."""

import numpy as np

from esbflow.runtime.pages import Pages, whole_pages
from esbsim.simulator import Simulator

FREED = 0xDD
"""What released memory holds until it is allocated again."""
WAIT_CYCLES = 1_000_000
"""Cycles that one wait for the interrupt simulates at most."""


class SimulatedBuffer:
    """A piece of the simulated memory; coherent, so flush and invalidate have nothing to do."""

    def __init__(self, transport: "SimulatedTransport", offset: int, size: int):
        self._transport, self._offset, self._size = transport, offset, size
        self.address = transport.simulator.base + offset
        self.array = transport.simulator.memory[offset:offset + size]

    def flush(self):
        pass

    def invalidate(self):
        pass

    def free(self):
        self._transport.release(self._offset, self._size)


class SimulatedTransport:
    """Registers and memory of a Simulator, for esbflow.runtime.engine.Engine.

    Memory is given out in pages from the start of the simulator's array.

    Raises
    ------
    MemoryError
        from `allocate` when the array is full.
    """

    def __init__(self, simulator: Simulator):
        self.simulator = simulator
        self._pages = Pages(simulator.memory.size)

    def read(self, offset: int) -> int:
        return self.simulator.read(offset)

    def write(self, offset: int, value: int) -> None:
        self.simulator.write(offset, value)

    def allocate(self, size: int) -> SimulatedBuffer:
        start = self._pages.allocate(size)
        if start is None:
            raise MemoryError(f"the simulated memory has no {whole_pages(size)} bytes left; make it larger")
        buffer = SimulatedBuffer(self, start, size)
        buffer.array[:] = 0
        return buffer

    def release(self, offset: int, size: int) -> None:
        """Give `size` bytes at an offset back, and fill them with what nobody wrote."""
        self.simulator.memory[offset:offset + size] = FREED
        self._pages.release(offset, size)

    def wait_for_interrupt(self, seconds: float) -> bool:
        self.simulator.run_until_interrupt(WAIT_CYCLES)
        return True


def memory(megabytes: int = 64) -> np.ndarray:
    """Zeroed memory for a Simulator."""
    return np.zeros(megabytes << 20, dtype=np.uint8)
