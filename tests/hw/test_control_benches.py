"""The blocks that decide what happens when."""

import pytest

from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbhw.engine.control import Control
from esbhw.engine.drain import Drain
from esbhw.engine.sequencer import Sequencer
from sim.benches import build


def test_the_registers_and_the_life_of_a_run():
    size = ENGINES["tiny4x4"]
    build.run("control_bench", build.build("control", Control(size)), size)


@pytest.mark.parametrize("cols, batch_tiles", [(4, False), (16, True)], ids=["tile of one beat", "tile of two beats, of images"])
def test_the_sequencer_streams_pixels_in_its_documented_cycles(cols, batch_tiles):
    size = EngineConfig("bench", rows=4, cols=cols, weight_slots=4, accumulator_depth=16, batch_tiles=batch_tiles)
    build.run("sequencer_bench", build.build("sequencer", Sequencer(size)), size)


@pytest.mark.parametrize("rows, cols, lanes, parts", [
    (4, 8, 2, {}), (8, 8, 8, {}), (4, 8, 2, {"residual": False, "esb_output": False}), (4, 8, 2, {"requantizer": "shift"}),
    (4, 8, 2, {"digit_bits": 2}), (16, 4, 2, {"accumulator_depth": 256}), (4, 8, 4, {"function_table": True}),
    (4, 8, 4, {"function_table": True, "digit_bits": 2, "residual": False, "esb_output": False}),
], ids=["groups and planes", "one group", "neither residual nor ESB", "shifts", "narrow digits", "four accumulators a pixel",
        "function table", "function table of narrow digits"])
def test_the_drain_requantizes_pools_and_packs(rows, cols, lanes, parts):
    size = EngineConfig("bench", rows=rows, cols=cols, requantize_lanes=lanes, **{"accumulator_depth": 64, **parts})
    build.run("drain_bench", build.build("drain", Drain(size)), size)


def test_the_sequencer_streams_columns_of_the_channel_unit():
    size = EngineConfig("bench", rows=8, cols=16, weight_slots=4, accumulator_depth=16, channel_unit=8, batch_tiles=True)
    folder = build.build("channel_sequencer", Sequencer(size))
    build.run("channel_sequencer_bench", folder, size)
    build.run("sequencer_bench", folder, size)
