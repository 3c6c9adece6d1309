"""Several pixels of a map of few channels in one word change no value, and are chosen where they save cycles."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow.compiler import packing
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.errors import CompileError
from esbflow.compiler.lower import Pool, lower
from esbflow.compiler.packing import fewest_phases, pack_pixels
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import convolve, execute
from esbflow.graph.random import random_images, random_weights
from esbflow.graph.validate import validate
from esbflow.instructions import decode
from esbflow.numbers import Signed, Unsigned
from tests.compiler.machine import Machine
from tests.compiler.programs import one_conv, packed
from tests.sw.graph_nodes import constants, input_node, seeds

TABLE = EngineConfig("table8x16", rows=8, cols=16, array="table", table_groups=2, weight_min=-8, weight_max=7,
                     accumulator_depth=256, activation_beats=256, residual_beats=256, channel_unit=8)
COMPLEMENT = EngineConfig("complement16x32", rows=16, cols=32, weight_min=-8, weight_max=7, accumulator_depth=256)
"""Arrays whose dots have so much too much in every pass, even one of zeros."""


def in_words(values, pixels):
    """(n, c, h, w) -> the map with so many pixels in a word; what fills the last one up is not zero."""
    n, c, h, w = values.shape
    wide = np.pad(values, ((0, 0), (0, 0), (0, 0), (0, -w % pixels)), constant_values=77)
    return wide.reshape(n, c, h, -1, pixels).transpose(0, 4, 1, 2, 3).reshape(n, pixels * c, h, -1)


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2))
def test_a_packed_convolution_computes_the_same(seed, taken, given_pixels, step, more):
    random = np.random.default_rng(seed)
    kernel, stride, dilation = (tuple(int(v) for v in random.integers(1, high, 2)) for high in (5, 4, 3))
    padding = tuple(int(random.integers(0, k)) for k in kernel)
    size = [(k - 1) * d + 1 + int(random.integers(0, 17)) for k, d in zip(kernel, dilation)]
    graph = one_conv(random_weights(random, (3, 2, *kernel), "s8"), (2, *size), stride=stride, padding=padding, dilation=dilation)
    (layer,) = lower(graph)
    windows = (layer.conv_shape[2] - 1) // step + 1
    # As if a max pool of one pixel every `step` were behind it.
    layer = replace(layer, pool=Pool((1, 1), (1, step)), out_shape=(*layer.conv_shape[:2], windows))
    try:
        phases = fewest_phases(layer, taken, given_pixels) * more
        narrow = pack_pixels(layer, taken, given_pixels, phases)
    except CompileError:
        return
    codes = random.integers(-99, 100, (2, *layer.in_shape))
    wanted = convolve(codes, layer.weight, layer.stride, layer.padding, layer.dilation, 1, layer.conv_shape[1:])
    out, height, width = layer.conv_shape
    words = narrow.conv_shape[2] // narrow.phases
    found = convolve(in_words(codes, taken), narrow.weight, narrow.stride, narrow.padding, narrow.dilation, 1, (height, words))
    found = found.reshape(2, narrow.phases, given_pixels, out, height, words)
    step = step if given_pixels > 1 else 1
    for accumulator in range(narrow.conv_shape[2]):
        for lane in range(given_pixels):
            pixel = (accumulator // step * given_pixels + lane) * step + accumulator % step
            if pixel < width:
                value = found[:, accumulator % narrow.phases, lane, :, :, accumulator // narrow.phases]
                assert np.array_equal(value, wanted[..., pixel])
    assert narrow.macs == layer.macs


@pytest.mark.parametrize("number", range(32))
def test_programs_with_several_pixels_in_a_word_give_the_graph_s_integers(number):
    random = np.random.default_rng((31, number))
    config = (TABLE, COMPLEMENT, ENGINES["small8x16"], ENGINES["tiny4x4"])[number % 4]
    graph, pixels, program = packed(random, config)
    images = random_images(random, graph, program.meta["batch"])
    assert np.array_equal(Machine(program).run(images, random if number % 3 else None), execute(graph, images)), pixels


def chain(*layers, size=(12, 24), channels=3):
    """A graph of convolutions (channels, kernel, stride, padding) and max pools (kernel, stride), 4-bit in between."""
    random, nodes = np.random.default_rng(5), [input_node((channels, *size))]
    for number, entry in enumerate(layers):
        (depth, height, width), last = nodes[-1].shape, number == len(layers) - 1
        if len(entry) == 2:
            kernel, stride = entry
            shape = (depth, (height - kernel) // stride + 1, (width - kernel) // stride + 1)
            nodes.append(ir.MaxPool2d(f"max{number}", (nodes[-1].name,), shape, nodes[-1].format, 1.0, kernel=(kernel,) * 2,
                                      stride=(stride,) * 2, padding=(0, 0)))
            continue
        out, kernel, stride, pad = entry
        shape = (out, (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1)
        rule = constants(out) if last else replace(constants(out), s=np.full(out, 7))
        nodes.append(ir.Conv2d(f"conv{number}", (nodes[-1].name,), shape, Signed(32) if last else Unsigned(4), 1.0,
                               weight=random_weights(random, (out, depth, kernel, kernel), "s4"), weight_format=Signed(4),
                               weight_scale=np.ones(out), requantizer=rule, stride=(stride,) * 2, padding=(pad,) * 2,
                               dilation=(1, 1), groups=1))
    return validate(ir.Graph("chain", nodes))


@pytest.mark.parametrize("name", ["large64x64", "base16x16"])
def test_first_layers_of_few_channels_take_far_fewer_cycles(name):
    """As YOLOv3-tiny begins: maps of a quarter and a half of the array's channels, with a max pool behind each layer."""
    config = ENGINES[name]
    few = config.rows // 4
    graph = chain((few, 3, 1, 1), (2, 2), (2 * few, 3, 1, 1), (2, 2), (4 * few, 3, 1, 1), size=(32, 64))
    program, plain = compile_graph(graph, config), compile_graph(graph, config, packing={})
    assert 1.4 * count_cycles(program).total < count_cycles(plain).total
    assert any(fields.get("acc_gap") for _, fields in map(decode, program.words))
    assert [layer["macs"] for layer in program.meta["layers"]] == [layer["macs"] for layer in plain.meta["layers"]]
    assert [layer["out_shape"] for layer in program.meta["layers"]] == [layer["out_shape"] for layer in plain.meta["layers"]]
    images = random_images(np.random.default_rng(6), graph, 1)
    assert np.array_equal(Machine(program).run(images), execute(graph, images))


def test_maps_that_fill_their_words_stay_as_they_are():
    graph = chain((16, 3, 1, 1), (32, 3, 1, 1), (16, 3, 1, 1))
    program, plain = compile_graph(graph, ENGINES["base16x16"]), compile_graph(graph, ENGINES["base16x16"], packing={})
    assert program.words == plain.words


@pytest.mark.parametrize("layers, pixels, sentence", [
    (((4, 3, 1, 1), (4, 3, 1, 1)), {"conv0": 2}, "layer conv1: 2 and 1 pixels in a word: a window reads beyond the map"),
    (((4, 3, 1, 1), (3, 2), (4, 1, 1, 0)), {"max1": 2}, "windows of its max pool reach beyond a word"),
])
def test_what_cannot_be_packed_is_refused(layers, pixels, sentence):
    with pytest.raises(CompileError, match=sentence):
        compile_graph(chain(*layers, size=(9, 15)), ENGINES["small8x16"], packing=pixels)


def test_rows_that_do_not_fill_their_last_word_are_packed_where_nothing_reads_beyond_them():
    graph = chain((4, 3, 1, 1), (4, 3, 1, 0), (4, 1, 1, 0), size=(9, 15))
    program = compile_graph(graph, ENGINES["small8x16"], packing={"conv0": 2, "conv1": 4})
    images = random_images(np.random.default_rng(8), graph, 1)
    assert np.array_equal(Machine(program).run(images), execute(graph, images))


def test_maps_that_do_not_pay_are_unpacked_again(monkeypatch):
    """A wrong estimate costs nothing: of two maps, the one that slows its layers down goes back."""
    graph, config = chain((4, 3, 1, 1), (4, 3, 1, 1), (16, 3, 1, 1), (16, 3, 1, 1), (16, 3, 1, 1)), ENGINES["base16x16"]
    good, bad = {"conv0": 4}, {"conv3": 4}
    totals = [count_cycles(compile_graph(graph, config, packing=pixels)).total for pixels in (good, {}, bad)]
    assert totals[0] < totals[1] < totals[2]
    for chosen, kept in ((good | bad, good), (bad, {})):
        monkeypatch.setattr(packing, "choose", lambda *arguments, chosen=chosen: chosen)
        assert compile_graph(graph, config).words == compile_graph(graph, config, packing=kept).words


def test_a_residual_that_a_max_pool_makes_is_copied_into_packed_words_where_rows_are_more_than_columns():
    """As in a ResNet's first stage: no layer of half as many channels as there are rows leaves half of the rows idle."""
    random, config = np.random.default_rng(6), EngineConfig("tall32x16", rows=32, cols=16, channel_unit=16, activation_beats=2048,
                                                            residual_beats=1024, weight_path_beats=4, requantize_lanes=16)
    def conv(name, inputs, size=24, channels=16, form=Unsigned(4)):
        weight = random_weights(random, (16, channels, 3, 3), "s4")
        return ir.Conv2d(name, inputs, (16, size, size), form, 1.0, weight=weight, weight_format=Signed(4),
                         weight_scale=np.ones(16), requantizer=constants(16, s=4, n=len(inputs) - 1), stride=(1, 1),
                         padding=(1, 1), dilation=(1, 1), groups=1)
    graph = validate(ir.Graph("stage", [
        input_node((3, 48, 48)), conv("stem", ("input",), 48, 3),
        ir.MaxPool2d("pool", ("stem",), (16, 24, 24), Unsigned(4), 1.0, kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        conv("a", ("pool",)), conv("b", ("a", "pool")), conv("c", ("b",)), conv("d", ("c", "b")), conv("last", ("d",))]))
    program, plain = compile_graph(graph, config), compile_graph(graph, config, packing={})
    layers = {layer["name"]: layer for layer in program.meta["layers"]}
    assert layers["pool_packed"]["op"] == "Copy" and layers["pool_packed"]["macs"] == 0
    cycles = count_cycles(program)
    for (name, layer), spent in zip(layers.items(), cycles.per_layer, strict=True):
        if name in ("a", "b", "c", "d"):
            assert layer["out_shape"] == [16, 24, 24] and layer["macs"] > 0.6 * config.macs_per_cycle * spent, name
    assert cycles.total < 0.85 * count_cycles(plain).total
    images = random_images(random, graph, 1)
    for one in (program, plain):
        assert np.array_equal(Machine(one).run(images, random), execute(graph, images))
    # The other way round, columns that are half empty are not worth a copy: programs of such engines are what they were.
    wide = compile_graph(graph, replace(config, rows=16, cols=32, channel_unit=16))
    assert all(layer["op"] != "Copy" for layer in wide.meta["layers"])
