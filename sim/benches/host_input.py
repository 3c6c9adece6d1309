"""What the host does to images before a run: folding them, or copying raw pixels that the load unit folds.

    python -m sim.benches.host_input [--record docs/results/host-input.json]

Both ways in one process, in turns, with the driver's own functions: the least of several times counts, and the ratio of two
such times is what docs/driver.md states. Milliseconds are of this machine.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.files import write_json
from esbflow.graph import ir
from esbflow.graph.random import random_images
from esbflow.reports.large_engines import graph_of
from esbflow.runtime.images import folded_input, write_lines
from sim.benches.provenance import command, machine

ROWS = (("resnet18", "zcu102-w4a4"), ("resnet20", "zcu102-w4a4"), ("mobilenet-v2", "zcu102-w4a4"),
        ("resnet18", "table64x64-w4"), ("resnet18", "table64x64-w4-slices2"), ("resnet18", "table64x64-w4-slices4"),
        ("mobilenet-v2", "table32x32-w4-slices4"), ("resnet20", "table16x16-w4-slices16"))
"""Those that docs/networks.md gives frames a second of."""


def first_layer(graph: ir.Graph) -> ir.Graph:
    """A graph of the input and the layer that reads it: all that the host's work depends on."""
    return ir.Graph(graph.name, graph.nodes[:2])


def measure(graph: ir.Graph, config: EngineConfig, repeats: int = 15, seed: int = 0) -> dict:
    """The host's time for an image of `graph` on an engine.

    Returns
    -------
    dict
        `host_ms`: the host folds; `images_per_second` that the host makes input for. On an engine with an image buffer also
        `raw_ms`, `raw_last_ms`: it copies images (c, h, w), or (h, w, c); `ratio`, `ratio_last`: host_ms over these.
    """
    stripes = False if config.stripes else None
    images = random_images(np.random.default_rng(seed), graph, 1)
    last = np.ascontiguousarray(np.moveaxis(images, 1, 3))
    folded = compile_graph(graph, config, stripes=stripes, raw=False)
    ways = {"host_ms": lambda: folded_input(folded, images)}
    for name, given in (("raw_ms", images), ("raw_last_ms", last)) if config.image_beats else ():
        program = compile_graph(graph, config, stripes=stripes, channels_last=given is last)
        memory = np.zeros(program.meta["regions"]["input"], np.uint8)
        ways[name] = lambda memory=memory, given=given, raw=program.meta["input"]["raw"]: write_lines(memory, given, raw)
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            least[name] = min(least[name], 1000 * (time.perf_counter() - began))
    row = {"network": graph.name, "engine": config.name, "image": list(graph.input.shape), **least,
           "images_per_second": 1000 / least.get("raw_ms", least["host_ms"])}
    if config.image_beats:
        row |= {"ratio": least["host_ms"] / least["raw_ms"], "ratio_last": least["host_ms"] / least["raw_last_ms"]}
    return row


def main(arguments: list | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="FILE.json", help="write the figures there too")
    asked = parser.parse_args(arguments)
    rows = [measure(first_layer(graph_of(network)), ENGINES[name]) for network, name in ROWS]
    print(json.dumps(rows, indent=2))
    if asked.record:
        write_json(Path(asked.record), {"command": command("sim.benches.host_input", arguments), **machine(), "runs": rows})
    return 0 if all(row.get("ratio", 2) > 1 for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
