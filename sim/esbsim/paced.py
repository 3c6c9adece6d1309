"""An engine that computes nothing and is done when it is told to be: what remains of a run's time is the host's.

    board.board().make_simulator = paced(cycles=165_000, clock_mhz=300)       # for the overlays loaded from now on

It stands where the simulated board has the RTL's simulator, which advances some thousand cycles a second. Registers answer
as the engine's do. Its cycles pass with the CPU time of this process, so that others on the machine slow down neither
engine nor host. Outputs and log keep what memory had: what a driver takes depends on no value.
"""

import time
from collections.abc import Callable

from esbflow.engine_config import INTERFACE_VERSION, EngineConfig
from esbflow.registers import ID_VALUE, REGISTERS

BUSY, DONE, QUIESCENT = (1 << next(low for name, low, _ in REGISTERS["STATUS"].fields if name == field)
                         for field in ("busy", "done", "quiescent"))
START, ABORT = 1, 2
_NAMES = {register.offset: name for name, register in REGISTERS.items()}


class PacedEngine:
    """What esbsim.board needs of a Simulator, for runs of `cycles` at `clock_mhz`."""

    def __init__(self, config: EngineConfig, cycles: int, clock_mhz: float):
        self.run_cycles, self.clock_mhz = cycles, clock_mhz
        self.values = dict.fromkeys(REGISTERS, 0)
        self.values.update(ID=ID_VALUE, VERSION=INTERFACE_VERSION, SIZE=config.rows | config.cols << 16,
                           HASH_LO=config.hash & 0xFFFFFFFF, HASH_HI=config.hash >> 32)
        self._began: float | None = None  # of the latest run

    @property
    def interrupt(self) -> bool:
        """Level of the interrupt output."""
        return bool(self.values["IRQ_ENABLE"] & 1) and self._done() and not self.values["IRQ_STATUS"]

    def read(self, address: int) -> int:
        """A register, by byte offset."""
        name = _NAMES[address]
        if name == "STATUS":
            return DONE | QUIESCENT if self._done() else QUIESCENT if self._began is None else BUSY
        if name == "COUNT_CYCLES":
            return min(self._elapsed(), self.run_cycles)
        return int(self.interrupt) if name == "IRQ_STATUS" else self.values[name]

    def write(self, address: int, value: int) -> None:
        """Starts a run, stops one, or keeps the value."""
        name = _NAMES[address]
        if name == "CONTROL":
            self._began = time.process_time() if value & START else None if value & ABORT else self._began
            self.values["IRQ_STATUS"] = 0
        else:
            self.values[name] = value

    def run(self, cycles: int) -> int:
        """Time passes by itself: an access takes what it takes here."""
        return cycles

    def run_until_interrupt(self, max_cycles: int) -> bool:
        """Waits until the run is done, or for the time of so many cycles; awake, since a sleep takes no CPU time."""
        until = time.process_time() + max_cycles / (1e6 * self.clock_mhz)
        while not self.interrupt and self._began is not None and time.process_time() < until:
            pass
        return self.interrupt

    def close(self) -> None:
        """There is nothing to end."""

    def _elapsed(self) -> int:
        return 0 if self._began is None else int((time.process_time() - self._began) * 1e6 * self.clock_mhz)

    def _done(self) -> bool:
        return self._began is not None and self._elapsed() >= self.run_cycles


def paced(cycles: int, clock_mhz: float) -> Callable:
    """For SimulatedZcu102.make_simulator: any configuration's engine, whose runs take `cycles`."""
    return lambda config, *_: PacedEngine(config, cycles, clock_mhz)
