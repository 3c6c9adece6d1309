"""Max pools happen on a convolution's way out, unless what overlapping windows compute twice costs more than a layer."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler import pools
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_images, random_weights
from esbflow.graph.validate import validate, window_counts
from esbflow.numbers import Signed, Unsigned
from tests.compiler.machine import Machine
from tests.compiler.programs import one_conv
from tests.sw.graph_nodes import constants


def pooled(in_shape, channels, taps, kernel, stride, padding=0, form=Unsigned(4)):
    """A convolution of taps x taps and a max pool behind it."""
    random = np.random.default_rng(0)
    graph = one_conv(random_weights(random, (channels, in_shape[0], taps, taps), "s4"), in_shape, form,
                     padding=(taps // 2,) * 2)
    conv = replace(graph.nodes[1], requantizer=constants(channels, s=6))
    size = tuple(window_counts(n, kernel, stride, padding).usual for n in conv.shape[1:])
    pool = ir.MaxPool2d("pool", ("conv",), (channels, *size), form, 1.0, kernel=(kernel,) * 2, stride=(stride,) * 2,
                        padding=(padding,) * 2)
    return validate(ir.Graph("pooled", [graph.nodes[0], conv, pool]))


def always(patch, answer):
    patch.setattr(pools, "_is_cheaper_apart", lambda config, layer, batch: answer and layer.op != "MaxPool2d")


def both_ways(graph, config, monkeypatch):
    """(operators as compiled, cycles as compiled, cycles with the pool on the way out, cycles apart)."""
    program = compile_graph(graph, config)
    cycles = [count_cycles(program).total]
    for answer in (False, True):
        with monkeypatch.context() as patch:
            always(patch, answer)
            cycles.append(count_cycles(compile_graph(graph, config)).total)
    return [layer["op"] for layer in program.meta["layers"]], *cycles


@pytest.mark.parametrize("depth, shape, channels, taps, kernel, stride, padding, ops", [
    (64, (16, 16, 112), 32, 5, 3, 2, 1, ["Conv2d", "MaxPool2d"]),  # tiles of three rows: half is computed twice
    (512, (16, 16, 112), 32, 5, 3, 2, 1, ["Conv2d"]),  # tiles are tall where they are narrow
    (512, (16, 16, 112), 32, 5, 2, 2, 0, ["Conv2d"]),  # nothing overlaps
    (512, (16, 16, 112), 32, 1, 3, 2, 1, ["Conv2d"]),  # computing twice is cheap
    (512, (16, 16, 16), 32, 5, 3, 2, 1, ["Conv2d"]),  # one tile: nothing is computed twice
])
def test_the_cheaper_way_is_taken(monkeypatch, depth, shape, channels, taps, kernel, stride, padding, ops):
    found, cycles, within, apart = both_ways(pooled(shape, channels, taps, kernel, stride, padding),
                                             replace(ENGINES["base16x16"], accumulator_depth=depth), monkeypatch)
    assert found == ops
    assert cycles == (within if ops == ["Conv2d"] else apart) == min(within, apart)


@pytest.mark.parametrize("number", range(12))
def test_the_choice_is_never_much_worse_than_the_other(monkeypatch, number):
    random = np.random.default_rng((3, number))
    shape = (int(random.integers(1, 40)), int(random.integers(6, 20)), int(random.integers(6, 130)))
    graph = pooled(shape, int(random.integers(1, 40)), int(random.choice((1, 3, 5))), 3, int(random.integers(1, 3)),
                   int(random.integers(2)), (Unsigned(4), Signed(8))[number % 2])
    _, cycles, within, apart = both_ways(graph, ENGINES["base16x16"], monkeypatch)
    assert cycles in (within, apart) and cycles <= 1.15 * min(within, apart)


@pytest.mark.parametrize("form", [Unsigned(4), Signed(8)])
def test_either_way_gives_the_graphs_integers(monkeypatch, form):
    graph = pooled((5, 9, 40), 19, 3, 3, 2, 1, form)
    images = random_images(np.random.default_rng(2), graph, 2)
    expected = execute(graph, images)
    for answer in (False, True):
        always(monkeypatch, answer)
        program = compile_graph(graph, ENGINES["base16x16"], 2)
        assert [layer["op"] for layer in program.meta["layers"]] == ["Conv2d", "MaxPool2d"][:1 + answer]
        assert np.array_equal(Machine(program).run(images, order=np.random.default_rng(1)), expected)


def test_a_pool_that_fits_neither_way_is_refused():
    """A window of 9 x 9 needs 81 sums in one tile, and a bank has 64; the pool alone does not fit either."""
    graph = pooled((3, 20, 20), 4, 3, 9, 8)
    with pytest.raises(CompileError, match=r"^layer pool: the smallest tile takes .*"):
        compile_graph(graph, ENGINES["tiny4x4"])


def test_a_pool_whose_window_takes_too_much_of_the_map_is_a_layer_of_its_own(monkeypatch):
    """A beat of 8 windows of 5 x 5 needs 5 x 12 sums; those need 11 rows of 3 beats of a convolution of 7 x 7. Half the
    buffer has 32 beats: enough for 7 rows, or for the 5 that the pool alone needs."""
    graph = pooled((4, 20, 20), 4, 7, 5, 1)
    config = EngineConfig("small", rows=4, cols=4, accumulator_depth=64, activation_beats=32)
    program = compile_graph(graph, config)
    assert [layer["op"] for layer in program.meta["layers"]] == ["Conv2d", "MaxPool2d"]
    with monkeypatch.context() as patch, pytest.raises(CompileError, match=r"^layer conv: the smallest tile takes"):
        always(patch, False)
        compile_graph(graph, config)
    images = random_images(np.random.default_rng(2), graph, 1)
    assert np.array_equal(Machine(program).run(images), execute(graph, images))


@pytest.mark.parametrize("number", range(24))
@pytest.mark.parametrize("apart", [False, True])
def test_pools_of_any_number_of_windows_compute_the_graph(monkeypatch, number, apart):
    """Padding behind the map is what the shape asks for: none, as much as before it, or as much as a window allows."""
    random = np.random.default_rng((1, number))
    size, kernel, stride = random.integers(4, 12, 2), random.integers(1, 5, 2), random.integers(1, 4, 2)
    padding = random.integers(0, kernel)
    counts = [window_counts(*map(int, axis)) for axis in zip(size, kernel, stride, padding)]
    windows = tuple(int(random.integers(fewest, most + 1)) for fewest, _, most in counts)
    graph = one_conv(random_weights(random, (6, 3, 3, 3), "s4"), (3, *map(int, size)), Signed(4), padding=(1, 1))
    conv = replace(graph.nodes[1], requantizer=constants(6, s=5))
    pool = ir.MaxPool2d("pool", ("conv",), (6, *windows), Signed(4), 1.0, kernel=tuple(map(int, kernel)),
                        stride=tuple(map(int, stride)), padding=tuple(map(int, padding)))
    graph = validate(ir.Graph("pooled", [graph.nodes[0], conv, pool]))
    always(monkeypatch, apart)
    images = random_images(random, graph, 2)
    assert np.array_equal(Machine(compile_graph(graph, ENGINES["tiny4x4"], 2)).run(images), execute(graph, images))
