"""Passes over several images on the RTL: the weights that a run loads, and faults. Values and cycles: test_random_layers.py."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import instruction_array
from esbflow.graph.execute import execute
from esbflow.graph.random import random_images, random_weights
from esbflow.instructions import decode, encode
from esbflow.numbers import Unsigned
from esbflow.runtime.errors import EngineFault
from tests.compiler.programs import one_conv
from tests.end_to_end.conftest import engine_of

ENGINES = ("lookup8x16", "shared8x8")


@pytest.fixture(params=ENGINES)
def rig(bench, request):
    """(configuration, driver, graph): a small map, and more weight tiles than slots."""
    graph = one_conv(random_weights(np.random.default_rng(1), (32, 24, 3, 3), "s4"), (24, 5, 5), Unsigned(4), padding=(1, 1))
    return engine_of(request.param), bench(request.param)[1], graph


def test_a_batch_loads_the_weights_of_one_image(rig):
    config, engine, graph = rig
    beats = {}
    for count in (1, 2, 3):
        program, images = compile_graph(graph, config, count * config.slices), random_images(
            np.random.default_rng(count), graph, count * config.slices)
        engine.load(program)
        result = engine.run(images)
        assert np.array_equal(result.outputs, execute(graph, images)) and result.cycles == count_cycles(program).total
        assert program.meta["layers"][0]["passes"] > config.weight_slots and not program.meta["stripes"]
        beats[count] = result.layers[0][0]["weight_beats"]
    assert beats[1] == beats[2] == beats[3] > 0, beats


@pytest.mark.parametrize("images", [0, 127])
def test_a_pass_over_no_images_or_too_many_is_a_fault_and_the_next_run_is_right(rig, images):
    config, engine, graph = rig
    program, given = compile_graph(graph, config, 2 * config.slices), random_images(np.random.default_rng(3), graph, 2 * config.slices)
    words = list(program.words)
    place = next(k for k, word in enumerate(words) if decode(word)[0] == "PASS")
    fields = decode(words[place])[1]
    del fields["opcode"]
    words[place] = encode("PASS", **fields | {"images": images})
    engine.load(replace(program, instructions=instruction_array(words)))
    with pytest.raises(EngineFault) as caught:
        engine.run(given)
    assert (caught.value.code, caught.value.unit) == ("field", "compute")
    engine.load(program)
    assert np.array_equal(engine.run(given).outputs, execute(graph, given))
