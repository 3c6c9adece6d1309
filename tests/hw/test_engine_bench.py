"""The whole engine, from the file that users get, against cocotbext.axi in a four-state simulator."""

from dataclasses import replace

from esbflow.engines import ENGINES
from esbhw import generate
from sim.benches import build
from sim.benches.toplevels import EngineTop


def test_the_engine_is_exact_and_recovers_from_everything(tmp_path):
    size = replace(ENGINES["tiny4x4"], name="bench4x4", max_burst=4)  # so that small transfers are several bursts
    verilog, *_ = generate.write(size, tmp_path, "generic")
    top = EngineTop(size)
    build.run("engine_bench", build.build("engine", top, top.ports, verilog.read_text()), size)
