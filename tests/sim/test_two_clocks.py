"""A whole engine whose arrays have another clock than its buses: the same values at every ratio, and a way out of every state."""

from fractions import Fraction

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.errors import BadValue
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.registers import REGISTERS
from esbflow.runtime.engine import Engine
from esbflow.runtime.errors import EngineFault, EngineReplaced
from esbsim.engine import engine_library
from esbsim.simulator import MemoryTiming, Simulator
from esbsim.transport import SimulatedTransport, memory
from tests.end_to_end.conftest import SLICES

CONFIG = ENGINES["tiny4x4"]
CLOCKS = [(1, 1, 0), (2, 2, 1), (3, 2, 0), (2, 3, 1), (7, 5, 0), (5, 7, 3), (1000, 1001, 0), (1001, 1000, 17), (97, 10, 5), (10, 97, 50)]
CROSSINGS = 9
"""Cycles that a burst's way there and back takes with equal clocks that are not in phase; one more if they are."""


@pytest.fixture(scope="module")
def library():
    return engine_library(CONFIG, two_clocks=True)


@pytest.fixture(scope="module", params=range(2))
def network(request):
    """(program for batches of 2, images, what they give)"""
    random = np.random.default_rng(request.param)
    graph = random_graph(random, layers=3, channels=10, size=9, kinds=("conv", "residual", "max"))
    images = random_images(random, graph, 3)
    return compile_graph(graph, CONFIG, batch=2), images, execute(graph, images)


def started(library, clocks=(1, 1, 0), **options):
    """(simulator, engine) with these clocks."""
    simulator = Simulator(library, memory(4), **options)
    simulator.set_clocks(*clocks)
    simulator.reset(1)
    return simulator, Engine(SimulatedTransport(simulator))


@pytest.mark.parametrize("clocks", CLOCKS, ids=str)
def test_every_value_at_every_ratio(library, network, clocks):
    program, images, expected = network
    _, engine = started(library, clocks)
    engine.load(program)
    assert np.array_equal(engine.run(images).outputs, expected)


@pytest.mark.parametrize("seed", range(6))
def test_every_value_on_memory_that_pauses(library, network, seed):
    program, images, expected = network
    random = np.random.default_rng(seed)
    clocks = [int(number) for number in (*random.integers(1, 200, 2), random.integers(0, 200))]
    timing = MemoryTiming(latency=int(random.integers(1, 60)), jitter=9, stall=0.3, outstanding=int(random.integers(0, 4)),
                          beats_per_cycle=Fraction(2, 3), seed=seed)
    simulator, engine = started(library, clocks, timing=timing)
    engine.load(program)
    assert np.array_equal(engine.run(images).outputs, expected), clocks
    simulator.set_shared_bandwidth(9)
    assert np.array_equal(engine.run(images).outputs, expected), clocks


@pytest.mark.parametrize("stripes", [False, True])
@pytest.mark.parametrize("clocks", [(3, 2, 0), (2, 3, 1)], ids=str)
def test_every_value_of_slices_with_ports_of_their_own(clocks, stripes):
    random = np.random.default_rng(4)
    graph = random_graph(random, layers=3, channels=8, size=9, kinds=("conv", "residual", "max"))
    images = random_images(random, graph, 3)
    _, engine = started(engine_library(SLICES, two_clocks=True), clocks)
    engine.load(compile_graph(graph, SLICES, 2, stripes=stripes))
    assert np.array_equal(engine.run(images).outputs, execute(graph, images))


@pytest.mark.parametrize("latency", [10, 40, 150])
@pytest.mark.parametrize("clocks, more", [((1, 1, 0), 1), ((2, 2, 1), 0), ((6, 6, 5), 0)], ids=str)
def test_with_equal_clocks_every_cycle_is_the_model_s(library, network, latency, clocks, more):
    program, images, _ = network
    _, engine = started(library, clocks, timing=MemoryTiming(latency=latency))
    engine.load(program)
    result, model = engine.run(images[:2]), count_cycles(program, latency + CROSSINGS + more)
    assert result.cycles == model.total
    assert [layer["cycles"] for layer in result.layers[0]] == list(model.per_layer)


@pytest.mark.parametrize("clocks", [(3, 2, 0), (2, 3, 1), (97, 10, 0), (10, 97, 3)], ids=str)
def test_after_an_abort_or_a_reset_at_any_time_the_next_run_is_right(library, network, clocks):
    program, images, expected = network
    simulator, engine = started(library, clocks)
    engine.load(program)
    begin = simulator.cycles
    engine.run(images[:2])
    whole, random = simulator.cycles - begin, np.random.default_rng(5)

    def at(cycles, act):
        """Act once in the next run, after so many cycles of the bus."""
        def wait(seconds):
            engine.transport.wait_for_interrupt = original
            simulator.run(cycles)
            act()
            return False
        original = engine.transport.wait_for_interrupt
        engine.transport.wait_for_interrupt = wait

    for cycles in random.integers(1, max(2, whole - 200), 8).tolist():
        at(cycles, lambda: simulator.write(REGISTERS["CONTROL"].offset, 2))
        try:
            engine.run(images[:2])  # over before it could be aborted
        except EngineFault as fault:
            assert fault.code == "aborted"
        assert np.array_equal(engine.run(images).outputs, expected), cycles
        at(cycles, lambda: simulator.reset(1))
        with pytest.raises(EngineReplaced, match="was reset during the run"):
            engine.run(images[:2])
        assert np.array_equal(engine.run(images).outputs, expected), cycles


def test_resets_that_come_close_together(library, network):
    program, images, expected = network
    for clocks in ((97, 10, 0), (10, 97, 3), (3, 2, 1)):
        simulator, engine = started(library, clocks)
        engine.load(program)
        for pause in [*range(12), 30, 60]:
            simulator.reset(1)
            simulator.run(pause)
            simulator.reset(1)
            assert engine.status()["quiescent"] and np.array_equal(engine.run(images[:2]).outputs, expected[:2]), (clocks, pause)


@pytest.mark.parametrize("clocks", [(3, 2, 0), (2, 3, 1)], ids=str)
def test_faults_of_the_bus_are_the_run_s(library, network, clocks):
    program, images, expected = network
    simulator, engine = started(library, clocks)
    engine.load(program)
    simulator.set_fault(0, 4 << 20, "decerr", "weights")
    with pytest.raises(EngineFault) as raised:
        engine.run(images)
    assert (raised.value.code, raised.value.unit) == ("axi_read", "weights")
    simulator.clear_faults()
    assert np.array_equal(engine.run(images).outputs, expected)


@pytest.mark.parametrize("clocks", CLOCKS, ids=str)
def test_the_interrupt_is_low_once_its_clearing_was_answered(library, network, clocks):
    program, images, _ = network
    simulator, engine = started(library, clocks)
    engine.load(program)
    engine.run(images[:2])
    for _ in range(3):
        engine._start()
        assert simulator.run_until_interrupt(1_000_000)
        simulator.write(REGISTERS["IRQ_STATUS"].offset, 3)
        assert not simulator.interrupt


def test_clocks_that_cannot_be_are_refused(library):
    simulator, _ = started(library)
    for clocks in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(BadValue, match="periods must be at least 1"):
            simulator.set_clocks(*clocks)
    with pytest.raises(BadValue, match="has one clock; build its library with two_clocks=True"):
        Simulator(engine_library(CONFIG), memory(1)).set_clocks(1, 1)
    with pytest.raises(BadValue, match="writes no waves"):
        engine_library(CONFIG, trace=True, two_clocks=True)
