"""Tiles of whole maps of several images: which layers have them, what they give, and what they save.

Random graphs on RTL are in test_random_layers.py (lookup8x16, shared8x8, tall16x8, tall16x4-w2).
"""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.graph.execute import execute
from esbflow.graph.random import CHANNEL_KINDS, random_graph, random_images, random_weights
from esbflow.instructions import decode
from esbflow.numbers import Unsigned
from tests.compiler.machine import Machine
from tests.compiler.programs import one_conv

PLAIN = EngineConfig("batch8x8", rows=8, cols=8, accumulator_depth=256, activation_beats=256, residual_beats=256, weight_slots=4,
                     array="table", table_groups=2, weight_min=-8, weight_max=7, channel_unit=4, map_beats=128)
CONFIG = replace(PLAIN, batch_tiles=True)


def conv(size, channels=16, kernel=3, **fields):
    weight = random_weights(np.random.default_rng(size), (channels, channels, kernel, kernel), "s4")
    return one_conv(weight, (channels, size, size), Unsigned(4), **fields)


def weight_beats(program):
    return sum(fields["beats"] for opcode, fields in map(decode, program.words)
               if opcode == "WEIGHTS" and fields["destination"] == 0)


def images_of(program):
    """Images of a pass, in the program's order."""
    return [fields["images"] for opcode, fields in map(decode, program.words) if opcode in ("PASS", "CHANNEL")]


def test_weights_are_loaded_once_for_the_images_of_a_tile():
    graph = conv(5, padding=(1, 1))  # more tiles than slots
    own = weight_beats(compile_graph(graph, CONFIG, fold=False))
    assert own > 8 * PLAIN.weight_slots * PLAIN.tile_beats
    for batch in (2, 4, 5, 9):
        program, plain = (compile_graph(graph, config, batch, fold=False) for config in (CONFIG, PLAIN))
        tiles = -(-batch // program.meta["layers"][0]["images"])
        assert tiles <= 2 and weight_beats(program) == tiles * own and weight_beats(plain) == batch * own
        assert count_cycles(program).total < count_cycles(plain).total
        images = random_images(np.random.default_rng(batch), graph, batch)
        assert np.array_equal(Machine(program).run(images, np.random.default_rng(1)), execute(graph, images))
        counts = images_of(program)
        assert counts[0] == max(counts) and sum(counts) * tiles == batch * len(counts)  # the last tile may have fewer


@pytest.mark.parametrize("size, kernel, fields, shared", [
    (4, 3, {"padding": (1, 1)}, True), (8, 3, {"padding": (1, 1), "stride": (2, 2)}, True), (8, 1, {"stride": (2, 2)}, True),
    (7, 3, {"padding": (1, 1), "stride": (2, 2)}, False), (5, 3, {}, False),
])
def test_the_next_image_must_begin_where_another_row_would(size, kernel, fields, shared):
    graph = conv(size, kernel=kernel, channels=24, **fields)
    program = compile_graph(graph, CONFIG, 4, fold=False)
    assert (program.meta["layers"][0]["images"] > 1) == shared
    images = random_images(np.random.default_rng(size), graph, 4)
    assert np.array_equal(Machine(program).run(images, np.random.default_rng(2)), execute(graph, images))


@pytest.mark.parametrize("number", range(6))
def test_small_maps_in_any_order_that_the_tokens_allow(number):
    random = np.random.default_rng((8, number))
    config, shared = replace(CONFIG, slices=2) if number & 1 else CONFIG, 0
    while not shared:
        graph = random_graph(random, channels=24, size=6, layers=4, kinds=CHANNEL_KINDS)
        try:
            program = compile_graph(graph, config, int(random.integers(2, 6)) * config.slices, bool(random.integers(2)))
        except CompileError:
            continue
        shared = sum(layer["images"] > 1 for layer in program.meta["layers"])
        images = random_images(random, graph, program.meta["batch"])
        assert np.array_equal(Machine(program).run(images, random), execute(graph, images))


def test_the_option_makes_no_program_slower():
    random, faster = np.random.default_rng(21), 0
    for _ in range(12):
        graph = random_graph(random, channels=16, size=5, layers=4, kinds=CHANNEL_KINDS)
        with_tiles, without = (count_cycles(compile_graph(graph, config, 4, packing={})).total for config in (CONFIG, PLAIN))
        assert with_tiles <= without
        faster += with_tiles < without
    assert faster


def test_a_lone_image_is_as_without_the_option():
    graph = conv(5, padding=(1, 1))
    both = [compile_graph(graph, config, fold=False) for config in (CONFIG, PLAIN)]
    assert count_cycles(both[0]) == count_cycles(both[1]) and set(images_of(both[0])) == {1} and set(images_of(both[1])) == {0}
