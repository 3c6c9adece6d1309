"""Raw pixels: RTL and NumPy machine = integer graph on every value, cycle model = RTL on every cycle."""

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from tests.compiler.machine import Machine
from tests.end_to_end.conftest import engine_of

ENGINE = "pixels4x4"


def compiled(random, batch):
    """A random graph whose input is raw, and its program."""
    while True:
        graph = random_graph(random, channels=8, size=12)
        try:
            program = compile_graph(graph, engine_of(ENGINE), batch, fold=bool(random.integers(4)))
        except CompileError:
            continue
        if "raw" in program.meta["input"]:
            return graph, program, random_images(random, graph, batch)


@pytest.mark.parametrize("number", range(8))
def test_rtl_equals_graph_and_cycle_model(bench, seed, number):
    graph, program, images = compiled(np.random.default_rng((seed, 5000 + number)), 1 + number % 3)
    simulator, engine = bench(ENGINE)
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
    graph, program, images = compiled(random, 2)
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
