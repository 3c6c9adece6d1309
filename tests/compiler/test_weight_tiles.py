"""Weight tiles of nothing but zeros cost nothing, and what is left computes the same."""

import numpy as np
import pytest

from esbflow import instructions
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.graph.random import random_images
from tests.compiler.machine import Machine
from tests.compiler.programs import one_conv

BASE = ENGINES["base16x16"]


def passes_of(weight, **fields):
    """Passes over each tile of a map, with 8-bit inputs (two digits), after the program has given the graph's integers."""
    random = np.random.default_rng(1)
    graph = one_conv(weight, (weight.shape[1] * fields.get("groups", 1), 3, 3), **fields)
    program = compile_graph(graph, BASE, fold=False)
    images = random_images(random, graph, 1)
    for order in (None, random):
        assert np.array_equal(Machine(program).run(images, order=order), execute(graph, images))
    layer = program.meta["layers"][0]
    assert sum(instructions.decode(word)[0] == "PASS" for word in program.words) == layer["passes"] * layer["tiles"]
    return layer["passes"]


def test_blocks_of_zeros_cost_no_pass():
    random = np.random.default_rng(0)
    full = random.choice((-5, -3, -1, 1, 3, 5), (40, 36, 3, 3))
    assert passes_of(full, padding=(1, 1)) == 2 * 9 * 3 * 3
    pruned = full.copy()
    pruned[16:32, :16] = 0  # one block of 16 x 16 weights, all taps
    pruned[:, :, 0] = 0  # three taps
    pruned[:16, 32:, 1, 1] = 0  # one tap of one block
    assert passes_of(pruned, padding=(1, 1)) == 2 * (6 * (3 * 3 - 1) - 1)


def test_outputs_without_any_weight_keep_one_pass():
    assert passes_of(np.zeros((40, 36, 3, 3), np.int64)) == 2 * 3
    weight = np.zeros((40, 36, 1, 1), np.int64)
    weight[39, 35] = -7  # the last block of the last group
    assert passes_of(weight) == 2 * 3


def test_a_high_digit_of_small_weights_is_left_out():
    random = np.random.default_rng(0)
    weight = random.integers(1, 8, (32, 16, 1, 1))
    weight[:16] = np.arange(16 * 16).reshape(16, 16, 1, 1) % 120 + 1  # more than 16 integers: two digits
    assert passes_of(weight) == 2 * (2 + 1)


@pytest.mark.parametrize("order, blocks", [(np.arange(48), 3), (np.roll(np.arange(48), 16), 3), (np.arange(48)[::-1], 3),
                                           (np.arange(96) // 2, 6), (np.arange(96).reshape(2, 48).T.reshape(-1) % 48, 6)])
def test_a_choice_of_channels_costs_a_pass_a_block_that_it_reads(order, blocks):
    weight = np.eye(48, dtype=np.int64)[order].reshape(-1, 48, 1, 1)
    assert passes_of(weight) == 2 * blocks


def test_groups_leave_out_what_no_group_reads():
    assert passes_of(np.ones((48, 1, 1, 1), np.int64), groups=48) == 2 * 3


@pytest.mark.parametrize("name, channels, kernel, size", [
    ("table64x64-w4", (200, 40), 1, 1), ("table64x64-w4", (48, 40), 3, 7), ("table64x64-w4", (20, 16), 1, 60),
    ("table64x64-w4-slices4", (96, 80), 3, 7)])
def test_weights_are_loaded_once_for_all_images_and_tiles(name, channels, kernel, size):
    """Of linear layers, of layers whose weights fit their slots, and of any where each slice has an image."""
    weight = np.random.default_rng(0).integers(1, 8, (*channels[::-1], kernel, kernel))
    graph = one_conv(weight, (channels[0], size, size), padding=(kernel // 2,) * 2)
    beats = []
    for batch in (1, 4):
        program = compile_graph(graph, ENGINES[name], batch, fold=False)
        loads = [fields for opcode, fields in map(instructions.decode, program.words) if opcode == "WEIGHTS"]
        beats.append(sum(load["beats"] * load["segments"] for load in loads if load["destination"] == 0))
    assert beats[1] == beats[0] >= program.config.tile_beats
