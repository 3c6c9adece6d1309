"""The tables of large engines in docs/networks.md: what was asked is reached, and rates are of the rows' own cycles."""

from pathlib import Path

import numpy as np
import pytest

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.ddr_cycles import count_shared_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.errors import BadValue
from esbflow.graph.random import random_graph
from esbflow.reports import lanes_table, large_engines, rates_table
from esbflow.reports.marks import filled

PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
PLAN = {"cycles_per_image": 600_000, "utilization": 0.75, "lost": {"edge": 90_000}}


def cells(line):
    return [cell.strip(" `").replace(",", "") for cell in line.strip("|").split("|")]


def rows(mark):
    return [cells(line) for line in filled(PAGE, mark).splitlines()[2:]]


def test_the_page_reaches_what_was_asked():
    table = {(network, name, int(batch)): float(use) for network, name, _, batch, _, use, _ in rows(lanes_table.MARK)}
    assert list(table) == list(lanes_table.ROWS)
    found = rows(lanes_table.ASKED_MARK)
    assert len(found) == len(lanes_table.ASKED)
    for (network, name, batch, least), line in zip(lanes_table.ASKED, found):
        assert line[:6] == [network, line[1], str(batch), str(least), str(table[network, name, batch]), name]
        assert table[network, name, batch] >= least and line[6] in ("RTL", "model")


def test_the_page_has_every_rate():
    found = rows(rates_table.MARK)
    assert [(line[0], line[1], int(line[2])) for line in found] == list(rates_table.ROWS)
    for line in found:
        ideal, shared, driver = (float(line[k]) for k in (3, 6, 10))
        assert ideal >= shared >= driver > 0 and line[11] == str(rates_table.PUBLISHED[line[0]])


@pytest.mark.parametrize("changes, known", [({}, "RTL"), ({"cycles": 599_999}, "model"), ({"batch": 2}, "model"),
                                            ({"network": "resnet20"}, "model")])
def test_a_share_is_known_by_the_rtl_if_a_run_took_the_model_s_cycles(monkeypatch, changes, known):
    monkeypatch.setattr(lanes_table, "plan_of", lambda *row: PLAN)
    config = large_engines.config_of("table64x64-w4")
    run = {"network": "resnet18", "config": config.to_dict(), "batch": 1, "cycles": 600_000, **changes}
    line = lanes_table.asked_row("resnet18", "table64x64-w4", 1, 70, [run])
    assert line == f"| resnet18 | 4,096 | 1 | 70 | 75.0 | `table64x64-w4` | {known} |"


def test_a_rate_is_refused_if_the_driver_was_measured_with_other_cycles(monkeypatch):
    monkeypatch.setattr(rates_table, "plan_of", lambda *row: PLAN)
    monkeypatch.setattr(rates_table, "bytes_per_cycle", lambda *row: 20)
    driver = {"cycles": 1_200_000, "host_ms": 0.5, "end_to_end": 400}
    assert cells(rates_table.row("resnet18", "table64x64-w4", 2, driver))[3:] == [
        "500", "20", "75.0", "500", "75.0", "4.00", "0.50", "400", "499"]
    with pytest.raises(BadValue, match="1200001 cycles of resnet18"):
        rates_table.row("resnet18", "table64x64-w4", 2, {**driver, "cycles": 1_200_001})


def test_bytes_are_those_that_a_slow_memory_takes_its_cycles_for():
    graph = random_graph(np.random.default_rng(4), layers=4, channels=8, size=9)
    program = compile_graph(graph, ENGINES["tiny4x4"], 2)
    ideal, slow = count_cycles(program, 40).total, count_shared_cycles(program, 40, 1).total
    assert 0.8 < rates_table.moved(program) * ideal / slow < 1.05
