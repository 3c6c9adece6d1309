"""Engines as compiled simulators, built once and cached by content."""

import functools
import os
import secrets

import pytest

from esbflow.engine_config import ENGINES
from esbflow.runtime.engine import Engine
from esbsim.engine import engine_library
from esbsim.simulator import Simulator
from esbsim.transport import SimulatedTransport, memory

BASE = 0x8_1000_0000  # above 4 GB, as on a board with all of its memory


def pytest_report_header(config):
    return f"esbflow: random layers use seed {_seed()} (set ESBFLOW_SEED to repeat)"


@functools.cache
def _seed() -> int:
    return int(os.environ.get("ESBFLOW_SEED") or secrets.randbits(30))


@pytest.fixture(scope="session")
def seed() -> int:
    """Fresh in every run, printed in the header."""
    return _seed()


@functools.cache
def _simulator(name: str) -> Simulator:
    return Simulator(engine_library(ENGINES[name]), memory(64), BASE)


@pytest.fixture
def bench():
    """bench(engine name) -> (simulator, Engine), reset and with ideal memory."""

    def make(name: str):
        simulator = _simulator(name)
        simulator.clear_faults()
        for port in simulator.ports:
            simulator.set_timing(port, _ideal())
        simulator.reset()
        return simulator, Engine(SimulatedTransport(simulator))

    return make


def _ideal():
    from esbsim.simulator import MemoryTiming

    return MemoryTiming()
