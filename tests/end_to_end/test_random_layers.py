"""RTL = integer graph on every value, and cycle model = RTL on every cycle, on random graphs with fresh seeds.

`ESBFLOW_LAYER_FACTOR=5 pytest tests/end_to_end/test_random_layers.py` runs five times as many graphs.
"""

import os
from fractions import Fraction

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import CHANNEL_KINDS, KINDS, LOOKUP_KINDS, random_graph, random_images
from esbflow.numbers import Unsigned
from esbsim.simulator import MemoryTiming
from tests.compiler.programs import packed, shortcut, way
from tests.end_to_end.conftest import engine_of

FACTOR = int(os.environ.get("ESBFLOW_LAYER_FACTOR", "1"))
GRAPHS = {"tiny4x4": (12, dict(channels=10, size=10)), "small8x16": (14, dict(channels=24, size=14)),
          "base16x16": (12, dict(channels=40, size=20)),
          "small8x16-channel": (16, dict(channels=24, size=14, kinds=CHANNEL_KINDS)),
          "ports8x16": (16, dict(channels=24, size=14, kinds=CHANNEL_KINDS)),
          "shift8x16": (16, dict(channels=24, size=14, kinds=(*KINDS, "residual", "add"), powers=True)),
          "lookup8x16": (16, dict(channels=24, size=14, kinds=LOOKUP_KINDS)),
          "lookup4x4": (12, dict(channels=10, size=8, kinds=LOOKUP_KINDS, powers=True)),
          "slices4x4": (12, dict(channels=10, size=10)),
          "shared8x8": (16, dict(channels=24, size=16, kinds=CHANNEL_KINDS)),
          "narrow8x16": (12, dict(channels=24, size=12)),
          "tall16x8": (8, dict(channels=40, size=12, kinds=(*LOOKUP_KINDS, *CHANNEL_KINDS))),
          "tall16x4-w2": (6, dict(channels=40, size=9, kinds=CHANNEL_KINDS, powers=True))}


BUDGETS = {"narrow8x16": (1,), "shared8x8": (45.5, 8.25, 2.5, 1)}
"""Bytes a cycle so few that stores wait for a place among the orders, and that drains wait for room in the writer."""


def compiled(random, config, **bounds):
    """A random graph that fits the engine, its program, its images."""
    while True:
        graph = random_graph(random, **bounds)
        try:
            most = (5 if config.batch_tiles and config.slices < 4 else 3) * config.slices
            program = compile_graph(graph, config, batch=int(random.integers(1, most + 1)),
                                    fold=bool(random.integers(2)), stripes=way(random, config))
        except CompileError:
            continue
        return graph, program, random_images(random, graph, program.meta["batch"] + 1)


def stamps(layers):
    return np.cumsum([layer["cycles"] for layer in layers]).tolist()


@pytest.mark.parametrize("engine_name, number", [(name, k) for name, (count, _) in GRAPHS.items() for k in range(FACTOR * count)])
def test_rtl_equals_graph_and_cycle_model(bench, seed, engine_name, number):
    random = np.random.default_rng((seed, number))
    graph, program, images = compiled(random, engine_of(engine_name), **GRAPHS[engine_name][1])
    _, engine = bench(engine_name)
    engine.load(program)
    result = engine.run(images)
    described = [f"{type(node).__name__}{node.shape}{node.format}" for node in graph.nodes]
    assert np.array_equal(result.outputs, execute(graph, images)), f"seed {seed}, number {number}: {described}"
    expected = count_cycles(program)
    assert result.cycles == result.runs * expected.total, f"seed {seed}, number {number}: {described}"
    for layers in result.layers:
        assert stamps(layers) == expected.stamps


@pytest.mark.parametrize("number", range(FACTOR * 4))
def test_shortcuts_load_only_the_columns_they_read(bench, seed, number):
    random = np.random.default_rng((seed, 8000 + number))
    stride = int(random.integers(3, 6))
    graph = shortcut(random, (int(random.integers(1, 4)), stride), tuple(random.integers(1, 30, 2)), channels=70)
    program = compile_graph(graph, engine_of("wide32x4"), batch=int(random.integers(1, 5)), packing={})
    images = random_images(random, graph, program.meta["batch"])
    simulator, engine = bench("wide32x4")
    engine.load(program)
    for budget in (None, 8):
        simulator.set_shared_bandwidth(budget)
        result = engine.run(images)
        assert np.array_equal(result.outputs, execute(graph, images)), f"seed {seed}, number {number}"
        expected = count_cycles(program) if budget is None else count_shared_cycles(program, MemoryTiming().latency, budget)
        assert stamps(result.layers[0]) == expected.stamps


@pytest.mark.parametrize("engine_name, number", [(name, k) for name in ("small8x16", "ports8x16", "shared8x8", "tall16x8")
                                                 for k in range(FACTOR * 6)])
def test_several_pixels_in_a_word_change_no_value_and_no_cycle_of_the_model(bench, seed, engine_name, number):
    random = np.random.default_rng((seed, 3000 + number))
    graph, pixels, program = packed(random, engine_of(engine_name))
    images = random_images(random, graph, program.meta["batch"])
    _, engine = bench(engine_name)
    engine.load(program)
    result = engine.run(images)
    assert np.array_equal(result.outputs, execute(graph, images)), f"seed {seed}, number {number}: {pixels}"
    expected = count_cycles(program)
    assert result.cycles == expected.total, f"seed {seed}, number {number}: {pixels}"
    assert stamps(result.layers[0]) == expected.stamps


@pytest.mark.parametrize("engine_name, number", [(name, k) for name, count in (("small8x16", 8), ("slices4x4", 4), ("shared8x8", 6), ("lookup8x16", 4))
                                                 for k in range(count)])
def test_stalls_and_latency_change_no_value(bench, seed, engine_name, number):
    random = np.random.default_rng((seed, 1000 + number))
    graph, program, images = compiled(random, engine_of(engine_name), channels=16, size=10)
    simulator, engine = bench(engine_name)
    for port in simulator.ports:
        simulator.set_timing(port, MemoryTiming(latency=int(random.integers(1, 90)), jitter=20, stall=0.3,
                                                seed=int(random.integers(1 << 20))))
    engine.load(program)
    assert np.array_equal(engine.run(images).outputs, execute(graph, images)), f"seed {seed}, number {number}"


@pytest.mark.parametrize("engine_name, latency", [("small8x16", 1), ("small8x16", 7), ("small8x16", 100), ("shared8x8", 1),
                                                  ("shared8x8", 100), ("lookup8x16", 1), ("lookup4x4", 100)])
def test_cycle_model_holds_at_other_latencies(bench, seed, engine_name, latency):
    random = np.random.default_rng((seed, 2000 + latency))
    graph, program, images = compiled(random, engine_of(engine_name), channels=24, size=12)
    simulator, engine = bench(engine_name)
    for port in simulator.ports:
        simulator.set_timing(port, MemoryTiming(latency=latency))
    engine.load(program)
    result = engine.run(images[:program.meta["batch"]])
    assert result.cycles == count_cycles(program, latency).total
    assert np.array_equal(result.outputs, execute(graph, images[:program.meta["batch"]]))


@pytest.mark.parametrize("engine_name, number", [(name, k) for name, count in (
    ("tiny4x4", 2), ("small8x16", 2), ("ports8x16", 3), ("slices4x4", 4), ("shared8x8", 4), ("narrow8x16", 2), ("tall16x8", 2), ("lookup8x16", 4),
    ("lookup4x4", 4)) for k in range(FACTOR * count)])
def test_cycle_model_holds_where_ports_share_a_budget(bench, seed, engine_name, number):
    check_shared_cycles(bench, seed, engine_name, number)


def test_the_splitter_goes_on_while_slices_wait_for_the_port_that_they_share(bench):
    """A random case: the load unit was held to be busy until the last slice had the burst, 10 cycles of 24,152 too many."""
    check_shared_cycles(bench, 202, "shared8x8", 0)


def check_shared_cycles(bench, seed, engine_name, number):
    random = np.random.default_rng((seed, 4000 + number))
    graph, program, images = compiled(random, engine_of(engine_name), **GRAPHS[engine_name][1])
    simulator, engine = bench(engine_name)
    latency = int(random.choice([1, 7, 40, 100]))
    for port in simulator.ports:
        simulator.set_timing(port, MemoryTiming(latency=latency))
    engine.load(program)
    outputs = execute(graph, images)
    for budget in (*BUDGETS.get(engine_name, (45.5, 20, 8.25)), Fraction(int(random.integers(10, 400)), int(random.integers(3, 12)))):
        where = f"seed {seed}, number {number}: {budget} bytes a cycle, latency {latency}"
        simulator.set_shared_bandwidth(budget)
        result = engine.run(images)
        expected = count_shared_cycles(program, latency, budget)
        assert result.cycles == result.runs * expected.total, where
        for layers in result.layers:
            assert stamps(layers) == expected.stamps, where
        assert np.array_equal(result.outputs, outputs), where


@pytest.mark.parametrize("budget", [4, 3])
def test_a_drain_that_waits_for_room_has_let_go_of_its_place_in_the_queue(bench, budget):
    """The drain takes the next instruction while one waits for memory: by then the fetch may already have gone on."""
    table = np.tile(np.arange(256) % 2, (2, 1))
    graph = ir.Graph("upsampled", [ir.Input("input", (), (2, 13, 16), Unsigned(4), 1.0, table=table),
                                   ir.Upsample("up", ("input",), (2, 39, 32), Unsigned(4), 1.0, factor=(3, 2))])
    program = compile_graph(graph, engine_of("small8x16"), batch=3)
    assert len(program.words) > 128, "more than the queues hold"
    simulator, engine = bench("small8x16")
    for port in simulator.ports:
        simulator.set_timing(port, MemoryTiming(latency=1))
    simulator.set_shared_bandwidth(budget)
    engine.load(program)
    result = engine.run(random_images(np.random.default_rng(0), graph, 3))
    expected = count_shared_cycles(program, 1, budget)
    assert result.cycles == expected.total and stamps(result.layers[0]) == expected.stamps
