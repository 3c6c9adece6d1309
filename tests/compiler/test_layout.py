"""Layout, tiles, and workspace."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow.compiler.errors import CompileError
from esbflow.compiler.layout import tensor_layout
from esbflow.compiler.lower import lower
from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.tile import window_words
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.random import random_graph
from esbflow.graph.validate import validate
from esbflow.numbers import ESB, Signed, Unsigned
from esbflow.runtime import layout
from tests.compiler.programs import BOUNDS, TESTED, one_conv, plans_of
from tests.sw.graph_nodes import constants, seeds


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(list(ENGINES)), st.sampled_from([Unsigned(4), Signed(4), Signed(8), Unsigned(8),
                                                               Signed(16), Signed(32), ESB(4, 1)]))
def test_packed_tensors_read_back_and_lie_where_the_layout_says(seed, name, form):
    random, config = np.random.default_rng(seed), ENGINES[name]
    shape, images = tuple(int(v) for v in random.integers(1, [150, 8, 12])), int(random.integers(1, 4))
    values = random.integers(max(form.min, -(2**31)), form.max + 1, (images, *shape))
    place = tensor_layout(config, "output", shape, form, images)
    bits = config.digit_bits
    packed = layout.pack(values, config.rows, place.digits, place.pitch, bits)
    assert packed.size == place.bytes and place.bytes % 16 == 0
    assert np.array_equal(layout.unpack(packed, shape, images, config.rows, place.digits, place.pitch, form.signed, bits), values)
    # One value by hand: channel c of image i at (y, x), digit d.
    c, i, y, x, d = (int(random.integers(n)) for n in (shape[0], images, *shape[1:], place.digits))
    first = x // place.words_per_beat * place.words_per_beat
    byte = 16 * place.beat(c // config.rows * place.digits + d, i, y, first)
    place_in_beat = ((x - first) * config.rows + c % config.rows) * bits  # in bits
    byte, mask = byte + place_in_beat // 8, (1 << bits) - 1
    assert packed[byte] >> place_in_beat % 8 & mask == values[i, c, y, x] >> bits * d & mask


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("number", range(10))
def test_tiles_cover_every_output_once_and_fit_the_buffers(name, number):
    random, config = np.random.default_rng((13, number)), replace(TESTED[name], stripes=False)  # of whole images
    larger = {"channels": 2 * BOUNDS[name]["channels"], "size": 40}
    while True:
        graph = random_graph(random, layers=2, **larger)
        try:
            plans = plans_of(graph, config, 2)
            break
        except CompileError:
            continue
    for plan in plans:
        layer, target, tiling = plan.layer, plan.target, plan.tiling
        images = target.images if layer.stacked else 1
        for spans, size in ((tiling.rows, target.height * images), (tiling.cols, target.width)):
            assert [y for span in spans for y in range(span.out0, span.out1)] == list(range(size))
        whole = len(tiling.cols) == 1
        for row, col in itertools.product(tiling.rows, tiling.cols):
            assert (row.conv1 - row.conv0) * (col.conv1 - col.conv0) <= config.accumulator_depth
            first, window = window_words(col, config.words_per_beat, plan.source.pitch, whole)
            beats = (row.in1 - row.in0) * window // config.words_per_beat * config.beats_per_word
            assert tiling.planes_at_once >= 1 and beats * tiling.planes_at_once <= config.activation_beats
            assert first <= col.in0 and col.in1 <= first + window
            for axis, (span, times) in enumerate(zip((row, col), layer.repeat)):
                if layer.repeat != (1, 1):  # columns are repeated by the array, rows by the drain
                    computed = {at // (times if axis == 0 else 1) for at in range(span.out0, span.out1)}
                    assert computed == set(range(span.conv0, span.conv1))
                    assert {at // (times if axis == 1 else 1) for at in computed} == set(range(span.in0, span.in1))
                    continue
                # Every input that a convolution output of the tile reads is in the window, or is padding.
                size = layer.in_shape[1 + axis] * (images if axis == 0 else 1)
                for out, tap in itertools.product(range(span.conv0, span.conv1), range(layer.kernel[axis])):
                    at = out * layer.stride[axis] + tap * layer.dilation[axis] - layer.padding[axis]
                    assert span.in0 <= at < span.in1 or not 0 <= at < size
                # And every convolution output that a pool window of the tile reads.
                for out, tap in itertools.product(range(span.out0, span.out1), range(layer.pool.kernel[axis])):
                    at = out * layer.pool.stride[axis] + tap - layer.pool.padding[axis]
                    assert span.conv0 <= at < span.conv1 or not 0 <= at < layer.conv_shape[1 + axis] * images


@pytest.mark.parametrize("number", range(20))
def test_tensors_that_are_needed_at_the_same_time_never_share_memory(number):
    random = np.random.default_rng((17, number))
    while True:
        graph = random_graph(random, layers=8, channels=12, size=8)
        try:
            plans = plans_of(graph, ENGINES["small8x16"], 2)
            break
        except CompileError:
            continue
    made = {plan.layer.target: plan for plan in plans}
    last = {name: max([plan.number for plan in plans if name in (*plan.layer.sources, plan.layer.residual)],
                      default=made[name].number) for name in made}
    stored = [name for name in made if made[name].target.region == "workspace"]
    for a, b in itertools.combinations(stored, 2):
        lives = made[a].number <= last[b] and made[b].number <= last[a]
        one, two = made[a].target, made[b].target
        apart = one.offset + one.beats <= two.offset or two.offset + two.beats <= one.offset
        assert apart or not lives, (a, b)


def test_workspace_is_used_again():
    layers = [one_conv(np.ones((8, 8, 1, 1)), (8, 8, 8), Signed(8)).nodes[0]]
    for k in range(6):
        node = one_conv(np.eye(8).reshape(8, 8, 1, 1), (8, 8, 8), Signed(8)).nodes[1]
        layers.append(replace(node, name=f"conv{k}", inputs=(layers[-1].name,)))
    graph = validate(ir.Graph("chain", layers))
    tensor = tensor_layout(ENGINES["base16x16"], "workspace", (8, 8, 8), Signed(8), 1).bytes
    assert compile_graph(graph, ENGINES["base16x16"], 1, packing={}).meta["regions"]["workspace"] == 2 * tensor


def test_a_pool_behind_a_convolution_costs_no_layer_of_its_own():
    conv = one_conv(np.ones((4, 2, 3, 3)), (2, 8, 8), Unsigned(4))
    pool = ir.MaxPool2d("pool", ("conv",), (4, 3, 3), Unsigned(4), 1.0)
    last = replace(one_conv(np.ones((4, 4, 1, 1)), (4, 3, 3)).nodes[1], name="last", inputs=("pool",))
    graph = validate(ir.Graph("pooled", [*conv.nodes, pool, last]))
    assert [(layer.name, layer.target, layer.out_shape) for layer in lower(graph)] == [
        ("conv", "pool", (4, 3, 3)), ("last", "last", (4, 3, 3))]
    # Not if someone else reads the map before the pool.
    other = ir.Requantize("other", ("conv",), (4, 6, 6), Unsigned(4), 1.0, requantizer=constants(4))
    graph = validate(ir.Graph("read twice", [*conv.nodes, pool, other]))
    assert [layer.name for layer in lower(graph)] == ["conv", "pool", "other"]
