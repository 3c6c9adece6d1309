"""A simulator of a configuration: generate the RTL, build the library, connect the memory."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from esbflow.engine_config import EngineConfig
from esbflow.errors import BadValue
from esbsim.build import TWO_CLOCKS, build
from esbsim.simulator import IDEAL, MemoryTiming, Simulator
from esbsim.waves import Waves, scopes

TOP = "esb_engine"
LARGE_LANES = 2048
"""From so many lanes on, in all slices, an engine's time to build counts for more than its speed."""


def engine_library(config: EngineConfig, trace: bool = False, cache_dir: str | Path | None = None,
                   two_clocks: bool = False) -> Path:
    """The shared library of a configuration's engine; built on the first call, minutes for the largest.

    With `trace` it is made of engine.v as it is, so that waves have its hierarchy and its names. So is a large engine's,
    which builds in a fraction of the time. Others are made of one flat module, which is faster.
    With `two_clocks` the engine has a compute clock of its own, see Simulator.set_clocks; it writes no waves.
    """
    if two_clocks:
        if trace:
            raise BadValue("an engine with two clocks writes no waves here; trace the engine with one clock")
        return build(_rtlil(config, True), TOP, cache_dir, harness=TWO_CLOCKS)
    large = config.macs_per_cycle >= LARGE_LANES
    if trace or large:
        return build(_verilog(config), config.module_name, cache_dir, trace=trace, large=large)
    return build(_rtlil(config, False), TOP, cache_dir)


@lru_cache(maxsize=4)
def _rtlil(config, two_clocks):
    from esbhw.generate import rtlil  # here: importing this module should not need Amaranth

    return rtlil(config, "generic", two_clocks)


@lru_cache(maxsize=4)
def _verilog(config):
    from esbhw.generate import verilog

    return verilog(config)


def simulate_engine(config: EngineConfig, memory: np.ndarray, base: int = 0,
                    timing: MemoryTiming | dict = IDEAL, shared_bytes_per_cycle: float | None = None,
                    trace: Waves | str | Path | None = None, cache_dir: str | Path | None = None) -> Simulator:
    """A simulator of a configuration's engine over `memory`; with `trace`, waves go to that file.

    Raises
    ------
    BadValue
        if `trace` names a block that is not in the engine.
    esbsim.toolchain.BuildError
        if a tool is missing or refuses the design.
    """
    if trace is None:
        return Simulator(engine_library(config, cache_dir=cache_dir), memory, base, timing, shared_bytes_per_cycle)
    waves = trace if isinstance(trace, Waves) else Waves(trace)
    chosen = scopes(_verilog(config), config.module_name, waves.blocks)
    simulator = Simulator(engine_library(config, True, cache_dir), memory, base, timing, shared_bytes_per_cycle)
    simulator.trace(waves.path, waves.cycles, chosen, config.clock_mhz)
    simulator.reset()
    return simulator
