"""Slices on stripes of one image: programs that give the graph's integers, in any order that their tokens allow."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler import store_tokens
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.lower import lower
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.stripes import cut, rows_of_slices, spaces
from esbflow.engine_config import EngineConfig
from esbflow.errors import BadValue
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import CHANNEL_KINDS, KINDS, random_graph, random_images
from esbflow.graph.validate import validate
from esbflow.instructions import decode
from esbflow.numbers import Signed, Unsigned
from tests.compiler.machine import Machine
from tests.compiler.programs import one_conv, packed
from tests.sw.graph_nodes import input_node

_SMALL = dict(accumulator_depth=64, activation_beats=128, residual_beats=128, stripes=True)
PLAIN = EngineConfig("plain2", rows=4, cols=4, slices=2, **_SMALL)
FOUR = EngineConfig("four", rows=8, cols=8, slices=4, activation_ports=2, channel_unit=4, **_SMALL)
SIXTEEN = EngineConfig("sixteen", rows=32, cols=32, requantize_lanes=1, slices=16, activation_ports=4, channel_unit=8, **_SMALL)
ENGINES = {config.name: config for config in (PLAIN, FOUR, SIXTEEN)}


def check(graph, program, order=None):
    """The program's stripes, one number a layer, after its outputs were compared with the graph's."""
    images = random_images(np.random.default_rng(1), graph, program.meta["batch"])
    assert np.array_equal(Machine(program).run(images, order), execute(graph, images))
    assert count_cycles(program).total > 0
    return [layer["stripe"] for layer in program.meta["layers"]]


@pytest.mark.parametrize("name, number", [(name, k) for name, count in (("plain2", 4), ("four", 6), ("sixteen", 2)) for k in range(count)])
def test_random_graphs(name, number):
    random, config = np.random.default_rng((5, number)), ENGINES[name]
    kinds = (KINDS, CHANNEL_KINDS)[number % 2 if config.channel_unit else 0]
    while True:
        graph = random_graph(random, channels=2 * config.rows, size=16, kinds=kinds)
        try:
            program = compile_graph(graph, config, int(random.integers(1, 4)), bool(random.integers(2)), stripes=True)
        except CompileError:
            continue
        break
    check(graph, program, random)


@pytest.mark.parametrize("number", range(3))
def test_several_pixels_in_a_word(number):
    random = np.random.default_rng((6, number))
    while True:
        graph, pixels, program = packed(random, FOUR)
        if program.meta["stripes"]:
            break
    assert any(check(graph, program, random)) or all(node.shape[1] < 2 for node in graph.nodes[1:]), pixels


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kernel, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (5, 3), (7, 1), (7, 2)])
def test_heights_that_slices_do_not_divide(name, kernel, stride):
    config, random = ENGINES[name], np.random.default_rng(kernel)
    for height in sorted({2, 3, config.slices + 1, 2 * config.slices - 1}):
        size = (height + 2 * (kernel // 2) - kernel) // stride + 1
        weight = random.integers(-7, 8, (5, 3, kernel, kernel))
        graph = one_conv(weight, (3, height, 5), stride=(stride, stride), padding=(kernel // 2,) * 2, more=(0, 0))
        stripes = check(graph, compile_graph(graph, config, stripes=True))
        assert stripes == [-(-size // config.slices) if size > 1 else 0]


def test_what_cannot_be_cut_is_made_by_all_slices_alike():
    random = np.random.default_rng(2)
    graph = validate(ir.Graph("mixed", [
        input_node((4, 12, 8)),
        ir.MaxPool2d("padded", ("input",), (4, 6, 4), Signed(8), 1.0, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        ir.Upsample("up", ("padded",), (4, 12, 8), Signed(8), 1.0, factor=(2, 2)),
        ir.MaxPool2d("whole", ("up",), (4, 6, 4), Signed(8), 1.0, kernel=(2, 2), stride=(2, 2), padding=(0, 0)),
        ir.Linear("line", ("whole",), (6, 1, 1), Signed(32), 1.0, weight=random.integers(-7, 8, (6, 96)),
                  weight_format=Signed(8), weight_scale=np.ones(6), requantizer=ir.Requantizer.pass_through(6))]))
    # The pool of two digits clamps its windows to the map's ends.
    assert check(graph, compile_graph(graph, FOUR, batch=3, stripes=True, fold=False), np.random.default_rng(3)) == [0, 0, 2, 0]


def test_a_stripe_waits_for_the_rows_of_its_neighbours(monkeypatch):
    random = np.random.default_rng(4)

    def conv(name, source):
        return ir.Conv2d(name, (source,), (8, 40, 10), Unsigned(4), 1.0, weight=random.integers(-7, 8, (8, 8, 3, 3)),
                         weight_format=Signed(8), weight_scale=np.ones(8), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1,
                         requantizer=ir.Requantizer(**{name: np.full(8, value) for name, value in zip("mnsb", (1, 0, 6, 300))}))

    graph = validate(ir.Graph("two", [input_node((8, 40, 10)), conv("first", "input"), conv("second", "first")]))

    def agree():
        program = compile_graph(graph, FOUR, stripes=True, fold=False, packing={})
        images = random_images(np.random.default_rng(1), graph, 1)
        return all(np.array_equal(Machine(program).run(images, np.random.default_rng(k)), execute(graph, images)) for k in range(2))

    assert agree()
    monkeypatch.setattr(store_tokens, "rows_of_slices", lambda config, first, end, apart, height: rows_of_slices(config, first, end, 0, height))
    assert not agree(), "tokens of a slice's own rows would be enough"


def test_rows_of_a_tensor_lie_whole_pages_apart_from_stripe_to_stripe():
    graph = one_conv(np.ones((4, 4, 3, 3)), (4, 14, 9), stride=(1, 1), padding=(1, 1))
    layers = [cut(layer, FOUR.slices) for layer in lower(graph)]
    assert layers[0].conv_shape[1:] == (4, 9) and layers[0].in_shape[1:] == (6, 9) and layers[0].padding == (0, 1)
    found = spaces(FOUR, layers, {"input": 14, "conv": 14}, {"input": 3, "conv": 3})
    # Four stripes of four rows; windows begin a row above and end a row below them.
    assert (found["input"].first, found["input"].rows, found["conv"].first, found["conv"].rows) == (1, 18, 0, 16)
    assert all(space.pitch * 4 % 256 == 0 and space.pitch == 64 for space in found.values())


def test_the_fields_of_stripes():
    graph = one_conv(np.ones((4, 4, 3, 3)), (4, 14, 9), stride=(1, 1), padding=(1, 1))
    found = {}
    for opcode, fields in map(decode, compile_graph(graph, FOUR, stripes=True, fold=False).words):
        found.setdefault(opcode, []).append(fields)
    assert {f["apart"] for f in found["LOAD"]} == {f["apart"] for f in found["DRAIN"]} == {f["apart"] for f in found["STAMP"]} == {1}
    assert {f["stripe"] for f in found["PASS"]} == {4} and {f["in_rows"] for f in found["PASS"]} == {14}
    assert min(f["y"] for f in found["PASS"]) == -1
    whole = [decode(word)[1] for word in compile_graph(graph, FOUR, stripes=False, fold=False).words]
    assert not any(f.get("apart") or f.get("stripe") for f in whole)


def test_the_compiler_takes_what_is_faster():
    def convolutions(height):
        return one_conv(np.ones((8, 8, 3, 3)), (8, height, 16), Unsigned(4), padding=(1, 1))

    for height, batch, striped in ((32, 1, True), (33, 4, False), (1, 1, False)):
        graph = convolutions(height)
        program = compile_graph(graph, FOUR, batch)
        both = [count_cycles(compile_graph(graph, FOUR, batch, stripes=way)).total for way in (False, True)]
        assert program.meta["stripes"] == striped and count_cycles(program).total == min(both)
    assert both[0] * 2 > both[1]  # nothing to cut: as fast


def test_engines_without_stripes_say_so():
    graph = one_conv(np.ones((4, 4, 1, 1)), (4, 4, 4))
    with pytest.raises(CompileError, match="engine four is built without stripes of an image"):
        compile_graph(graph, replace(FOUR, stripes=False), stripes=True)
    with pytest.raises(BadValue, match="stripes of an image are for several slices; use slices of 2 or more"):
        EngineConfig("one", rows=4, cols=4, stripes=True)
    assert replace(FOUR, stripes=False).hash != FOUR.hash
