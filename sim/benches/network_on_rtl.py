"""A whole network on the compiled RTL of a large engine, against its graph and the cycle model.

    python -m sim.benches.network_on_rtl [--network resnet18] [--engine table64x64-w4] [--record FILE.json]

Networks and engines are those of the table of large engines (esbflow.reports.large_engines), weights and images random.
A batch of 0 is one image for each slice. Each batch runs on ideal memory, and then on memory whose ports share so many bytes
a cycle; on both every cycle must be the model's. The exit status is 1 if a value or a cycle differs.
"""

import argparse
import json
import os
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from esbflow.compiler.cycles import Cycles, count_cycles
from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.images import said_of_input
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import Program
from esbflow.compiler.shared_memory import DDR_BYTES
from esbflow.engine_config import EngineConfig
from esbflow.files import write_json
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_images
from esbflow.reports.large_engines import config_of, graph_of
from esbflow.runtime.engine import Engine, Result
from esbsim.engine import engine_library
from esbsim.simulator import MemoryTiming, Simulator
from esbsim.transport import SimulatedTransport, memory
from sim.benches.provenance import command, machine

LATENCY = 40
ENGINES = ("table64x64-w4", "zcu102-w4a4", "table64x64-w4-slices4")
"""What `make bench` runs."""


def measure(graph: ir.Graph, config: EngineConfig, batch: int = 0, seed: int = 0, megabytes: int = 256,
            shared: float = DDR_BYTES) -> dict:
    """Run `batch` random images (0: one for each slice) cold start to done: on ideal memory, then with a `shared` budget.

    Returns
    -------
    dict
        cycles of RTL and model, `layers_that_differ` (names of layers whose cycles are not the model's), `mismatches`
        (output values that are not the graph's) of `values`, `utilization` of the lanes, seconds of wall time and of CPU
        time, of all tools, that the library took (few from the cache) and that the run took; of the second run the same
        but for seconds with `shared_` before their names, and `shared_bytes_per_cycle`.
    """
    batch = batch or config.slices
    program = compile_graph(graph, config, batch)
    began, spent = time.monotonic(), _cpu_seconds()
    library = engine_library(config)
    built = {"library_seconds": time.monotonic() - began, "library_cpu_seconds": _cpu_seconds() - spent}
    simulator = Simulator(library, memory(megabytes), timing=MemoryTiming(latency=LATENCY))
    engine = Engine(SimulatedTransport(simulator))
    engine.load(program)
    images = random_images(np.random.default_rng(seed), graph, batch)
    began, spent = time.monotonic(), _cpu_seconds()
    result = engine.run(images)
    ran = {"run_seconds": time.monotonic() - began, "run_cpu_seconds": _cpu_seconds() - spent}
    simulator.set_shared_bandwidth(Fraction(shared))
    again = engine.run(images)
    simulator.close()
    expected = execute(graph, images)
    return {
        "network": graph.name, "engine": config.name, "config": config.to_dict(), "batch": batch, "latency": LATENCY,
        "input": said_of_input(program),
        "values": int(expected.size), **_compared(program, result, count_cycles(program, LATENCY), expected),
        "shared_bytes_per_cycle": shared,
        **{f"shared_{name}": value for name, value in
           _compared(program, again, count_shared_cycles(program, LATENCY, shared), expected).items()},
        **built, **ran,
    }


def _cpu_seconds() -> float:
    """Of this process and of the tools that it has run: what a machine that others load too does not change."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _compared(program: Program, result: Result, model: Cycles, expected: np.ndarray) -> dict:
    """A run beside graph and model."""
    layers = program.meta["layers"]
    spent = [layer["cycles"] for layer in result.layers[0]]
    macs = program.meta["batch"] * sum(layer["macs"] for layer in layers)
    return {
        "cycles": result.cycles, "model_cycles": model.total,
        "layers_that_differ": [layer["name"] for layer, cycles, counted in zip(layers, spent, model.per_layer)
                               if cycles != counted],
        "mismatches": int((result.outputs != expected).sum()),
        "utilization": macs / (program.config.macs_per_cycle * result.cycles),
    }


def is_exact(row: dict) -> bool:
    """Whether every value was the graph's and every cycle the model's."""
    return all(row[f"{memory}cycles"] == row[f"{memory}model_cycles"]
               and not row[f"{memory}layers_that_differ"] and not row[f"{memory}mismatches"] for memory in ("", "shared_"))


def record(path: Path, rows: list) -> None:
    """Put rows into a record, in the place of those of the same network, engine and batch; the others stay."""
    kept = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = {_key(row): row for row in (*kept, *rows)}
    write_json(path, {**machine(), "runs": list(runs.values())})


def _key(row: dict) -> tuple:
    return row["network"], row["engine"], row["batch"]


def main(arguments: list | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet18", help="as in the table of large engines (default resnet18)")
    parser.add_argument("--engine", action="append", metavar="NAME",
                        help=f"engine; may be given several times (default {', '.join(ENGINES)})")
    parser.add_argument("--batch", type=int, default=0, help="images in a run (default: one for each slice)")
    parser.add_argument("--shared", type=float, default=DDR_BYTES, metavar="BYTES",
                        help=f"what all ports move a cycle in the second run (default {DDR_BYTES})")
    parser.add_argument("--record", metavar="FILE.json", help="put the figures there too; runs of other engines stay")
    asked = parser.parse_args(arguments)
    rows = []
    for name in asked.engine or ENGINES:
        print(f"{asked.network} on {name}", file=sys.stderr, flush=True)
        rows.append(measure(graph_of(asked.network), config_of(name), asked.batch, shared=asked.shared))
        print(json.dumps(rows[-1]), flush=True)
    if asked.record:
        made = command("sim.benches.network_on_rtl", arguments)
        record(Path(asked.record), [{**row, "command": made} for row in rows])
    return 0 if all(map(is_exact, rows)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
