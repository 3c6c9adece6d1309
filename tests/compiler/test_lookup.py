"""Function tables behind the requantizer: what shares a layer with them, when they are loaded, and who refuses them."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import LEVEL_ENTRIES, LEVEL_ROWS, TABLE_DESTINATION
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import LOOKUP_KINDS, random_graph, random_images
from esbflow.graph.validate import validate
from esbflow.instructions import decode
from esbflow.numbers import ESB, Signed, Unsigned
from tests.compiler.machine import Machine
from tests.sw.graph_nodes import constants, conv_node, input_node

PLAIN = replace(ENGINES["small8x16"], weight_path_beats=4)
ENGINES_WITH_TABLES = {
    "one port": replace(PLAIN, function_table=True),
    "two ports, channel unit": replace(PLAIN, weight_ports=2, channel_unit=8, function_table=True),
    "four ports, shifts, no ESB": replace(PLAIN, weight_ports=4, requantizer="shift", esb_output=False, function_table=True),
    "narrow digits": EngineConfig("n", rows=8, cols=16, weight_min=-2, weight_max=1, digit_bits=2, accumulator_depth=64,
                                  activation_beats=64, residual_beats=64, weight_slots=4, function_table=True),
}
CONFIG = ENGINES_WITH_TABLES["one port"]
RISING = np.roll(np.arange(256) // 16, 128)  # of a signed level -128..127: 0..15
FALLING = 15 - RISING
STEEP = np.roll(np.clip(np.arange(256) - 120, 0, 15), 128)  # of a level -8..7


def loads_of(program) -> list:
    """(place among the instructions, offset) of every function table that is loaded."""
    return [(place, fields["offset"]) for place, (opcode, fields) in enumerate(map(decode, program.words))
            if opcode == "WEIGHTS" and fields["destination"] == TABLE_DESTINATION]


def checked(graph, config=CONFIG, batch=1, random=None):
    """The program of a graph, whose values are those of the graph in any order that its tokens allow."""
    random = random or np.random.default_rng(1)
    program = compile_graph(validate(graph), config, batch)
    images = random_images(random, graph, batch)
    expected = execute(graph, images)
    assert np.array_equal(Machine(program).run(images), expected)
    for _ in range(3):
        assert np.array_equal(Machine(program).run(images, order=random), expected)
    return program


def lookup(name, source, table, form=Unsigned(4)):
    return ir.Lookup(name, (source.name,), source.shape, form, 1.0, table=np.asarray(table, np.int64))


def conv_and(*more, shape=(4, 8, 8), form=Signed(8)) -> ir.Graph:
    """A convolution of signed levels, and nodes that `more` make of what was last."""
    weight = np.random.default_rng(2).integers(-7, 8, (shape[0], shape[0], 3, 3))
    graph = ir.Graph("g", [input_node(shape), conv_node(weight, shape, form=form, padding=(1, 1),
                                                        requantizer=constants(shape[0], s=6))])
    for make in more:
        graph.nodes.append(make(graph.nodes[-1]))
    return graph


def pool(source):
    channels, height, width = source.shape
    return ir.MaxPool2d("pool", (source.name,), (channels, height // 2, width // 2), source.format, 1.0)


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("name", ENGINES_WITH_TABLES)
def test_programs_of_random_layers_compute_the_graph(name, number):
    random = np.random.default_rng((43, number, len(name)))
    while True:
        graph = random_graph(random, channels=20, size=12, kinds=LOOKUP_KINDS, powers="shifts" in name)
        if not any(isinstance(node, ir.Lookup) for node in graph.nodes):
            continue
        try:
            program = checked(graph, ENGINES_WITH_TABLES[name], int(random.integers(1, 4)), random)
        except CompileError:
            continue
        assert loads_of(program)
        return


@pytest.mark.parametrize("table, layers", [(RISING, ["Conv2d"]), (FALLING, ["Conv2d", "MaxPool2d"])])
def test_a_max_pool_behind_a_table_joins_it_where_the_table_rises(table, layers):
    program = checked(conv_and(lambda last: lookup("act", last, table), pool))
    assert [layer["op"] for layer in program.meta["layers"]] == layers


@pytest.mark.parametrize("table", [RISING, FALLING])
def test_a_table_behind_a_max_pool_always_joins_it(table):
    program = checked(conv_and(pool, lambda last: lookup("act", last, table)))
    assert [layer["op"] for layer in program.meta["layers"]] == ["Conv2d"]


@pytest.mark.parametrize("table", [STEEP, 15 - STEEP])
@pytest.mark.parametrize("first", [True, False], ids=["table first", "pool first"])
def test_a_pool_that_costs_less_apart_keeps_its_order_with_the_table(table, first):
    """Windows of 3x3 every pixel: the drain would take nine times as long."""
    def wide(source):
        return ir.MaxPool2d("pool", (source.name,), source.shape, source.format, 1.0, kernel=(3, 3), stride=(1, 1), padding=(1, 1))

    more = (lambda last: lookup("act", last, table), wide)
    graph = conv_and(*(more if first else more[::-1]), shape=(8, 16, 16), form=Signed(4))
    assert len(checked(graph, ENGINES_WITH_TABLES["two ports, channel unit"]).meta["layers"]) == 2


def test_a_second_table_and_a_tensor_with_several_readers_are_layers_of_their_own():
    twice = checked(conv_and(lambda last: lookup("act", last, FALLING, Signed(8)), lambda last: lookup("again", last, RISING)))
    assert [layer["op"] for layer in twice.meta["layers"]] == ["Conv2d", "Lookup"]
    graph = conv_and(lambda last: lookup("act", last, RISING, Signed(8)))
    graph.nodes.append(ir.Add("sum", ("act", "conv"), graph.nodes[-1].shape, Signed(8), 1.0, requantizer=constants(4, n=1, s=1)))
    assert [layer["op"] for layer in checked(graph).meta["layers"]] == ["Conv2d", "Lookup", "Add"]


def test_levels_of_any_format_of_8_bits_are_looked_up():
    """ESB levels too, and into formats that the requantizer of the engine does not have."""
    config = replace(CONFIG, esb_output=False)
    form = ESB(4, 1)
    table = np.random.default_rng(3).choice(form.levels, LEVEL_ENTRIES)
    graph = conv_and(lambda last: lookup("act", last, table, form), lambda last: lookup("again", last, FALLING))
    assert [layer["op"] for layer in checked(graph, config).meta["layers"]] == ["Conv2d", "Lookup"]


def test_a_table_is_loaded_once_for_layers_one_after_the_other_that_share_it():
    again = [lambda last, k=k, table=table: lookup(f"act{k}", last, table, Signed(8))
             for k, table in enumerate((RISING, RISING, FALLING, RISING))]
    program = checked(conv_and(*again), batch=2)
    offsets = [offset for _, offset in loads_of(program)]
    assert len(offsets) == 3 and offsets[0] == offsets[2] != offsets[1]


def test_a_table_waits_until_the_drain_before_it_is_over():
    """Constants wait for the drain before that one, so that a table takes the token ahead of the constants that come next."""
    program = checked(conv_and(*(lambda last, k=k: lookup(f"act{k}", last, np.roll(RISING, k), Signed(8)) for k in range(4))))
    drains = taken = tables = 0
    for opcode, fields in map(decode, program.words):
        drains += opcode == "DRAIN"
        if opcode == "WEIGHTS" and fields["destination"]:
            is_table = fields["destination"] == TABLE_DESTINATION
            tables, taken = tables + is_table, taken + fields["wait_free"]
            assert taken == drains if is_table else max(0, drains - 1) <= taken <= drains
            assert not is_table or (fields["beats"], fields["post_full"]) == (LEVEL_ROWS, 1)
    assert tables == 4 < drains


def test_an_engine_without_a_table_refuses_the_layer_by_name():
    graph = conv_and(lambda last: lookup("swish", last, FALLING))
    with pytest.raises(CompileError, match=r"^layer conv: its result is looked up in a function table \(swish\) and engine "
                                           r"small8x16 is built without one \(function_table = false\); use an engine with one, "
                                           r"as function_table: true in an engine's \.json makes it, or a network whose only "
                                           r"activation is the ReLU$"):
        compile_graph(graph, PLAIN)


@pytest.mark.parametrize("options, message", [
    (dict(residual=False), "without a residual operand"), (dict(esb_output=False), "without ESB output")])
def test_the_channel_unit_s_layers_are_refused_as_others_are(options, message):
    """What the drain cannot do does not depend on where the sums come from."""
    form = ESB(4, 1) if "esb_output" in options else Signed(8)
    graph = ir.Graph("g", [input_node((8, 4, 4)), ir.Add("sum", ("input", "input"), (8, 4, 4), form, 1.0,
                                                        requantizer=constants(8, n=1, s=1))])
    with pytest.raises(CompileError, match=message):
        compile_graph(validate(graph), replace(ENGINES["small8x16-channel"], **options))


def test_engines_without_a_table_have_the_hash_they_had():
    assert PLAIN.hash == replace(PLAIN, function_table=False).hash != CONFIG.hash
    assert ENGINES["tiny4x4"].hash == TINY_HASH


TINY_HASH = 0xf9976ccee853378c
"""As it was before there were function tables."""


def test_a_table_costs_its_rows_once():
    graph = conv_and(lambda last: lookup("act", last, FALLING), shape=(8, 12, 12))
    with_table = count_cycles(compile_graph(graph, CONFIG)).total
    without = count_cycles(compile_graph(replace(graph, nodes=graph.nodes[:-1]), PLAIN)).total
    # One digit less is stored; the table's rows come before the first value is drained.
    assert with_table < without + 2 * LEVEL_ROWS
