"""The engine runs a compiled network bit for bit, whatever the bus does to it, and again after every kind of failure."""

import cocotb
import numpy as np

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.graph.execute import execute
from esbflow.registers import COUNTERS, ERRORS, UNITS
from sim.benches.engine_host import ABORT, Host, small_graph
from sim.benches.testbench import config

GRAPH = small_graph()
PROGRAM = compile_graph(GRAPH, config())
IMAGES = np.random.default_rng(1).integers(0, 256, (1, *GRAPH.input.shape), dtype=np.uint8)
EXPECTED = execute(GRAPH, IMAGES)
DONE = {"busy": 0, "done": 1, "error": 0, "quiescent": 1, "code": 0, "unit": 0}
CODES = {name: code for code, (name, _) in ERRORS.items()}


async def begin(dut, ideal=None) -> Host:
    host = Host(dut, PROGRAM, ideal)
    await host.reset()
    await host.load()
    return host


async def good_run(host) -> None:
    await host.start(IMAGES)
    assert await host.finish() == DONE
    assert np.array_equal(host.outputs, EXPECTED)


async def failed_run(host, code: str, unit: str) -> int:
    """A run that must end with an error; returns the error's address."""
    status = await host.finish()
    assert status == {"busy": 0, "done": 0, "error": 1, "quiescent": 1, "code": CODES[code],
                      "unit": UNITS.index(unit)}, status
    return await host.read("ERROR_ADDRESS_LO") | await host.read("ERROR_ADDRESS_HI") << 32


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(latency=[1, 40])
async def ideal_memory_gives_the_cycle_model_s_cycles(dut, latency):
    host = await begin(dut, ideal=latency)
    await good_run(host)
    model = count_cycles(PROGRAM, latency)
    counters = await host.counters()
    assert counters["cycles"] == model.total and counters["compute"] == model.compute
    assert host.log[:, 0].tolist() == model.stamps
    assert host.log[:, -1].tolist() == list(range(len(model.stamps))), "a record ends with its layer's number"
    assert host.log[-1, :len(COUNTERS)].tolist() <= list(counters.values())
    assert counters["program_beats"] == 2 * len(PROGRAM.instructions)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def a_bus_that_stalls_changes_no_output(dut, stall):
    host = await begin(dut)
    for seed, memory in enumerate((*host.reads.values(), host.writes)):
        memory.pause(stall, seed)
    await good_run(host)
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(case=[("program", "program", "axi_read", "fetch"), ("weights", "weights", "axi_read", "weights"),
                          ("activations", "input", "axi_read", "load"), (None, "workspace", "axi_write", "store"),
                          (None, "log", "axi_write", "store")])
async def an_error_response_stops_the_run_and_the_next_one_works(dut, case):
    port, region, code, unit = case
    host = await begin(dut)
    memory = host.reads[port] if port else host.writes
    memory.failing = {host.bases[region] + 16}
    await host.start(IMAGES)
    address = await failed_run(host, code, unit)
    assert address <= host.bases[region] + 16 < address + 16 * config().max_burst
    memory.failing = set()
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(after=[3, 60, 400])
async def an_abort_at_any_time_leaves_the_engine_usable(dut, after):
    host = await begin(dut)
    for seed, memory in enumerate((*host.reads.values(), host.writes)):
        memory.pause(0.3, seed)
    await host.start(IMAGES)
    await host.tick(after)
    await host.write("CONTROL", ABORT)
    await failed_run(host, "aborted", "none")
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(after=[30, 350])
async def a_reset_in_mid_run_leaves_the_engine_usable(dut, after):
    host = await begin(dut)
    await host.start(IMAGES)
    await host.tick(after)
    await host.reset()
    assert await host.status() == {**DONE, "done": 0}
    assert await host.read("PROGRAM_LENGTH") == 0, "a reset forgets the registers"
    await host.load()
    await good_run(host)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(case=[("program", "fetch"), ("weights", "weights"), ("activations", "load"), (None, "store")])
async def a_memory_that_never_answers_is_named_by_the_watchdog(dut, case):
    port, unit = case
    host = await begin(dut)
    await host.write("WATCHDOG", 300)
    silent = host.reads[port].r_channel if port else host.writes.b_channel
    silent.pause = True
    await host.start(IMAGES)
    for _ in range(3000):
        await host.tick()
        if dut.irq.value == 1:
            break
    status = await host.status()
    assert (status["code"], status["unit"]) == (CODES["watchdog"], UNITS.index(unit)) and not status["quiescent"]
    await host.write("CONTROL", 1)
    assert not (await host.status())["busy"], "no start while the bus owes an answer"
    silent.pause = False
    await failed_run(host, "watchdog", unit)
    await good_run(host)
