"""Runs a program on the whole engine for a number of cycles and writes down how long that took; see engine_speed."""

import json
import time
from pathlib import Path

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles

from esbflow.compiler.pipeline import compile_graph
from esbflow.graph import ir
from sim.benches.engine_host import Host, small_graph
from sim.benches.testbench import config, parameters


@cocotb.test()
async def measure(dut):
    asked, size = parameters(), config()
    whole = small_graph(size.rows, asked["size"], asked["size"])
    graph = ir.Graph("speed", whole.nodes[:-1])  # convolutions only
    host = Host(dut, compile_graph(graph, size))
    await host.reset()
    await host.load()
    await host.start(np.random.default_rng(2).integers(0, 256, (1, *graph.input.shape), dtype=np.uint8))
    begin, cpu = time.perf_counter(), time.process_time()
    await ClockCycles(dut.ap_clk, asked["cycles"])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    busy = (await host.status())["busy"]
    counters = await host.counters()
    Path(asked["report"]).write_text(json.dumps({
        "cycles": asked["cycles"], "seconds": seconds, "cpu_seconds": cpu, "busy": busy,
        "compute": counters["compute"] / max(1, counters["cycles"])}))
