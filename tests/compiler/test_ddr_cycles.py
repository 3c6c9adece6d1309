"""The cycle model of memory whose ports share a budget; tests/end_to_end holds it against the RTL."""

from fractions import Fraction

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.ddr_cycles import SharedCycleModel, count_shared_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.shared_memory import SharedMemory, channels
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.errors import BadValue
from esbflow.graph.random import random_graph
from esbflow.instructions import encode

CONFIG = ENGINES["tiny4x4"]
PORTS = EngineConfig("ports8x16", rows=8, cols=16, slices=4, activation_ports=2, weight_path_beats=2, weight_ports=2,
                     accumulator_depth=64, activation_beats=128, residual_beats=128, max_burst=8)


@pytest.fixture(params=[CONFIG, PORTS], ids=lambda config: config.name)
def program(request):
    graph = random_graph(np.random.default_rng(4), layers=4, channels=8, size=9)
    return compile_graph(graph, request.param, batch=request.param.slices)


@pytest.mark.parametrize("latency", [1, 40])
def test_a_budget_for_a_beat_of_every_channel_is_ideal_memory(program, latency):
    ideal = count_cycles(program, latency)
    shared = count_shared_cycles(program, latency, 16 * len(channels(program.config)))
    assert (shared.total, shared.stamps, shared.layers) == (ideal.total, ideal.stamps, ideal.layers)


@pytest.mark.parametrize("budget", [2, Fraction(1, 3)])
def test_where_memory_bounds_a_run_its_bytes_over_the_budget_are_the_cycles(program, budget):
    model = SharedCycleModel(program.config, program.words, 40, budget)
    moved = 0

    def add(channel, due, beats, *calls, plain=model._memory.add, **options):
        nonlocal moved
        moved += 16 * beats
        plain(channel, due, beats, *calls, **options)

    model._memory.add = add
    total = model.run().total
    assert moved / budget - 50 <= total <= 1.3 * moved / budget


def random_channels(random, budget):
    """Bursts of four channels: (due, beats) of each, and the cycles in which their beats moved."""
    memory, moved = SharedMemory(4, budget), [[] for _ in range(4)]
    bursts = [sorted((int(random.integers(0, 120)), int(random.integers(1, 17))) for _ in range(5)) for _ in range(4)]
    for channel, own in enumerate(bursts):
        for due, beats in own:
            memory.add(channel, due, beats, lambda cycle: None, moved[channel].append)
    memory.run(4000, [])
    assert memory.quiet
    return bursts, moved


@pytest.mark.parametrize("seed", range(20))
def test_memory_moves_what_the_documented_rule_says(seed):
    """Cycle by cycle, in the words of docs/simulation.md."""
    random = np.random.default_rng(seed)
    budget = Fraction(int(random.integers(4, 300)), int(random.integers(2, 9)))
    bursts, moved = random_channels(random, budget)
    waiting = [[due for due, beats in own for _ in range(beats)] for own in bursts]
    part = Fraction(1, budget.denominator)
    credit, turn, cycle, expected = 16 + budget - part, 0, 0, [[] for _ in range(4)]
    while any(waiting):
        credit = min(credit + budget, 16 - part + budget)
        asking = [k % 4 for k in range(turn, turn + 4) if waiting[k % 4] and waiting[k % 4][0] <= cycle]
        if not asking:
            turn = 0
        for channel in asking:
            if credit < 16:
                break
            credit, turn = credit - 16, (channel + 1) % 4
            waiting[channel].pop(0)
            expected[channel].append(cycle)
        cycle += 1
    assert moved == expected


def test_a_wait_without_a_post_and_a_program_without_end_are_refused():
    stuck = [encode("DRAIN", kernel_y=1, kernel_x=1, digits=1, planes=1, segments=1, segment_beats=1), encode("END")]
    for words, sentence in ((stuck, "^the program waits for accumulators_full and nothing before it posts that$"),
                            ([], "^the program has no END instruction$"),
                            ([encode("LOAD", beats=1, segments=1)], "^the program has no END instruction$")):
        with pytest.raises(BadValue, match=sentence):
            SharedCycleModel(CONFIG, words).run()


@pytest.mark.parametrize("budget", [0, -3, 0.0001])
def test_memory_that_moves_nothing_is_refused(budget):
    with pytest.raises(BadValue, match=f"^memory must move at least 1/1000 bytes a cycle, not {budget}$"):
        SharedMemory(2, budget)
