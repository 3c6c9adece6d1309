"""The way that large engines are simulated, on a small one; what `make bench` runs at full size."""

import numpy as np
import pytest

from esbflow.graph.random import random_graph
from esbsim import engine as engine_module
from sim.benches import network_on_rtl
from tests.end_to_end.conftest import SLICES


@pytest.fixture(scope="module")
def row():
    graph = random_graph(np.random.default_rng(3), layers=3, channels=8, size=9, kinds=("conv", "residual"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "LARGE_LANES", SLICES.macs_per_cycle)
        assert engine_module.engine_library(SLICES).name.startswith(f"{SLICES.module_name}-")
        return network_on_rtl.measure(graph, SLICES, megabytes=16)


def test_a_large_engine_is_made_of_engine_v_and_equals_graph_and_cycle_model(row):
    assert network_on_rtl.is_exact(row), row
    assert row["batch"] == SLICES.slices and row["values"] > 0 and 0 < row["utilization"] < 1
    assert row["shared_cycles"] >= row["cycles"]


def test_a_single_wrong_value_cycle_or_layer_is_a_difference(row):
    for change in (dict(mismatches=1), dict(shared_mismatches=1), dict(cycles=row["cycles"] + 1), dict(layers_that_differ=["conv"]),
                   dict(shared_cycles=row["shared_cycles"] + 1), dict(shared_layers_that_differ=["conv"])):
        assert not network_on_rtl.is_exact({**row, **change})


@pytest.mark.parametrize("lanes, made", [(SLICES.macs_per_cycle, (SLICES.module_name, {"trace": False, "large": True})),
                                         (SLICES.macs_per_cycle + 1, (engine_module.TOP, {}))])
def test_engines_of_fewer_lanes_are_one_flat_module(monkeypatch, lanes, made):
    monkeypatch.setattr(engine_module, "build", lambda text, top, cache_dir, **flags: (top, flags))
    monkeypatch.setattr(engine_module, "LARGE_LANES", lanes)
    assert engine_module.engine_library(SLICES) == made
