"""Concatenations are read in parts, and pixels are repeated by the array's walk and the drain."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow import instructions
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.layout import Source, channel_groups, tensor_layout
from esbflow.compiler.lower import lower
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.random import random_images, random_weights
from esbflow.graph.validate import validate
from esbflow.numbers import Signed, Unsigned
from tests.compiler.machine import Machine
from tests.compiler.programs import one_conv
from tests.sw.graph_nodes import constants, input_node, seeds

FORM = Unsigned(4)


def conv(name, source, channels, form=FORM, random=None, residual=()):
    """A 1x1 convolution of `source`, a node of the graph, to `channels`."""
    random = random or np.random.default_rng(len(name))
    weight = random_weights(random, (channels, source.shape[0], 1, 1), "s4")
    return ir.Conv2d(name, (source.name, *residual), (channels, *source.shape[1:]), form, 1.0, weight=weight,
                     weight_format=Signed(4), weight_scale=np.ones(channels), requantizer=constants(channels, n=len(residual)))


def concat(name, *parts):
    return ir.Concat(name, tuple(part.name for part in parts), (sum(part.shape[0] for part in parts), *parts[0].shape[1:]),
                     parts[0].format, 1.0)


def same_on_the_machine(graph, engine="base16x16", batch=2, **options):
    random = np.random.default_rng(4)
    program = compile_graph(validate(graph), ENGINES[engine], batch, **options)
    images = random_images(random, graph, batch)
    images[0] = np.arange(images[0].size).reshape(images[0].shape) % 256
    expected = execute(graph, images)
    assert np.array_equal(Machine(program).run(images), expected)
    assert np.array_equal(Machine(program).run(images, order=random), expected)
    count_cycles(program)
    return program


def joined_graph(*last):
    """Two convolutions of 20 and 3 channels, their concatenation, and `last` made of (first, second, both)."""
    image = input_node((2, 6, 7))
    first, second = conv("first", image, 20), conv("second", image, 3)
    both = concat("both", first, second)
    nodes = [image, first, second, both]
    for make in last:
        nodes.append(make(*nodes[1:4]))
    return ir.Graph("joined", nodes)


def test_a_concatenation_costs_no_layer_and_no_memory():
    graph = joined_graph(lambda first, second, both: conv("last", both, 5, form=Signed(32)))
    layers = lower(graph)
    assert [layer.name for layer in layers] == ["first", "second", "last"]
    assert layers[2].sources == ("first", "second") and layers[2].source_channels == (20, 3)
    program = same_on_the_machine(graph)
    parts = [tensor_layout(ENGINES["base16x16"], "workspace", (channels, 6, 7), FORM, 2).bytes for channels in (20, 3)]
    assert program.meta["regions"]["workspace"] == sum(parts)


def test_each_part_begins_a_group_of_channels():
    assert channel_groups((16, 33), 16) == [(0, 16), (16, 16), (32, 16), (48, 1)]
    layouts = [tensor_layout(ENGINES["base16x16"], region, (channels, 2, 4), Unsigned(8), 1, offset=offset)
               for region, channels, offset in (("input", 3, 0), ("workspace", 20, 50))]
    source = Source(tuple(layouts))
    assert source.groups == 3 and source.digits == 2
    # Planes: two digits of the 3 channels, then of 16, then of 4. A row of 4 pixels is 2 beats.
    assert [source.beat(plane, 0, 1, 2) for plane in range(6)] == [
        ("input", 3), ("input", 7), ("workspace", 53), ("workspace", 57), ("workspace", 61), ("workspace", 65)]
    with pytest.raises(IndexError):
        source.beat(6, 0, 0, 0)


@pytest.mark.parametrize("make, layers", [
    (lambda first, second, both: replace(conv("last", both, 23, residual=("both",)), format=Signed(16)),
     ["first", "second", "both", "last"]),
    (lambda first, second, both: ir.Add("last", ("both", "both"), both.shape, Signed(16), 1.0,
                                        requantizer=constants(23, n=3)), ["first", "second", "both", "last"]),
    (lambda first, second, both: ir.MaxPool2d("last", ("both",), (23, 3, 3), FORM, 1.0), ["first", "second", "last"]),
    (lambda first, second, both: ir.AvgPool2d("last", ("both",), (23, 3, 3), Signed(16), 1.0, requantizer=constants(23)),
     ["first", "second", "last"]),
    (lambda first, second, both: ir.Requantize("last", ("both",), (23, 6, 7), Signed(8), 1.0,
                                               requantizer=constants(23, b=-5)), ["first", "second", "last"]),
    (lambda first, second, both: ir.Linear("last", ("both",), (4, 1, 1), Signed(32), 1.0,
                                           weight=random_weights(np.random.default_rng(1), (4, 23 * 42), "s4"),
                                           weight_format=Signed(4), weight_scale=np.ones(4), requantizer=constants(4)),
     ["first", "second", "last"]),
    (lambda first, second, both: concat("last", both, first, both), ["first", "second", "last"]),
    (lambda first, second, both: ir.Upsample("last", ("both",), (23, 12, 21), FORM, 1.0, factor=(2, 3)),
     ["first", "second", "last"]),
], ids=["residual", "added", "max", "average", "requantize", "linear", "output", "upsample"])
@pytest.mark.parametrize("engine", ["tiny4x4", "base16x16", "large64x64"])
def test_whatever_reads_it_reads_the_channels_in_order(engine, make, layers):
    graph = joined_graph(make)
    assert [layer.name for layer in lower(graph)] == layers
    same_on_the_machine(graph, engine)


def test_the_image_may_be_a_part():
    image = input_node((3, 6, 7))
    first = conv("first", image, 18, form=image.format)
    graph = ir.Graph("image", [image, first, concat("all", first, image), conv("last", replace(
        concat("all", first, image)), 4, form=Signed(32))])
    for fold in (False, True):
        same_on_the_machine(graph, fold=fold)
    doubled = concat("all", image, image)
    same_on_the_machine(ir.Graph("twice", [image, doubled, conv("last", doubled, 4, form=Signed(32))]))


def test_parts_that_lie_equally_spaced_are_one_transfer():
    """Four parts of one plane each follow each other in the workspace: one transfer a tile brings all of them."""
    image = input_node((2, 6, 7))
    parts = [conv(f"part{k}", image, 16) for k in range(4)]
    all_ = concat("all", *parts)
    program = same_on_the_machine(ir.Graph("g", [image, *parts, all_, conv("last", all_, 3, form=Signed(32))]), batch=1)
    loads = [fields for opcode, fields in map(instructions.decode, program.words)
             if opcode == "LOAD" and fields["layer"] == 4]
    assert {fields["segments"] for fields in loads} == {4}


# -- repeated pixels ----------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(list(ENGINES)), st.tuples(st.integers(1, 7), st.integers(1, 7)), st.booleans())
def test_pixels_are_repeated_on_maps_of_any_width(seed, engine, factor, first):
    random = np.random.default_rng(seed)
    channels, height, width = (int(n) for n in random.integers(1, (40, 6, 60)))
    image = input_node((channels, height, width))
    shape = (channels, height * factor[0], width * factor[1])
    graph = ir.Graph("g", [image, ir.Upsample("up", ("input",), shape, image.format, 1.0, factor=factor)])
    if not first:
        graph.nodes.append(conv("last", graph.nodes[1], 5, form=Signed(32), random=random))
    same_on_the_machine(graph, engine)


def test_a_repeated_row_takes_one_pass_and_one_drain():
    """By hand: 16 channels of 4 bits, 3 rows, 5 columns, each pixel 2 x 2 times: a tile a row, 10 pixels, 2 rows stored."""
    image = replace(input_node((16, 3, 5)), format=FORM, table=np.tile(np.arange(256) % 16, (16, 1)))
    graph = ir.Graph("g", [image, ir.Upsample("up", ("input",), (16, 6, 10), FORM, 1.0, factor=(2, 2))])
    program = same_on_the_machine(graph, batch=1)
    decoded = [instructions.decode(word) for word in program.words]
    passes = [fields for opcode, fields in decoded if opcode == "PASS"]
    drains = [fields for opcode, fields in decoded if opcode == "DRAIN"]
    assert [(f["rows"], f["cols"], f["stride_x"], f["row_step"]) for f in passes] == [(5, 2, 0, 1)] * 3
    assert [(f["acc_rows"], f["acc_cols"], f["out_rows"], f["out_cols"]) for f in drains] == [(1, 10, 2, 10)] * 3
    assert program.meta["layers"][0]["macs"] == 0


def test_a_unet_of_random_weights_compiles():
    """What it is for: an encoder, a decoder that repeats pixels, and a shortcut that is joined."""
    random = np.random.default_rng(0)
    image = one_conv(np.ones((1, 3, 1, 1)), (3, 8, 8)).nodes[0]
    down = conv("down", image, 12, random=random)
    pool = ir.MaxPool2d("pool", ("down",), (12, 4, 4), FORM, 1.0)
    middle = conv("middle", pool, 20, random=random)
    up = ir.Upsample("up", ("middle",), (20, 8, 8), FORM, 1.0, factor=(2, 2))
    both = concat("both", up, down)
    graph = ir.Graph("unet", [image, down, pool, middle, up, both, conv("last", both, 1, form=Signed(16), random=random)])
    program = same_on_the_machine(graph)
    assert [layer["op"] for layer in program.meta["layers"]] == ["Conv2d", "MaxPool2d", "Conv2d", "Upsample", "Conv2d"]
