"""Layers that keep each channel to itself, on engines with a channel unit: every value, no diagonal tile, fewer cycles."""

from dataclasses import replace

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.errors import BadValue
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import CHANNEL_KINDS, random_graph, random_images, random_weights
from esbflow.graph.validate import validate
from esbflow.instructions import decode
from esbflow.numbers import ESB, Signed, Unsigned
from tests.compiler.machine import Machine
from tests.compiler.programs import TALL, one_conv
from tests.sw.graph_nodes import constants, input_node

UNITS = {
    "as wide as a word": ENGINES["small8x16-channel"],
    "narrower, tables": EngineConfig("n", rows=16, cols=32, channel_unit=8, array="table", weight_path_beats=2),
    "complement": EngineConfig("c", rows=8, cols=16, channel_unit=8, array="table", weight_min=-8, weight_max=7),
    "two bits": EngineConfig("t", rows=8, cols=16, channel_unit=4, weight_min=-2, weight_max=1),
}
CONFIG = UNITS["as wide as a word"]
PLAIN = replace(CONFIG, channel_unit=0)


def opcodes(program) -> list:
    return [decode(word)[0] for word in program.words]


def checked(graph, config=CONFIG, batch=1, random=None):
    """The program of a graph, whose values are those of the graph in any order that its tokens allow."""
    random = random or np.random.default_rng(1)
    program = compile_graph(graph, config, batch)
    images = random_images(random, graph, batch)
    expected = execute(graph, images)
    assert np.array_equal(Machine(program).run(images), expected)
    assert np.array_equal(Machine(program).run(images, order=random), expected)
    return program


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("name", UNITS)
def test_programs_of_random_layers_compute_the_graph(name, number):
    random = np.random.default_rng((41, number, len(name)))
    while True:
        graph = random_graph(random, channels=24, size=12, kinds=CHANNEL_KINDS)
        try:
            checked(graph, UNITS[name], int(random.integers(1, 4)), random)
        except CompileError:
            continue
        return


@pytest.mark.parametrize("kernel, stride, padding, dilation", [
    ((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1), (1, 1)), ((5, 5), (1, 1), (2, 2), (1, 1)),
    ((7, 2), (3, 1), (0, 1), (1, 1)), ((3, 3), (1, 1), (2, 2), (2, 2)), ((3, 3), (2, 2), (2, 2), (2, 2)),
    ((1, 4), (1, 5), (0, 3), (1, 1)), ((2, 2), (1, 1), (0, 0), (3, 3))])
@pytest.mark.parametrize("form", [Unsigned(4), Signed(4), Unsigned(8)])
def test_depthwise_convolutions_of_any_window_take_no_tile(kernel, stride, padding, dilation, form):
    random = np.random.default_rng(5)
    weight = random_weights(random, (21, 1, *kernel), "s8" if form == Unsigned(4) else "esb4.1")
    graph = one_conv(weight, (21, 13, 14), stride=stride, padding=padding, dilation=dilation, groups=21)
    graph.nodes[0] = replace(graph.nodes[0], format=form, table=random.choice(form.levels, (21, 256)))
    program = checked(graph, batch=2, random=random)
    assert "PASS" not in opcodes(program)
    unit, tiles = count_cycles(program), count_cycles(compile_graph(graph, PLAIN, 2))
    assert unit.compute <= tiles.compute
    if kernel == (3, 3) and dilation == (1, 1):
        assert unit.compute * (6 if stride == (1, 1) else 4) < tiles.compute


def pool_graph(kernel, stride, padding, form, shape=(19, 11, 12), out=None):
    out = out or tuple((size + 2 * p - k) // s + 1 for size, k, s, p in zip(shape[1:], kernel, stride, padding, strict=True))
    pool = ir.MaxPool2d("pool", ("input",), (shape[0], *out), form, 1.0, kernel=kernel, stride=stride, padding=padding)
    source = replace(input_node(shape), format=form, table=np.random.default_rng(3).choice(form.levels, (shape[0], 256)))
    return validate(ir.Graph("pool", [source, pool]))


@pytest.mark.parametrize("kernel, stride, padding", [
    ((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 3), (1, 0)), ((1, 3), (1, 1), (0, 1)), ((2, 1), (5, 7), (1, 0))])
@pytest.mark.parametrize("form", [Unsigned(4), Signed(4), Signed(3)])
def test_a_max_pool_of_one_digit_is_one_pass_and_padding_never_wins(kernel, stride, padding, form):
    graph = pool_graph(kernel, stride, padding, form)
    program = checked(graph)
    passes = [fields for opcode, fields in map(decode, program.words) if opcode == "CHANNEL"]
    assert "PASS" not in opcodes(program) and all(fields["maximum"] for fields in passes)
    assert len(passes) == 3 * program.meta["layers"][0]["tiles"]
    assert all(fields["kernel_y"] == fields["kernel_x"] == 1 for opcode, fields in map(decode, program.words) if opcode == "DRAIN")


@pytest.mark.parametrize("kernel, form", [((5, 5), Unsigned(4)), ((3, 3), Signed(8)), ((2, 4), ESB(4, 1))])
def test_larger_windows_and_wider_integers_are_copied_and_pooled_by_the_drain(kernel, form):
    program = checked(pool_graph(kernel, (1, 1), (1, 1), form))
    assert "PASS" not in opcodes(program) and "CHANNEL" in opcodes(program)


def test_windows_that_hang_over_the_edge_take_what_is_there():
    checked(pool_graph((3, 3), (2, 2), (0, 0), Signed(4), shape=(9, 8, 8), out=(4, 4)))


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3), (7, 7), (4, 9)])
def test_average_pools_of_any_window_load_few_taps(kernel):
    graph = validate(ir.Graph("mean", [input_node((40, *kernel)), ir.AvgPool2d(
        "mean", ("input",), (40, 1, 1), Signed(32), 1.0, kernel=kernel, stride=kernel, requantizer=constants(40))]))
    program = checked(graph, batch=2)
    taps = sum(opcode == "WEIGHTS" and fields["destination"] == 0 for opcode, fields in map(decode, program.words))
    assert "PASS" not in opcodes(program) and taps <= 4
    if kernel == (7, 7):
        assert count_cycles(program).total * 2 < count_cycles(compile_graph(graph, PLAIN, 2)).total


def test_a_pool_of_parts_that_begin_within_words_reads_a_copy_of_them():
    first = one_conv(np.ones((5, 3, 1, 1)), (3, 6, 6), Unsigned(4))
    conv = replace(first.nodes[1], requantizer=constants(5, s=5))
    joined = ir.Concat("joined", ("conv", "conv"), (10, 6, 6), Unsigned(4), 1.0)
    pool = ir.MaxPool2d("pool", ("joined",), (10, 3, 3), Unsigned(4), 1.0)
    program = checked(validate(ir.Graph("parts", [first.nodes[0], conv, joined, pool])))
    assert [layer["name"] for layer in program.meta["layers"]] == ["conv", "pool_joined", "pool"]
    aligned = replace(conv, shape=(8, 6, 6), weight=np.ones((8, 3, 1, 1), np.int64), weight_scale=np.ones(8),
                      requantizer=constants(8, s=5))
    graph = validate(ir.Graph("parts", [first.nodes[0], aligned, replace(joined, shape=(16, 6, 6)), replace(pool, shape=(16, 3, 3))]))
    assert [layer["name"] for layer in checked(graph).meta["layers"]] == ["conv", "pool"]


def test_several_outputs_of_a_channel_are_tiles_as_without_the_unit():
    graph = one_conv(random_weights(np.random.default_rng(2), (12, 1, 3, 3), "s4"), (6, 7, 7), groups=6)
    assert "CHANNEL" not in opcodes(checked(graph))


def test_every_accumulator_of_a_pixel_is_overwritten_though_a_block_of_taps_is_zero():
    weight = random_weights(np.random.default_rng(3), (27, 1, 3, 3), "s4")
    weight[4:12] = 0
    checked(one_conv(weight, (27, 5, 4), groups=27, padding=(1, 1)), TALL["tall16x8"])


def test_slots_that_are_freed_in_another_order_than_filled_are_filled_in_that_order():
    """Blocks 0 and 2 have the same taps, so that block 1's slot is free before theirs."""
    random = np.random.default_rng(4)
    weight = random_weights(random, (24, 1, 3, 3), "s4")
    weight[16:] = weight[:8]
    graph = one_conv(weight, (24, 6, 6), groups=24, form=Signed(4))
    graph.nodes.append(replace(graph.nodes[1], name="second", inputs=("conv",), groups=1, shape=(24, 2, 2), format=Signed(32),
                               weight=random_weights(random, (24, 24, 3, 3), "s4"), weight_scale=np.ones(24)))
    program = checked(graph)  # the machine knows whose token a load takes
    assert [fields["slot"] for opcode, fields in map(decode, program.words) if opcode == "CHANNEL" and fields["post_weights"]] == [1, 0]


def test_an_engine_without_the_unit_has_the_programs_and_the_hash_it_had():
    graph = one_conv(np.ones((8, 1, 3, 3)), (8, 7, 7), groups=8)
    assert "CHANNEL" not in opcodes(compile_graph(graph, PLAIN))
    assert PLAIN.hash == replace(ENGINES["small8x16"], name="other").hash != CONFIG.hash


@pytest.mark.parametrize("options, sentence", [
    (dict(rows=8, cols=8, channel_unit=8), "the taps of 8 channels take 4 beats and a weight slot has 2; use more cols, or a "
                                           "narrower channel_unit"),
    (dict(rows=8, cols=16, channel_unit=16), "channel_unit must be a power of two in 4..8, not 16"),
    (dict(rows=8, cols=16, channel_unit=8, array="table", weight_max=0), "a channel unit copies and averages with taps of 1; use "
                                                                        "a weight_max of at least 1")])
def test_units_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(BadValue) as error:
        EngineConfig("e", **options)
    assert str(error.value) == sentence
