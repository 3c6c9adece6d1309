"""The whole engine against cocotbext.axi, in a four-state simulator."""

from esbflow.engine_config import ENGINES
from sim.benches import build
from sim.benches.toplevels import EngineTop


def test_the_engine_is_exact_and_recovers_from_everything():
    size = ENGINES["tiny4x4"]
    top = EngineTop(size)
    build.run("engine_bench", build.build("engine", top, top.ports), size)
