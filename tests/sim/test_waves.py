"""Waves of a run: what was asked for, with the names and the clock of the engine, and nothing else."""

import re

import numpy as np
import pytest

from esbflow.cli import main
from esbflow.commands.doctor_board import small_network
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.errors import BadValue
from esbflow.graph.file import save
from esbflow.runtime.engine import Engine
from esbsim.engine import simulate_engine
from esbsim.transport import SimulatedTransport, memory
from esbsim.waves import Waves

CONFIG = ENGINES["tiny4x4"]
PERIOD = 1_000_000 // CONFIG.clock_mhz  # ps


def signals(path) -> tuple:
    """({scope: names}, times) of a VCD file, whose every change is one of a declared signal."""
    scopes, found, times, codes = [], {}, [], set()
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            times.append(int(line[1:]))
        elif match := re.match(r"\s*\$scope \w+ (\S+)", line):
            scopes.append(match[1])
        elif "$upscope" in line:
            scopes.pop()
        elif match := re.match(r"\s*\$var \w+\s+\d+ (\S+) (\S+)", line):
            codes.add(match[1])
            found.setdefault(".".join(scopes), set()).add(match[2])
        elif match := re.match(r"(?:[01xz]|b[01xz]+ )(\S+)$", line):
            assert match[1] in codes
    return found, times


def test_a_window_of_two_blocks(tmp_path):
    waves = Waves(tmp_path / "run.vcd", (600, 700), ("drain", "array.column_0"))
    simulator = simulate_engine(CONFIG, memory(8), trace=waves)
    engine, graph = Engine(SimulatedTransport(simulator)), small_network()
    engine.load(compile_graph(graph, CONFIG))
    result = engine.run(np.zeros((1, *graph.input.shape), np.uint8))
    simulator.trace(None)
    found, times = signals(tmp_path / "run.vcd")
    assert simulator.cycles > 700 and result.cycles
    assert times[0] == 600 * PERIOD and times == sorted(times) and times[-1] < 700 * PERIOD
    within = [scope for scope in found if found[scope]]
    assert within and all(re.search(rf"{CONFIG.module_name}\.(drain|array\.column_0)(\.|$)", scope) for scope in within)
    assert {scope.split(".")[2] for scope in within} == {"drain", "array"}


def test_the_outputs_are_those_without_waves(tmp_path, capsys):
    save(small_network(), tmp_path / "graph.npz")
    images = np.random.default_rng(0).integers(0, 256, (2, *small_network().input.shape), np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    command = ["run", str(tmp_path / "graph.npz"), "--engine", "tiny4x4", "--backend", "rtl", "--data", str(tmp_path / "images.npz"),
               "--waves", str(tmp_path / "deep" / "run.vcd"), "--waves-cycles", ":50", "--json"]
    assert main(command) == 0
    assert '"mismatches": 0' in capsys.readouterr().out
    found, times = signals(tmp_path / "deep" / "run.vcd")
    assert times[-1] == 49 * PERIOD + PERIOD // 2 and len(found) > 50


@pytest.mark.parametrize("cycles", [(5, 5), (-1, 3), (9, 2)])
def test_cycles_that_are_no_range_are_refused(tmp_path, cycles):
    with pytest.raises(BadValue, match=f"^waves are written from a first cycle to a later one, not from {cycles[0]} to {cycles[1]}$"):
        simulate_engine(CONFIG, memory(8), trace=Waves(tmp_path / "run.vcd", cycles))


def test_an_unknown_block_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(BadValue, match=r"^no block named 'drian'; known: .*; did you mean drain\?$"):
        simulate_engine(CONFIG, memory(8), trace=Waves(tmp_path / "run.vcd", blocks=("drian",)))
    with pytest.raises(BadValue, match=r"^no block named 'array\.colum_0'"):
        simulate_engine(CONFIG, memory(8), trace=Waves(tmp_path / "run.vcd", blocks=("array.colum_0",)))


@pytest.mark.parametrize("options, sentence", [
    (["--waves-cycles", "1:2"], "--waves-cycles and --waves-blocks choose from --waves; give it too"),
    (["--waves", "run.vcd"], "--waves needs --backend rtl"),
    (["--backend", "rtl", "--waves", "run.vcd", "--waves-cycles", "12"], "--waves-cycles takes FIRST:LAST, such as 1000:3000, not 12")])
def test_options_that_do_not_fit_are_refused(tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    save(small_network(), "graph.npz")
    np.savez("images.npz", images=np.zeros((1, *small_network().input.shape), np.uint8))
    assert main(["run", "graph.npz", "--engine", "tiny4x4", "--data", "images.npz", *options]) == 2
    assert sentence in capsys.readouterr().err
