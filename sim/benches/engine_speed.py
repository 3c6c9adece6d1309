"""How fast cocotb and Icarus simulate an engine: the yardstick for the compiled simulation.

    python -m sim.benches.engine_speed --engine base16x16 --cycles 300
"""

import argparse
import json

from esbflow.engines import DEFAULT_ENGINE, engine
from esbhw import generate
from sim.benches import build
from sim.benches.toplevels import EngineTop

IMAGE_SIZE = 24
"""Side of the maps: large enough that no engine is done within a few thousand cycles."""


def measure(name: str = DEFAULT_ENGINE, cycles: int = 300) -> dict:
    """Simulate `cycles` clock cycles of engine `name` in the middle of a network.

    Returns
    -------
    dict
        cycles_per_second of process time and of wall time, the cycles, and the share in which the array was at work.
    """
    config = engine(name)
    top = EngineTop(config)
    folder = build.build(f"engine-{config.name}", top, top.ports, generate.verilog(config))
    report = folder / "speed.json"
    build.run("engine_speed_bench", folder, config, cycles=cycles, size=IMAGE_SIZE, report=str(report))
    found = json.loads(report.read_text())
    return {
        "engine": config.name, "simulator": "cocotb + Icarus", "cycles": cycles,
        "cycles_per_second": cycles / found["cpu_seconds"], "cycles_per_wall_second": cycles / found["seconds"],
        "busy": bool(found["busy"]), "array_at_work": found["compute"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default=DEFAULT_ENGINE, help="named configuration or engine.json")
    parser.add_argument("--cycles", type=int, default=300)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.engine, asked.cycles)))


if __name__ == "__main__":
    main()
