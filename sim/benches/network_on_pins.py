"""A network over the serial line of a whole board, simulated pin to pin, against its graph.

    python -m sim.benches.network_on_pins [--baud 10000000] [--record FILE.json]

The host driver sends the program and random images through the pins of the RTL that the bitstream is made of, with the
board's clock and memory. A faster line than the board's (--baud) shortens the simulation; nothing else depends on it.
The exit status is 1 if a value differs.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from esbflow.commands.common import engine_of, load_graph
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.files import write_json
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_images
from esbflow.runtime.engine import Engine
from esbflow.runtime.serial_transport import SerialTransport
from esbhw.boards import Board, board
from esbhw.open_flow import top_name, top_rtlil
from esbsim.serial_board import SerialBoard
from sim.benches.provenance import command, machine


def measure(graph: ir.Graph, config: EngineConfig, chosen: Board, images: int, baud: int = 0, seed: int = 0) -> dict:
    """Load the program and run `images` random images, one after the other, at the board's rate or another.

    Returns
    -------
    dict
        `mismatches` (output values that are not the graph's) of `values`, `cycles` of each run of the engine, bytes of the
        board's memory and of the program, `line_seconds` (of the board's clock: loading, and an image), `repeats` (packets
        sent again), and seconds of wall time.
    """
    program = compile_graph(graph, config)
    baud = baud or chosen.baud
    line = SerialBoard(top_rtlil(config, chosen, baud), top_name(config, chosen), chosen.clock_mhz * 1_000_000, baud)
    began = time.monotonic()
    transport = SerialTransport(line)
    driver = Engine(transport)
    driver.load(program)
    loaded = line.cycles
    pixels = random_images(np.random.default_rng(seed), graph, images)
    results = [driver.run(image[None]) for image in pixels]
    hertz = chosen.clock_mhz * 1e6
    row = {
        "network": graph.name, "board": chosen.name, "config": config.to_dict(), "baud": baud, "images": images,
        "memory_bytes": transport.info["memory_bytes"],
        "program_bytes": program.instructions.nbytes + program.weights.nbytes,
        "values": int(sum(result.outputs.size for result in results)),
        "mismatches": int((np.concatenate([result.outputs for result in results]) != execute(graph, pixels)).sum()),
        "cycles": [result.cycles for result in results],
        "line_seconds": {"load": loaded / hertz, "image": (line.cycles - loaded) / hertz / images},
        "repeats": transport.repeats, "framing_errors": line.framing_errors, "run_seconds": time.monotonic() - began,
    }
    line.close()
    return row


def main(arguments: list | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="zoo:lenet5-esb-w4a4", help="an integer graph (default zoo:lenet5-esb-w4a4)")
    parser.add_argument("--board", default="tang-mega-138k", help="default tang-mega-138k")
    parser.add_argument("--engine", default="bitstreams/tang16x16.json", help="default bitstreams/tang16x16.json")
    parser.add_argument("--images", type=int, default=2, help="default 2")
    parser.add_argument("--baud", type=int, default=0, help="of the line (default: the board's)")
    parser.add_argument("--record", metavar="FILE.json", help="write the figures there too")
    asked = parser.parse_args(arguments)
    row = measure(load_graph(asked.network), engine_of(asked), board(asked.board), asked.images, asked.baud)
    print(json.dumps(row), flush=True)
    if asked.record:
        write_json(Path(asked.record), {"command": command("sim.benches.network_on_pins", arguments), **machine(), **row})
    return 1 if row["mismatches"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
