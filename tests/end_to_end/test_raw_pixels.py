"""Raw pixels: RTL and NumPy machine = integer graph on every value, cycle model = RTL on every cycle."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import instruction_array
from esbflow.engine_facts import IMAGE_DESTINATION, IMAGE_TABLE_DESTINATION
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.instructions import decode, encode
from esbflow.runtime.engine import Engine
from esbflow.runtime.errors import EngineFault
from esbsim.transport import SimulatedTransport
from tests.compiler.machine import Machine
from tests.end_to_end.conftest import engine_of

ENGINE = "pixels4x4"
BOTH = (ENGINE, "pixels32x4")


def compiled(random, batch, engine=ENGINE):
    """A random graph whose input is raw, and its program."""
    while True:
        graph = random_graph(random, channels=8, size=12)
        try:
            program = compile_graph(graph, engine_of(engine), batch, fold=bool(random.integers(4)))
        except CompileError:
            continue
        if "raw" in program.meta["input"]:
            return graph, program, random_images(random, graph, batch)


@pytest.mark.parametrize("number", range(8))
def test_rtl_equals_graph_and_cycle_model(bench, seed, number):
    name = BOTH[number % 2]
    graph, program, images = compiled(np.random.default_rng((seed, 5000 + number)), 1 + number % 3, name)
    simulator, engine = bench(name)
    engine.load(program)
    for budget in (None, 45.5, 8.25):
        simulator.set_shared_bandwidth(budget)
        result = engine.run(images)
        assert np.array_equal(result.outputs, execute(graph, images)), f"seed {seed}, number {number}"
        expected = count_shared_cycles(program, 40, budget) if budget else count_cycles(program)
        assert result.cycles == expected.total, f"seed {seed}, number {number}, {budget} bytes a cycle"


@pytest.mark.parametrize("number", range(20))
def test_machine_equals_graph_in_any_order(seed, number):
    random = np.random.default_rng((seed, 6000 + number))
    graph, program, images = compiled(random, 2, BOTH[number % 2])
    assert np.array_equal(Machine(program).run(images, random), execute(graph, images)), f"seed {seed}, number {number}"


def test_pixels_with_their_channels_side_by_side(seed):
    random = np.random.default_rng((seed, 7000))
    while True:
        graph, _, images = compiled(random, 1)
        program = compile_graph(graph, engine_of(ENGINE), channels_last=True)
        found = Machine(program).run(np.moveaxis(images, 1, 3).copy(), random)
        assert np.array_equal(found, execute(graph, images)), f"seed {seed}"
        if "raw" in program.meta["input"]:
            break
        assert "side by side" in program.meta["input"]["host"] or "steps" in program.meta["input"]["host"]


def broken(words, name, **fields):
    """Set fields of the first LOAD to a destination, or of the last UNFOLD."""
    want = fields.pop("destination", None)
    found = [place for place, (opcode, has) in enumerate(map(decode, words))
             if opcode == name and want in (None, has.get("destination"))]
    place = found[0 if name == "LOAD" else -1]
    fields = {**decode(words[place])[1], **fields}
    words[place] = encode(name, **{key: value for key, value in fields.items() if key != "opcode"})


@pytest.mark.parametrize("opcode, fields", [
    ("LOAD", dict(destination=IMAGE_TABLE_DESTINATION, address=1)), ("LOAD", dict(destination=IMAGE_DESTINATION, address=64)),
    ("UNFOLD", dict(rows=1, groups=1, steps=1)), ("UNFOLD", dict(groups=0)), ("UNFOLD", dict(digits=3))],
    ids=["table", "lines", "incomplete", "none", "digits"])
def test_broken_loads_and_unfolds_are_faults_at_once_and_the_next_run_is_right(bench, opcode, fields):
    graph, program, images = compiled(np.random.default_rng(5), 2)
    words = list(program.words)
    broken(words, opcode, **fields)
    engine = Engine(SimulatedTransport(bench(ENGINE)[0]))
    engine.load(replace(program, instructions=instruction_array(words)))
    with pytest.raises(EngineFault, match="an instruction's field is outside the engine's limits") as caught:
        engine.run(images, deadline_cycles=200_000)  # the watchdog does not bark while anything unfolds
    assert (caught.value.code, caught.value.unit) == ("field", "load")
    engine.load(program)
    assert np.array_equal(engine.run(images).outputs, execute(graph, images))
