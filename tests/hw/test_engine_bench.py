"""The whole engine against cocotbext.axi, in a four-state simulator."""

from dataclasses import replace

from esbflow.engine_config import ENGINES
from sim.benches import build
from sim.benches.toplevels import EngineTop


def test_the_engine_is_exact_and_recovers_from_everything():
    size = replace(ENGINES["tiny4x4"], name="bench4x4", max_burst=4)  # so that small transfers are several bursts
    top = EngineTop(size)
    build.run("engine_bench", build.build("engine", top, top.ports), size)
