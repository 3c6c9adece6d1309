"""Maps that stay on chip: which, where, and what that changes."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.bipolar import store_bipolar
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.layout import tensor_layout
from esbflow.compiler.lower import lower
from esbflow.compiler.on_chip import stay_on_chip
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.graph.random import random_graph, random_images
from esbflow.instructions import decode
from esbflow.registers import MAPS_REGION
from tests.compiler.machine import Machine

PLAIN = ENGINES["small8x16"]
MAPS = replace(PLAIN, map_beats=2048)


def beats(program, on_chip: bool) -> int:
    """Beats of maps that a run moves in memory, or on chip."""
    total = 0
    for opcode, fields in map(decode, program.words):
        if opcode in ("LOAD", "DRAIN") and (fields["region"] == MAPS_REGION) == on_chip:
            runs = fields["beats"] * fields["segments"] if opcode == "LOAD" else (
                fields["segments"] * fields["segment_beats"] * fields["planes"] * (fields["digits"] or 16))
            total += runs
    return total


@pytest.mark.parametrize("map_beats", [64, 256, 2048])
def test_no_two_maps_share_a_place_while_both_are_needed(map_beats):
    random = np.random.default_rng(20)
    config, placed = replace(PLAIN, map_beats=map_beats), 0
    for _ in range(40):
        graph = random_graph(random, channels=24, size=14, layers=6)
        layers = lower(store_bipolar(graph))
        layouts = {layer.target: tensor_layout(config, "output" if layer.target in graph.ends else "workspace", layer.out_shape,
                                               layer.out_format, 1) for layer in layers}
        offsets = stay_on_chip(config, layers, layouts)
        busy = np.full((len(layers), map_beats), "", dtype=object)
        for number, layer in enumerate(layers):
            if layer.target not in offsets:
                continue
            assert layouts[layer.target].region == "workspace"
            last = max(k for k, reader in enumerate(layers) if layer.target in (*reader.sources, reader.residual))
            place = busy[number:last + 1, offsets[layer.target]:offsets[layer.target] + layouts[layer.target].beats]
            assert place.shape[1] == layouts[layer.target].beats, "beyond the end"
            assert not place.any()
            place[:] = layer.target
            placed += 1
    assert placed


def test_maps_on_chip_are_not_moved_in_memory_and_change_no_value():
    random = np.random.default_rng(4)
    saved = 0
    for _ in range(6):
        graph = random_graph(random, channels=24, size=12, layers=4)
        plain, maps = compile_graph(graph, PLAIN, packing={}), compile_graph(graph, MAPS, packing={})
        images = random_images(random, graph, 1)
        assert np.array_equal(Machine(maps).run(images, order=random), execute(graph, images))
        assert beats(plain, False) == beats(maps, False) + beats(maps, True) and not beats(plain, True)
        assert maps.meta["regions"]["workspace"] <= plain.meta["regions"]["workspace"]
        saved += beats(maps, True)
        # Fewer beats in memory take fewer cycles where memory is slow; where it is not, they come earlier.
        assert count_shared_cycles(maps, 40, 4).total <= count_shared_cycles(plain, 40, 4).total
        assert count_cycles(maps).total <= count_cycles(plain).total
    assert saved


def test_all_maps_fit_and_memory_has_input_output_and_log_only():
    random = np.random.default_rng(5)
    graph = random_graph(random, channels=8, size=6, layers=5)
    program = compile_graph(graph, replace(MAPS, map_beats=16384))
    assert program.meta["regions"]["workspace"] == 0


def test_a_map_memory_of_impossible_size_is_refused():
    with pytest.raises(ValueError, match=r"^map_beats must be a power of two in 16..16384, not 100$"):
        EngineConfig("x", rows=8, cols=8, map_beats=100)
