"""Buffers: the sub-word selection of each ratio of word to beat."""

import pytest

from esbflow.engine_config import EngineConfig
from esbhw.engine.accumulators import Accumulators
from esbhw.engine.activation_buffer import ActivationBuffer
from esbhw.engine.array import make_array
from esbhw.engine.channel_unit import ChannelUnit
from esbhw.engine.constants import ConstantBanks
from esbhw.engine.residual_buffer import ResidualBuffer
from esbhw.engine.weight_slots import WeightSlots
from sim.benches import build


def config(rows: int, cols: int | None = None, **sizes) -> EngineConfig:
    return EngineConfig("bench", rows=rows, cols=cols or rows, **{
        "activation_beats": 16, "residual_beats": 16, "accumulator_depth": 16, "requantize_lanes": 4, **sizes})


@pytest.mark.parametrize("rows, digit_bits, words_per_beat, beats_per_word", [
    (4, 4, 8, 1), (16, 4, 2, 1), (32, 4, 1, 1), (64, 4, 1, 2), (4, 2, 16, 1), (128, 2, 1, 2)])
def test_the_activation_buffer_gives_every_word_of_every_shape(rows, digit_bits, words_per_beat, beats_per_word):
    size = config(rows, digit_bits=digit_bits)
    assert (size.words_per_beat, size.beats_per_word) == (words_per_beat, beats_per_word)
    build.run("activation_buffer_bench", build.build("activation_buffer", ActivationBuffer(size)), size)


@pytest.mark.parametrize("rows, digit_bits", [(4, 4), (64, 4), (4, 2), (128, 2)])
def test_the_residual_buffer_gives_all_digits(rows, digit_bits):
    size = config(rows, digit_bits=digit_bits)
    build.run("residual_buffer_bench", build.build("residual_buffer", ResidualBuffer(size)), size)


@pytest.mark.parametrize("rows, path, slots, ports", [(4, 1, 4, 1), (16, 1, 4, 1), (16, 4, 2, 1), (16, 4, 2, 2), (16, 4, 4, 4)])
def test_the_weight_slots_give_rows_of_the_weight_path(rows, path, slots, ports):
    size = config(rows, weight_path_beats=path, weight_slots=slots, weight_ports=ports)
    build.run("weight_slots_bench", build.build("weight_slots", WeightSlots(size)), size)


@pytest.mark.parametrize("rows, cols, lanes, ports", [(4, 4, 4, 1), (4, 16, 4, 1), (4, 8, 1, 1), (4, 16, 4, 2), (16, 4, 2, 2)])
def test_the_constants_come_in_groups_of_lanes(rows, cols, lanes, ports):
    size = config(rows, cols, requantize_lanes=lanes, weight_path_beats=ports, weight_ports=ports, accumulator_depth=64)
    build.run("constants_bench", build.build("constants", ConstantBanks(size)), size)


@pytest.mark.parametrize("options", [{}, dict(weight_min=-2, weight_max=1, digit_bits=2), dict(weight_min=-7, weight_max=7),
                                     dict(array="table", weight_min=-1, weight_max=1, digit_bits=2)])
def test_the_accumulators_add_and_drain(options):
    size = config(4, **options)
    folder = build.build("accumulators", Accumulators(size))
    build.run("accumulators_bench", folder, size)


@pytest.mark.parametrize("rows, cols, options", [
    (4, 4, {}), (8, 16, dict(weight_path_beats=2)), (8, 8, dict(weight_min=-8, weight_max=7)),
    (4, 4, dict(array="table")), (16, 8, dict(array="table", table_groups=2, cols=16)),
    (8, 16, dict(array="table", weight_min=-8, weight_max=7, weight_path_beats=2)),
    (16, 16, dict(array="table", table_groups=1, weight_min=-1, weight_max=1)),
    (8, 8, dict(weight_min=-2, weight_max=1, digit_bits=2)), (4, 8, dict(digit_bits=2)),
    (8, 16, dict(array="table", weight_min=-2, weight_max=1, digit_bits=2))])
def test_the_array_swaps_tiles_without_losing_a_cycle(rows, cols, options):
    size = config(rows, **{"cols": cols, **options})
    build.run("array_bench", build.build("array", make_array(size)), size)


@pytest.mark.parametrize("rows, unit, options", [
    (8, 8, {}), (16, 4, dict(weight_path_beats=2)), (8, 8, dict(weight_min=-8, weight_max=7)),
    (8, 4, dict(weight_min=-2, weight_max=1)), (32, 32, dict(array="table", weight_path_beats=4)),
    (16, 8, dict(digit_bits=2))],
    ids=["sign and magnitude", "narrower than a word", "complement", "two bits", "wide", "narrow digits"])
def test_the_channel_unit_weighs_windows_and_finds_their_maxima(rows, unit, options):
    size = config(rows, max(16, rows), channel_unit=unit, **options)
    build.run("channel_unit_bench", build.build("channel_unit", ChannelUnit(size)), size)


def test_the_accumulators_take_the_sums_of_one_block_of_channels():
    for digit_bits in (4, 2):
        _block_of_channels(config(8, 16, channel_unit=4, digit_bits=digit_bits))


def _block_of_channels(size):
    build.run("channel_accumulators_bench", build.build("channel_accumulators", Accumulators(size)), size)
