"""A simulator of a configuration: generate the RTL, build the library, connect the memory."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from esbflow.engine_config import EngineConfig
from esbsim.build import build
from esbsim.simulator import IDEAL, MemoryTiming, Simulator

TOP = "esb_engine"


def engine_library(config: EngineConfig, trace: bool = False, cache_dir: str | Path | None = None) -> Path:
    """The shared library of a configuration's engine; built on the first call, minutes for the largest."""
    return build(_rtlil(config), TOP, cache_dir, trace)


@lru_cache(maxsize=4)
def _rtlil(config):
    from esbhw.generate import rtlil  # here: importing this module should not need Amaranth

    return rtlil(config)


def simulate_engine(config: EngineConfig, memory: np.ndarray, base: int = 0,
                    timing: MemoryTiming | dict = IDEAL, shared_bytes_per_cycle: float | None = None,
                    trace: str | Path | None = None, cache_dir: str | Path | None = None) -> Simulator:
    """A simulator of a configuration's engine over `memory`; with `trace`, waves go to that file from reset on.

    Raises
    ------
    esbsim.toolchain.BuildError
        if a tool is missing or refuses the design.
    """
    library = engine_library(config, trace is not None, cache_dir)
    simulator = Simulator(library, memory, base, timing, shared_bytes_per_cycle)
    if trace is not None:
        simulator.trace(trace)
        simulator.reset()
    return simulator
