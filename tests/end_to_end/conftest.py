"""Engines as compiled simulators, built once and cached by content."""

import functools
import os
import secrets
from dataclasses import replace

import pytest

from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.runtime.engine import Engine
from esbsim.engine import engine_library
from esbsim.simulator import Simulator
from esbsim.transport import SimulatedTransport, memory
from tests.compiler.programs import NARROW, TALL

BASE = 0x8_1000_0000  # above 4 GB, as on a board with all of its memory
MEGABYTES = 256
"""Of simulated memory: ten striped images of a random graph have been seen to take 70. Pages that nothing touches cost nothing."""


def pytest_report_header(config):
    return f"esbflow: random layers use seed {_seed()} (set ESBFLOW_SEED to repeat)"


@functools.cache
def _seed() -> int:
    return int(os.environ.get("ESBFLOW_SEED") or secrets.randbits(30))


@pytest.fixture(scope="session")
def seed() -> int:
    """Fresh in every run, printed in the header."""
    return _seed()


TABLE_WITH_PORTS = EngineConfig(
    "ports8x16", rows=8, cols=16, array="table", table_groups=2, weight_min=-8, weight_max=7, accumulator_depth=256,
    activation_beats=256, residual_beats=256, weight_path_beats=4, weight_ports=4, channel_unit=8)
"""What no small named engine has: tables, and several ports for weights; with a channel unit."""
SHIFTING = EngineConfig(
    "shift8x16", rows=8, cols=16, requantizer="shift", accumulator_depth=256, activation_beats=256, residual_beats=256,
    channel_unit=8)
"""Requantizers that shift, behind array and channel unit."""
SLICES = EngineConfig("slices4x4", rows=4, cols=4, accumulator_depth=64, activation_beats=64, residual_beats=64,
                      weight_slots=4, max_burst=16, slices=2, activation_ports=2, stripes=True, map_beats=64)
"""Slices with ports of their own, and with map memories that some maps fit."""
SHARED = replace(TABLE_WITH_PORTS, name="shared8x8", cols=8, weight_path_beats=2, weight_ports=2, channel_unit=4, slices=4,
                 activation_ports=2, stripes=True, batch_tiles=True)
"""Slices of which two share a port, with everything that a small engine can have."""
LOOKUPS = replace(TABLE_WITH_PORTS, name="lookup8x16", weight_path_beats=2, weight_ports=2, function_table=True, map_beats=256,
                  batch_tiles=True)
"""A function table whose rows come through two ports, a map memory, and tiles of several images."""
NARROW_LOOKUPS = EngineConfig(
    "lookup4x4", rows=4, cols=4, accumulator_depth=64, activation_beats=64, residual_beats=64, weight_slots=4, max_burst=16,
    requantizer="shift", esb_output=False, residual=False, digit_bits=2, weight_min=-2, weight_max=1, slices=2,
    requantize_lanes=2, function_table=True, map_beats=128)
"""A function table behind the shortest lanes, for digits of two bits, in two slices whose map memories share a port."""
PIXELS = replace(ENGINES["tiny4x4"], name="pixels4x4", slices=2, image_beats=64)
"""An image buffer in each of two slices."""
WIDE_PIXELS = EngineConfig(
    "pixels32x4", rows=32, cols=4, array="table", table_groups=2, weight_min=-2, weight_max=1, digit_bits=2,
    accumulator_depth=128, activation_beats=128, residual_beats=128, weight_slots=4, max_burst=16, slices=4,
    activation_ports=2, image_beats=64)
"""Words of two slots, a beat of four; image buffers that share ports."""
WIDE = EngineConfig("wide32x4", rows=32, cols=4, accumulator_depth=256, activation_beats=256, residual_beats=256,
                    max_burst=16, slices=2, activation_ports=1)
"""Words of a whole beat, in two slices that share a port."""
OTHERS = {config.name: config for config in (
    PIXELS, WIDE, WIDE_PIXELS, TABLE_WITH_PORTS, SHIFTING, SLICES, SHARED, LOOKUPS, NARROW_LOOKUPS, *TALL.values())}


def engine_of(name: str) -> EngineConfig:
    return OTHERS.get(name) or NARROW.get(name) or ENGINES[name]


@functools.cache
def _simulator(name: str) -> Simulator:
    return Simulator(engine_library(engine_of(name)), memory(MEGABYTES), BASE)


@pytest.fixture
def bench():
    """bench(engine name) -> (simulator, Engine), reset and with ideal memory."""

    def make(name: str):
        simulator = _simulator(name)
        simulator.clear_faults()
        for port in simulator.ports:
            simulator.set_timing(port, _ideal())
        simulator.set_shared_bandwidth(None)
        simulator.reset()
        return simulator, Engine(SimulatedTransport(simulator))

    return make


def _ideal():
    from esbsim.simulator import MemoryTiming

    return MemoryTiming()
