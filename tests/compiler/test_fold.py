"""Folding a strided first layer changes no value."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.fold import fold_input
from esbflow.compiler.lower import lower
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import convolve, execute
from esbflow.graph.random import random_images, random_weights
from esbflow.graph.validate import validate
from esbflow.numbers import Signed
from esbflow.runtime import layout
from tests.compiler.machine import Machine
from tests.compiler.programs import one_conv
from tests.sw.graph_nodes import constants, input_node, seeds


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([4, 8, 16, 64]))
def test_a_folded_first_layer_computes_the_same(seed, rows):
    random = np.random.default_rng(seed)
    channels, (ky, kx) = int(random.integers(1, 5)), random.integers(1, 6, 2)
    fields = {"stride": tuple(random.integers(1, 4, 2)), "padding": tuple(random.integers(0, 3, 2)),
              "dilation": tuple(random.integers(1, 3, 2))}
    size = [int(random.integers(max(1, (k - 1) * d + 1 - 2 * p), 14))
            for k, d, p in zip((ky, kx), fields["dilation"], fields["padding"], strict=True)]
    even = [(n + 2 * p - (k - 1) * d - 1) // s + 1 for n, p, k, d, s in zip(
        size, fields["padding"], (ky, kx), fields["dilation"], fields["stride"], strict=True)]
    most = [(n + p - 1) // s + 1 for n, p, s in zip(size, fields["padding"], fields["stride"], strict=True)]
    more = [int(random.integers(0, max(0, m - e) + 1)) for m, e in zip(most, even, strict=True)]
    graph = one_conv(random_weights(random, (5, channels, ky, kx), "s8"), (channels, *size), more=more, **fields)
    (original,) = lower(graph)
    fold, folded = fold_input(original, rows)
    codes = layout.encode_images(random_images(random, graph, 2), graph.input.table)
    expected = convolve(codes, original.weight, original.stride, original.padding, original.dilation, 1,
                        original.conv_shape[1:])
    if fold is None:
        assert folded is original
        return
    meta = {"fold": json.loads(json.dumps(fold.to_meta(), default=int)), "height": folded.in_shape[1],
            "width": folded.in_shape[2]}
    wide = layout.fold_windows(codes, meta)
    assert wide.shape[1:] == tuple(folded.in_shape)
    assert np.array_equal(convolve(wide, folded.weight, folded.stride, folded.padding, folded.dilation, 1,
                                   folded.conv_shape[1:]), expected)
    assert folded.macs == original.macs
    # It is worth it: fewer cycles, or as many over a smaller map.
    costs = [max(np.prod(layer.kernel) * -(-layer.in_shape[0] // rows) * np.prod(layer.conv_shape[1:]),
                 -(-layer.in_shape[0] // rows) * layer.in_shape[1] * layer.in_shape[2] * rows // 32)
             for layer in (original, folded)]
    assert costs[1] <= costs[0]


def test_a_grey_image_fills_the_rows_of_the_array():
    (layer,) = lower(one_conv(np.ones((20, 1, 5, 5)), (1, 28, 28)))
    fold, folded = fold_input(layer, 16)
    assert fold.rows == 3 and folded.in_shape == (15, 26, 24) and folded.kernel == (2, 1)
    fold, folded = fold_input(layer, 32)
    assert fold.rows == 5 and folded.in_shape == (25, 24, 24) and folded.kernel == (1, 1)


def test_resnet_s_first_layer_reads_every_second_row_of_three():
    """Kernel rows 0 to 2, 3 and 4, 5 and 6: steps of the stride, so that no odd row is stored, in three passes."""
    (layer,) = lower(one_conv(np.ones((64, 3, 7, 7)), (3, 32, 32), stride=(2, 2), padding=(3, 3)))
    fold, folded = fold_input(layer, 64)
    assert (fold.rows, fold.row_step) == (3, 2) and folded.kernel == (3, 1)
    assert folded.in_shape == (63, 18, 16) and folded.stride == folded.dilation == (1, 1)


@pytest.mark.parametrize("name, shape, kernel", [("tiny4x4", (1, 9, 7), None), ("base16x16", (3, 20, 20), None),
                                                 ("base16x16", (2, 5, 6), (5, 6)), ("large64x64", (1, 28, 28), None)])
def test_a_first_linear_layer_reads_all_pixels_as_channels(name, shape, kernel):
    """As does a convolution as large as its image; the images of a batch stay one tall map."""
    random = np.random.default_rng((21, *shape))
    if kernel:
        graph = one_conv(random_weights(random, (9, shape[0], *kernel), "s8"), shape)
    else:
        weight = random_weights(random, (9, int(np.prod(shape))), "s8")
        graph = validate(ir.Graph("one", [input_node(shape), ir.Linear(
            "fc", ("input",), (9, 1, 1), Signed(32), 1.0, weight=weight, weight_format=Signed(8), weight_scale=np.ones(9),
            requantizer=constants(9))]))
    config, images = ENGINES[name], random_images(random, graph, 3)
    program, without = (compile_graph(graph, config, 3, fold=fold) for fold in (True, False))
    assert program.meta["input"]["channels"] == np.prod(shape) and without.meta["input"]["fold"] is None
    assert np.array_equal(Machine(program).run(images), execute(graph, images))
    assert np.array_equal(Machine(without).run(images), execute(graph, images))
    assert count_cycles(program).total < count_cycles(without).total


def test_an_mlp_on_mnist_is_not_bound_by_its_first_layer():
    """784 pixels fill 49 rows of 16: before they were folded, each was a row of its own."""
    graph = validate(ir.Graph("one", [input_node((1, 28, 28)), ir.Linear(
        "fc", ("input",), (64, 1, 1), Signed(32), 1.0, weight=np.ones((64, 784), np.int64), weight_format=Signed(2),
        weight_scale=np.ones(64), requantizer=constants(64))]))
    folded, plain = (count_cycles(compile_graph(graph, ENGINES["base16x16"], fold=fold)).total for fold in (True, False))
    assert 10 * folded < plain


def test_a_long_window_at_a_large_stride_is_folded_where_that_takes_little_more_memory():
    """As networks of sound begin: 80 samples at a stride of 16 or 4. At a stride of 2 it would be two and a quarter times."""
    random = np.random.default_rng(4)
    for stride, folds in ((16, True), (4, True), (2, False)):
        graph = one_conv(random_weights(random, (9, 1, 1, 80), "s8"), (1, 1, 800), stride=(1, stride))
        (layer,) = lower(graph)
        fold, folded = fold_input(layer, 16)
        assert (fold is not None) == folds
        if folds:
            assert folded.in_shape == (80, 1, 720 // stride + 1) and folded.kernel == (1, 1)
            images, config = random_images(random, graph, 2), ENGINES["base16x16"]
            program, without = (compile_graph(graph, config, 2, fold=each) for each in (True, False))
            assert np.array_equal(Machine(program).run(images), execute(graph, images))
            assert count_cycles(program).total < count_cycles(without).total / 5
