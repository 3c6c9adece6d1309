"""Faults of memory, bus and host on the real engine in RTL: each ends in an exception, and the next run is right."""

import numpy as np
import pytest

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.instructions import LOAD
from esbflow.runtime.engine import Engine
from esbflow.runtime.errors import EngineBusy, EngineFault, EngineTimeout
from esbsim.engine import simulate_engine
from esbsim.simulator import MemoryTiming
from esbsim.transport import SimulatedTransport, memory

CONFIG = ENGINES["tiny4x4"]
BASE = 0x8_0000_0000


@pytest.fixture(scope="module")
def network():
    """(program for batches of 2, images, what they give)"""
    random = np.random.default_rng(11)
    graph = random_graph(random, layers=3, channels=8, size=9, kinds=("conv", "residual"))
    images = random_images(random, graph, 3)
    return compile_graph(graph, CONFIG, batch=2), images, execute(graph, images)


@pytest.fixture
def rig(network):
    """(driver with the program loaded, simulator); afterwards the engine must still give the right answer."""
    program, images, expected = network
    simulator = simulate_engine(CONFIG, memory(4), BASE, MemoryTiming(latency=20))
    driver = Engine(SimulatedTransport(simulator), watchdog=5000)
    driver.load(program)
    yield driver, simulator
    simulator.clear_faults()
    simulator.release_stall()
    assert (driver.run(images).outputs == expected).all()


def test_the_counters_of_layers_add_up(rig, network):
    driver, _ = rig
    program, images, _ = network
    result = driver.run(images)
    for run in result.layers:
        assert [layer["name"] for layer in run] == [layer["name"] for layer in program.meta["layers"]]
        assert all(0 < layer["compute"] <= layer["cycles"] for layer in run)
    assert sum(layer["cycles"] for run in result.layers for layer in run) <= result.cycles


@pytest.mark.parametrize("port, unit", [("program", "fetch"), ("weights", "weights"), ("activations", "load")])
@pytest.mark.parametrize("response", ["slverr", "decerr"])
def test_failed_reads_are_reported_with_their_address(rig, network, port, unit, response):
    driver, simulator = rig
    simulator.set_fault(BASE, BASE + (1 << 30), response, port)
    with pytest.raises(EngineFault, match="a read was answered with SLVERR or DECERR at bus address 0x8") as caught:
        driver.run(network[1])
    assert (caught.value.code, caught.value.unit) == ("axi_read", unit)
    assert BASE <= caught.value.address < BASE + simulator.memory.size


def test_failed_writes_are_reported(rig, network):
    driver, simulator = rig
    output = driver._buffers["output"]
    simulator.set_fault(output.address, output.address + output.array.size, "slverr")
    with pytest.raises(EngineFault, match="a write was answered with SLVERR or DECERR") as caught:
        driver.run(network[1])
    assert (caught.value.code, caught.value.unit) == ("axi_write", "store")


@pytest.mark.parametrize("port, unit", [("program", "fetch"), ("weights", "weights"), ("activations", "load")])
@pytest.mark.parametrize("early", [False, True])
def test_rlast_at_the_wrong_beat_is_reported(rig, network, port, unit, early):
    driver, simulator = rig
    simulator.set_wrong_last(port, bursts_from_now=1, early=early)
    with pytest.raises(EngineFault, match="RLAST came at the wrong beat") as caught:
        driver.run(network[1])
    assert (caught.value.code, caught.value.unit) == ("axi_protocol", unit)


@pytest.mark.parametrize("port, channels", [
    ("program", ("ar",)), ("program", ("r",)), ("weights", ("r",)), ("activations", ("r",)), ("activations", ("aw",)),
    ("activations", ("w",)), ("activations", ("b",)), (None, ("ar", "r", "aw", "w", "b"))])
def test_memory_that_stops_answering_ends_in_the_watchdog(rig, network, port, channels):
    driver, simulator = rig
    simulator.set_stall(port, channels, from_cycle=simulator.cycles + 400)
    with pytest.raises(EngineFault, match="nothing moved for as many cycles as the watchdog register allows"):
        driver.run(network[1])
    with pytest.raises(EngineBusy, match="waiting for memory to answer"):
        driver.recover(seconds=0.02)


def test_a_deadline_stops_a_run(rig, network):
    driver, simulator = rig
    simulator.set_timing("weights", MemoryTiming(latency=2000))
    transport = driver._transport
    transport.wait_for_interrupt = lambda seconds: bool(simulator.run_until_interrupt(500))
    with pytest.raises(EngineTimeout, match="with a deadline of 3000, and was stopped in layer"):
        driver.run(network[1], deadline_cycles=3000)
    del transport.wait_for_interrupt


@pytest.mark.parametrize("cut, code", [("last", "end"), ("opcode", "opcode"), ("offset", "range")])
def test_broken_programs_are_reported(rig, network, cut, code):
    driver, _ = rig
    buffer = driver._buffers["program"]
    words = buffer.array.view("<u8").reshape(-1, 4)
    good = words.copy()
    if cut == "last":
        driver._settings["PROGRAM_LENGTH"] = len(words) - 1
    elif cut == "opcode":
        words[0, 0] |= np.uint64(0xF)
    else:
        first = int(np.flatnonzero((words[:, 0] & 15) == LOAD)[0])
        words[first, 0] |= np.uint64(0xFFFFFFF << 19)  # the offset, after opcode, layer and region
    with pytest.raises(EngineFault) as caught:
        driver.run(network[1])
    assert caught.value.code == code
    words[:] = good
    driver._settings["PROGRAM_LENGTH"] = len(words)


