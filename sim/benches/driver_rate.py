"""What the driver makes of an engine's frames a second: end to end, from images in the caller's array to integers.

    python -m sim.benches.driver_rate [--record docs/results/driver-rate.json]

The driver as it is, under PYNQ on the simulated board, with raw images as a caller has them. The engine computes nothing
and takes the cycle model's cycles on DDR at the planning clock (esbsim.paced); the rest of a call's time is the host's.
Time is CPU time of one core, for the engine too, so that what others do on the machine matters little; the best of several
calls counts.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.shared_memory import DDR_BYTES
from esbflow.engine_config import EngineConfig
from esbflow.files import write_json
from esbflow.graph import ir
from esbflow.graph.random import random_images
from esbflow.reports.large_engines import LATENCY, config_of, graph_of
from esbflow.reports.rates_table import PLANNING_MHZ, RECORD, ROWS
from esbflow.runtime import pynq_driver
from esbsim import board
from esbsim.paced import paced
from sim.benches.provenance import command, machine

BATCHES = 4
"""Of one call of `run`: the host makes a batch ready while the engine does the one before."""


def measure(graph: ir.Graph, config: EngineConfig, batch: int, repeats: int = 15, seed: int = 0) -> dict:
    """The driver's rate for `graph` on an engine.

    Returns
    -------
    dict
        `cycles` of a batch, `engine_ms` that they take, `host_ms` that the driver took beside them in a call with one batch,
        `one_by_one`: images a second of such calls; `end_to_end`: images a second of one call with BATCHES batches.
    """
    program = compile_graph(graph, config, batch)
    batch = program.meta["batch"]
    cycles = count_shared_cycles(program, LATENCY, DDR_BYTES).total
    images = random_images(np.random.default_rng(seed), graph, BATCHES * batch)
    engine_ms = cycles / (1e3 * PLANNING_MHZ)
    one_ms = 1e3 * _seconds(config, program, images[:batch], cycles, repeats)
    return {"network": graph.name, "engine": config.name, "batch": batch, "cycles": cycles, "engine_ms": engine_ms,
            "host_ms": one_ms - engine_ms, "one_by_one": 1e3 * batch / one_ms,
            "end_to_end": len(images) / _seconds(config, program, images, cycles, repeats)}


def _seconds(config: EngineConfig, program, images: np.ndarray, cycles: int, repeats: int) -> float:
    """The least that a `run` of the driver took, on an engine whose runs take `cycles`."""
    device = board.board()
    before, device.make_simulator = device.make_simulator, paced(cycles, PLANNING_MHZ)
    try:
        with tempfile.TemporaryDirectory() as folder:
            driver = pynq_driver.open_engine(board.write_overlay(config, folder))
            driver.load(program)
            least = float("inf")
            for _ in range(repeats):
                began = time.process_time()
                driver.run(images)
                least = min(least, time.process_time() - began)
            driver.unload()
            return least
    finally:
        device.make_simulator = before


def main(arguments: list | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="FILE.json", help=f"write the figures there too (docs/results/{RECORD})")
    asked = parser.parse_args(arguments)
    rows = []
    for network, name, batch in ROWS:
        print(f"{network} on {name}", file=sys.stderr, flush=True)
        rows.append(measure(graph_of(network), config_of(name), batch))
        print(json.dumps(rows[-1]), flush=True)
    if asked.record:
        write_json(Path(asked.record), {"command": command("sim.benches.driver_rate", arguments), **machine(),
                                        "clock_mhz": PLANNING_MHZ, "bytes_per_cycle": DDR_BYTES, "runs": rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
