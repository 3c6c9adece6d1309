"""What a driver makes of an engine's rate, measured on an engine that keeps time and computes nothing."""

import numpy as np
import pytest

pytest.importorskip("pynq")

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.random import random_graph, random_images
from esbflow.reports import rates_table
from esbflow.runtime import pynq_driver
from esbhw import performance
from esbsim import board as module
from esbsim.paced import paced
from sim.benches import driver_rate

CONFIG = ENGINES["tiny4x4"]


@pytest.fixture(scope="module")
def graph():
    return random_graph(np.random.default_rng(3), layers=2, channels=4, size=5, kinds=("conv",))


def test_rates_are_a_batch_over_the_time_of_engine_and_host(graph):
    row = driver_rate.measure(graph, CONFIG, batch=2, repeats=2)
    assert row["engine_ms"] == row["cycles"] / 300_000 and row["host_ms"] > 0
    assert row["one_by_one"] == pytest.approx(2000 / (row["engine_ms"] + row["host_ms"]))
    assert 0 < row["end_to_end"] < 2000 / row["engine_ms"]
    assert module.board().make_simulator is module.simulate_engine  # of whoever loads an overlay next


@pytest.mark.parametrize("interrupt", [True, False])
@pytest.mark.filterwarnings("ignore:Interrupt irq not created")
def test_a_run_takes_the_cycles_that_it_was_told(graph, board, tmp_path, monkeypatch, interrupt):
    board.connect_interrupt(interrupt)
    monkeypatch.setattr(board, "make_simulator", paced(cycles=300_000, clock_mhz=300))
    driver = pynq_driver.open_engine(module.write_overlay(CONFIG, tmp_path))
    program = compile_graph(graph, CONFIG, batch=2)
    driver.load(program)
    images = random_images(np.random.default_rng(0), graph, 5)
    result = driver.run(images)
    assert result.cycles == 3 * 300_000 and result.runs == 3 and len(result.outputs) == 5
    assert driver_rate._seconds(CONFIG, program, images, 300_000, 1) > 3e-3
    driver.unload()


def test_a_run_on_slices_flushes_and_invalidates_what_the_host_writes_and_reads(graph, board, tmp_path, monkeypatch):
    config, moved = ENGINES["table32x32-w4-slices4"], {"flush": 0, "invalidate": 0}
    monkeypatch.setattr(board, "make_simulator", paced(cycles=1000, clock_mhz=300))
    driver = pynq_driver.open_engine(module.write_overlay(config, tmp_path))
    program = compile_graph(graph, config, batch=4)
    driver.load(program)
    for name in moved:
        def counted(bo, offset, address, nbytes, name=name, plain=getattr(board.ddr, name)):
            moved[name] += nbytes
            plain(bo, offset, address, nbytes)
        monkeypatch.setattr(board.ddr, name, counted)
    driver.run(random_images(np.random.default_rng(0), graph, 4))
    regions = program.meta["regions"]
    assert regions["workspace"] and moved == {"flush": 4 * regions["input"], "invalidate": 4 * (regions["output"] + regions["log"])}
    driver.unload()


def test_the_planning_clock_is_the_one_of_the_engines_page():
    assert rates_table.PLANNING_MHZ == performance.PLANNING_MHZ
