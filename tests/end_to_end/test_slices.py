"""Engines of several slices on RTL: batches of any size, stripes of one image, and faults that name the slice's memory."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import instruction_array
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.instructions import decode, encode
from esbflow.runtime.errors import EngineFault
from tests.end_to_end.conftest import engine_of

ENGINES = ("slices4x4", "shared8x8")


@pytest.fixture(params=ENGINES)
def rig(bench, request):
    """(configuration, simulator, driver, graph)"""
    random = np.random.default_rng(17)
    graph = random_graph(random, layers=3, channels=8, size=9, kinds=("conv", "residual"))
    return engine_of(request.param), *bench(request.param), graph


def test_a_batch_of_any_size_gives_the_graph_and_takes_as_long_as_its_rounds(rig):
    config, _, engine, graph = rig
    cycles = {}
    for batch in range(1, 2 * config.slices + 1):
        program = compile_graph(graph, config, batch, stripes=False)
        images = random_images(np.random.default_rng(batch), graph, batch)
        engine.load(program)
        result = engine.run(images)
        assert np.array_equal(result.outputs, execute(graph, images))
        assert result.cycles == count_cycles(program).total
        cycles.setdefault(config.rounds(batch), set()).add(result.cycles)
    assert [len(seen) for seen in cycles.values()] == [1, 1], cycles
    assert max(cycles[2]) < 2 * max(cycles[1])


def test_stripes_and_whole_images_take_turns_on_one_engine(rig):
    config, simulator, engine, graph = rig
    images = random_images(np.random.default_rng(2), graph, 3)
    for batch, stripes in ((1, True), (config.slices, False), (2, True)):
        program = compile_graph(graph, config, batch, stripes=stripes)
        assert any(layer["stripe"] for layer in program.meta["layers"]) == stripes
        engine.load(program)
        result = engine.run(images)
        assert np.array_equal(result.outputs, execute(graph, images))
        assert result.cycles == result.runs * count_cycles(program).total
    # Each slice has a log of its own, a page behind the other; only the first one's counts.
    for number in range(config.slices):
        low = engine._buffers["log"].address + 4096 * number
        simulator.set_fault(low, low + 64)
        with pytest.raises(EngineFault) as caught:
            engine.run(images)
        assert (caught.value.code, caught.value.unit) == ("axi_write", "store") and low <= caught.value.address < low + 64
        simulator.clear_faults()
    assert np.array_equal(engine.run(images).outputs, execute(graph, images))


def test_a_fault_in_any_slice_is_named_and_the_next_run_is_right(rig):
    config, simulator, engine, graph = rig
    program, images = compile_graph(graph, config, config.slices, stripes=False), random_images(np.random.default_rng(1), graph, config.slices)
    engine.load(program)
    stride, base = engine._settings["SLICE_BYTES"], simulator.base
    for region, code, unit in (("input", "axi_read", "load"), ("output", "axi_write", "store"), ("log", "axi_write", "store")):
        for number in range(config.slices):
            low = engine._buffers[region].address + number * stride
            simulator.set_fault(low, low + 64)
            with pytest.raises(EngineFault) as caught:
                engine.run(images)
            assert (caught.value.code, caught.value.unit) == (code, unit)
            assert low <= caught.value.address < low + 64 and caught.value.address >= base
            simulator.clear_faults()
            assert np.array_equal(engine.run(images).outputs, execute(graph, images))


def test_a_port_that_stops_ends_in_the_watchdog(rig):
    config, simulator, engine, graph = rig
    engine._watchdog = 3000
    program, images = compile_graph(graph, config, config.slices, stripes=False), random_images(np.random.default_rng(1), graph, config.slices)
    engine.load(program)
    for port in ("activations", f"activations{config.activation_ports - 1}"):
        for channel, unit in (("r", "load"), ("w", "store"), ("b", "store")):
            simulator.set_stall(port, (channel,), from_cycle=simulator.cycles + 200)  # while the first map is on its way
            with pytest.raises(EngineFault, match="nothing moved") as caught:
                engine.run(images)
            assert caught.value.unit == unit
            simulator.release_stall()
            assert np.array_equal(engine.run(images).outputs, execute(graph, images))


def test_an_accumulator_that_overflows_stops_the_run_on_both_arrays(rig):
    """No compiled program adds the same dots up until they overflow; the next run is right."""
    config, _, engine, graph = rig
    program = compile_graph(graph, config, config.slices, stripes=False)
    images = random_images(np.random.default_rng(1), graph, config.slices)
    words = list(program.words)
    within = [(fields["rows"] * fields["cols"], -place) for place, (opcode, fields) in enumerate(map(decode, words))
              if opcode == "PASS" and fields["y"] >= 0 and fields["x"] >= 0]
    place = -max(within)[1]  # the largest that does not begin outside the map
    first = {name: value for name, value in decode(words[place])[1].items() if name != "opcode"}
    posts = {name: 0 for name in first if name.startswith("post_")}
    again = {**first, **{name: 0 for name in first if name.startswith("wait_")}, "first": 0, "load_book": 0, "keep": 1,
             "shift": config.largest_shift}
    repeated = [encode("PASS", **first | posts), *[encode("PASS", **again | posts)] * 1000, encode("PASS", **again)]
    engine.load(replace(program, instructions=instruction_array([*words[:place], *repeated, *words[place + 1:]])))
    with pytest.raises(EngineFault, match="overflow") as caught:
        engine.run(images, deadline_cycles=5_000_000)
    assert (caught.value.code, caught.value.unit) == ("overflow", "compute")
    engine.load(program)
    assert np.array_equal(engine.run(images).outputs, execute(graph, images))
