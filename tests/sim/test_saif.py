"""Switching activity of a run: the format's rules, and counts against a hand-written VCD and against the engine's counters."""

import re

import numpy as np
import pytest

from esbflow.commands.doctor_board import small_network
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.runtime.engine import Engine
from esbsim import saif
from esbsim.engine import simulate_engine
from esbsim.transport import SimulatedTransport, memory

VCD = """$version by hand $end
$timescale 1ps $end
$scope module TOP $end
$scope module top $end
$var wire 1 ! clk $end
$var wire 3 " count [2:0] $end
$scope module inner $end
$var wire 1 # en $end
$upscope $end
$upscope $end
$upscope $end
$enddefinitions $end
#0
0!
b000 "
x#
#5
1!
b1 "
#10
0!
b110 "
1#
#20
"""


def parse(text):
    """Nested lists of a SAIF; raises where parentheses do not match."""
    tokens = re.findall(r'"[^"]*"|\(|\)|[^\s()]+', text)
    stack = [[]]
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    assert len(stack) == 1
    return stack[0]


def nets(tree, path=()):
    """{(instance path, net): {T0, T1, TX, TC, IG}}"""
    found = {}
    for part in tree[2:]:
        if part[0] == "NET":
            found.update({(path, net[0]): {key: int(value) for key, value in net[1:]} for net in part[1:]})
        else:
            found.update(nets(part, (*path, part[1])))
    return found


def read(path):
    root, = parse(path.read_text())
    head = {entry[0]: entry[1:] for entry in root[1:] if entry[0] != "INSTANCE"}
    instance, = (entry for entry in root[1:] if entry[0] == "INSTANCE")
    return root[0], head, nets(instance)


def test_a_hand_written_vcd_gives_the_times_and_toggles_of_each_bit(tmp_path):
    (tmp_path / "run.vcd").write_text(VCD)
    said = saif.convert(tmp_path / "run.vcd", tmp_path / "activity.saif")
    kind, head, found = read(tmp_path / "activity.saif")
    assert kind == "SAIFILE" and head["SAIFVERSION"] == ['"2.0"'] and head["DIRECTION"] == ['"backward"']
    assert head["TIMESCALE"] == ["1", "ps"] and head["DURATION"] == ["20"] and head["DIVIDER"] == ["/"]
    assert found[(), "clk"] == {"T0": 15, "T1": 5, "TX": 0, "TC": 2, "IG": 0}
    assert found[(), r"count\[0\]"] == {"T0": 15, "T1": 5, "TX": 0, "TC": 2, "IG": 0}
    assert found[(), r"count\[2\]"] == {"T0": 10, "T1": 10, "TX": 0, "TC": 1, "IG": 0}
    assert found[("inner",), "en"] == {"T0": 0, "T1": 10, "TX": 10, "TC": 0, "IG": 0}
    assert said == {"nets": 5, "toggles": 6, "duration": 20}


def test_the_activity_of_a_run_is_whole(tmp_path):
    config, graph = ENGINES["tiny4x4"], small_network()
    simulator = simulate_engine(config, memory(8), trace=tmp_path / "run.vcd")
    driver = Engine(SimulatedTransport(simulator))
    driver.load(compile_graph(graph, config))
    result = driver.run(np.zeros((1, *graph.input.shape), np.uint8))
    simulator.trace(None)
    said = saif.convert(tmp_path / "run.vcd", tmp_path / "activity.saif")
    _, head, found = read(tmp_path / "activity.saif")
    duration = int(head["DURATION"][0])
    assert len(found) >= 10_000 and all(net["T0"] + net["T1"] + net["TX"] == duration for net in found.values())
    clock = next(net for (path, name), net in found.items() if name == "ap_clk")
    assert clock["TC"] // 2 >= result.cycles and said["toggles"] > clock["TC"]


@pytest.mark.parametrize("text", ["", "no vcd\n", "$timescale 1ps $end\n"])
def test_a_file_that_is_no_vcd_is_refused_and_nothing_is_written(tmp_path, text):
    (tmp_path / "bad.vcd").write_text(text)
    with pytest.raises(ValueError, match="is not a VCD of a run"):
        saif.convert(tmp_path / "bad.vcd", tmp_path / "activity.saif")
    assert not (tmp_path / "activity.saif").exists()
