"""`make bench`: simulation speed, array utilization and cycle model, measured in one run and written as JSON.

Speed is cycles a second of base16x16 beside cocotb's, and the CPU seconds of a ResNet-20 image on 1,024 lanes.

    python -m sim.benches.benchmarks --out build/bench [--quick] [--record docs/results/engine-simulation.json]

What the engines take is measured by esbhw.performance; docs/performance.md shows both.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.files import write_json
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_images
from esbflow.numbers import ESB, Unsigned
from esbflow.reports.large_engines import graph_of
from esbflow.runtime.engine import Engine
from esbsim.engine import engine_library
from esbsim.simulator import MemoryTiming, Simulator
from esbsim.transport import SimulatedTransport, memory
from sim.benches.provenance import machine

LATENCY = 40
TARGETS = {"base16x16": 0.92, "large64x64": 0.80}
SPEED_RATIO = 300
IMAGE_ENGINE = replace(ENGINES["table32x32-w4-slices4"], name="table32x32-w4", slices=1, activation_ports=1, weight_ports=1)
IMAGE_SECONDS = 1.5
"""CPU seconds of one core that a ResNet-20 image may take on IMAGE_ENGINE."""


def convolution(channels: int = 64, size: int = 28, seed: int = 0) -> ir.Graph:
    """3x3, `channels` in and out, 4-bit activations, ESB(4,1) weights, on a size x size map."""
    random = np.random.default_rng(seed)
    table = np.tile(np.arange(256) // 16, (channels, 1))
    form = ESB(4, 1)
    weight = random.choice(form.levels, (channels, channels, 3, 3))
    constants = ir.Requantizer(
        m=random.integers(1, 100, channels), n=np.zeros(channels, dtype=np.int64),
        b=random.integers(-1000, 1000, channels), s=np.full(channels, 9))
    return ir.Graph("conv3x3", [
        ir.Input("input", (), (channels, size, size), Unsigned(4), 1.0, table=table),
        ir.Conv2d("conv", ("input",), (channels, size, size), Unsigned(4), 1.0, weight=weight, weight_format=form,
                  weight_scale=np.ones(channels), padding=(1, 1), requantizer=constants),
    ])


def utilization(config: EngineConfig) -> dict:
    """Useful MACs / (lanes x cycles from doorbell to done), cold start, on the compiled RTL with ideal memory."""
    graph = convolution()
    program = compile_graph(graph, config, fold=False)
    simulator = Simulator(engine_library(config), memory(32), timing=MemoryTiming(latency=LATENCY))
    engine = Engine(SimulatedTransport(simulator))
    engine.load(program)
    images = np.random.default_rng(1).integers(0, 256, (1, *graph.input.shape), dtype=np.uint8)
    began = time.process_time()
    result = engine.run(images)
    seconds = time.process_time() - began
    macs = sum(layer["macs"] for layer in program.meta["layers"])
    return {
        "engine": config.name, "cycles": result.cycles, "model_cycles": count_cycles(program, LATENCY).total,
        "mismatches": int((result.outputs != execute(graph, images)).sum()),
        "utilization": macs / (config.macs_per_cycle * result.cycles), "target": TARGETS[config.name],
        "sim_cycles_per_second": result.cycles / seconds,
    }


def speed(config: EngineConfig, cycles: int) -> dict:
    """Clock cycles a second of the compiled simulation and of cocotb with Icarus, on the same engine at work."""
    from sim.benches.engine_speed import measure

    slow = measure(config.name, cycles)
    graph = convolution()
    simulator = Simulator(engine_library(config), memory(32), timing=MemoryTiming(latency=LATENCY))
    engine = Engine(SimulatedTransport(simulator))
    engine.load(compile_graph(graph, config, fold=False))
    images = np.zeros((1, *graph.input.shape), dtype=np.uint8) + 85
    began = time.process_time()
    result = engine.run(images)
    fast = result.cycles / (time.process_time() - began)
    return {"engine": config.name, "compiled_cycles_per_second": fast,
            "cocotb_icarus_cycles_per_second": slow["cycles_per_second"], "ratio": fast / slow["cycles_per_second"],
            "target": SPEED_RATIO}


def image(config: EngineConfig = IMAGE_ENGINE, network: str = "resnet20") -> dict:
    """CPU seconds of an image of a network on the compiled RTL, from the call of the driver to its result; the second one,
    when the program is loaded and the library is in memory."""
    graph = graph_of(network)
    program = compile_graph(graph, config)
    engine = Engine(SimulatedTransport(Simulator(engine_library(config), memory(32), timing=MemoryTiming(latency=LATENCY))))
    engine.load(program)
    images = random_images(np.random.default_rng(1), graph, 1)
    engine.run(images)
    began = time.process_time()
    result = engine.run(images)
    seconds = time.process_time() - began
    return {
        "network": network, "engine": config.name, "lanes": config.macs_per_cycle, "cycles": result.cycles,
        "model_cycles": count_cycles(program, LATENCY).total,
        "mismatches": int((result.outputs != execute(graph, images)).sum()), "seconds": seconds, "target": IMAGE_SECONDS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="build/bench", metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="leave out large64x64, whose simulator builds for minutes")
    parser.add_argument("--record", metavar="FILE", help="write the figures there too: what docs/performance.md is made of")
    parser.add_argument("--cycles", type=int, default=300, help="cycles that Icarus simulates (default 300)")
    arguments = parser.parse_args()
    engines = ["base16x16"] if arguments.quick else list(TARGETS)
    if arguments.quick and arguments.record:
        parser.error("--record needs every engine; leave --quick out")
    content = {"command": "python -m sim.benches.benchmarks", **machine(), "latency": LATENCY,
               "utilization": [], "speed": None, "image": None}
    for name in engines:
        print(f"utilization of {name}", file=sys.stderr, flush=True)
        content["utilization"].append(utilization(ENGINES[name]))
    print("compiled simulation against cocotb with Icarus", file=sys.stderr, flush=True)
    content["speed"] = speed(ENGINES["base16x16"], arguments.cycles)
    print("a ResNet-20 image on 1,024 lanes", file=sys.stderr, flush=True)
    content["image"] = image()
    content["reached"] = (all(row["utilization"] >= row["target"] for row in content["utilization"])
                          and all(row["cycles"] == row["model_cycles"] and row["mismatches"] == 0
                                  for row in (*content["utilization"], content["image"]))
                          and content["speed"]["ratio"] >= SPEED_RATIO and content["image"]["seconds"] <= IMAGE_SECONDS)
    write_json(Path(arguments.out) / "bench.json", content)
    if arguments.record:
        write_json(Path(arguments.record), content)
    print(json.dumps(content, indent=2))
    return 0 if content["reached"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
