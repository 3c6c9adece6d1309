"""Map memories on the RTL: faults, stopped runs, memory that fails; the run after each is right.

Values and cycles of random graphs are in test_random_layers.py (lookup8x16, lookup4x4, slices4x4).
"""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import instruction_array
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.instructions import decode, encode
from esbflow.registers import MAPS_REGION
from esbflow.runtime.errors import EngineError, EngineFault, EngineTimeout
from esbsim.simulator import MemoryTiming
from tests.end_to_end.conftest import engine_of

ENGINES = ("lookup8x16", "lookup4x4")


def with_maps(name: str):
    """A graph with maps on chip and in memory, its program and images."""
    random = np.random.default_rng(6)
    while True:
        graph = random_graph(random, channels=10, size=8, layers=4, powers=name == "lookup4x4")
        try:
            program = compile_graph(graph, engine_of(name), batch=2, stripes=False)
        except ValueError:
            continue
        found = [fields["region"] == MAPS_REGION for opcode, fields in map(decode, program.words) if opcode in ("LOAD", "DRAIN")]
        if found.count(True) > 3 and found.count(False) > 3:
            return graph, program, random_images(random, graph, 2)


@pytest.mark.parametrize("opcode, unit", [("LOAD", "load"), ("DRAIN", "store")])
@pytest.mark.parametrize("name", ENGINES)
def test_beyond_the_map_memory_is_a_fault_and_the_next_run_is_right(bench, name, opcode, unit):
    graph, program, images = with_maps(name)
    words = list(program.words)
    place = next(k for k, word in enumerate(words)
                 if decode(word)[0] == opcode and decode(word)[1]["region"] == MAPS_REGION)
    fields = decode(words[place])[1]
    del fields["opcode"]
    words[place] = encode(opcode, **fields | {"offset": engine_of(name).map_beats - 1})
    _, engine = bench(name)
    engine.load(replace(program, instructions=instruction_array(words)))
    with pytest.raises(EngineFault) as caught:
        engine.run(images)
    assert (caught.value.code, caught.value.unit) == ("range", unit)
    engine.load(program)
    assert np.array_equal(engine.run(images).outputs, execute(graph, images))


def test_an_engine_without_a_map_memory_has_no_such_region(bench):
    graph, _, images = with_maps("lookup4x4")
    program = compile_graph(graph, engine_of("small8x16"), batch=1)
    words = [encode("LOAD", region=MAPS_REGION, beats=1, segments=1, post_full=1), encode("END")]
    _, engine = bench("small8x16")
    engine.load(replace(program, instructions=instruction_array(words)))
    with pytest.raises(EngineFault) as caught:
        engine.run(images[:1])
    assert (caught.value.code, caught.value.unit) == ("field", "load")


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_that_is_stopped_anywhere_leaves_the_ports_clean(bench, name):
    graph, program, images = with_maps(name)
    simulator, engine = bench(name)
    transport = engine._transport
    transport.wait_for_interrupt = lambda seconds: bool(simulator.run_until_interrupt(37))
    engine.load(program)
    expected, whole = execute(graph, images), engine.run(images).cycles
    stopped = 0
    for number in range(12):
        try:
            engine.run(images, deadline_cycles=1 + whole * number // 12)
        except EngineTimeout:
            stopped += 1
        result = engine.run(images)
        assert np.array_equal(result.outputs, expected) and result.cycles == whole
    assert stopped > 6


@pytest.mark.parametrize("name", ENGINES)
def test_memory_that_fails_or_stalls_beside_maps_on_chip(bench, name):
    graph, program, images = with_maps(name)
    simulator, engine = bench(name)
    engine.load(program)
    expected = execute(graph, images)
    assert np.array_equal(engine.run(images).outputs, expected)
    failed = 0
    for number in range(4):
        place = engine._buffers["output" if number & 1 else "input"].address + 16 * (number >> 1)
        simulator.set_fault(place, place + 16)
        try:
            engine.run(images)
        except EngineError:
            failed += 1
        simulator.clear_faults()
        assert np.array_equal(engine.run(images).outputs, expected)
    assert failed
    for port in simulator.ports:
        simulator.set_timing(port, MemoryTiming(latency=30, jitter=20, stall=0.4, seed=number))
    assert np.array_equal(engine.run(images).outputs, expected)
