"""A run written down, played back, and played on the RTL; and what `esbflow doctor --board` says of boards that fail."""

import base64
import json
import zlib

import numpy as np
import pytest

from esbflow.commands import doctor_board
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.execute import execute
from esbflow.registers import REGISTERS
from esbflow.runtime.engine import Engine
from esbflow.runtime.recording import Recorder, RecordingError, Replay, load, play, unpacked
from esbsim.engine import simulate_engine
from esbsim.simulator import MemoryTiming
from esbsim.transport import SimulatedTransport, memory

CONFIG = ENGINES["tiny4x4"]


def transport(base=0, latency=20):
    return SimulatedTransport(simulate_engine(CONFIG, memory(8), base, MemoryTiming(latency=latency)))


@pytest.fixture(scope="module")
def network():
    graph = doctor_board.small_network()
    images = np.random.default_rng(3).integers(0, 256, (2, *graph.input.shape), dtype=np.uint8)
    return graph, compile_graph(graph, CONFIG), images


@pytest.fixture(scope="module")
def recording(network, tmp_path_factory):
    """The file of a whole run, and the run's outputs."""
    path = tmp_path_factory.mktemp("recording") / "run.jsonl"
    recorder = Recorder(transport(), path, note="tiny4x4 in simulation")
    driver = Engine(recorder)
    driver.load(network[1])
    outputs = driver.run(network[2]).outputs
    driver.unload()
    recorder.close()
    assert (outputs == execute(network[0], network[2])).all()
    return path, outputs


def test_a_replay_answers_as_the_board_did(recording, network):
    replay = Replay(recording[0])
    driver = Engine(replay)
    driver.load(network[1])
    driver_outputs = driver.run(network[2]).outputs
    driver.unload()
    assert (driver_outputs == recording[1]).all() and replay.finished


def test_another_call_is_named_at_the_first_difference(recording, network):
    driver = Engine(Replay(recording[0]))
    driver.load(network[1])
    with pytest.raises(RecordingError, match=r"^access \d+ is a flush .*, and in the recording it is \{'op': 'flush'"):
        driver.run(np.zeros_like(network[2]))


def test_a_recording_plays_on_the_rtl_elsewhere_in_memory(recording):
    assert play(load(recording[0]), transport(base=0x8_0000_0000, latency=45)) == []


def test_what_a_board_read_wrong_is_found_by_playing(recording, tmp_path):
    lines = [json.loads(line) for line in recording[0].read_text().splitlines()]
    at = next(i for i, entry in enumerate(lines) if entry["op"] == "invalidate")  # the outputs; the log comes after them
    data = unpacked(lines[at]["data"]).copy()
    data[:3] ^= 1
    lines[at]["data"] = base64.b64encode(zlib.compress(data.tobytes())).decode()
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    said = play(load(path), transport())
    assert len(said) == 1 and f"access {at}:" in said[0] and ": 3 of" in said[0]


@pytest.mark.parametrize("text, words", [
    ("", "is not a recording"), ('{"op": "read"}\n', "is not a recording"), ('{"op": "header", "format": 9}\n', "of format 9"),
    ('{"op": "header", "format": 1}\nrubbish\n{"op": "wait"}\n', "line 2 of .* is damaged")])
def test_a_damaged_recording_is_refused(tmp_path, text, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(RecordingError, match=words):
        load(path)


def test_a_recording_that_a_crash_cut_is_read_up_to_there(recording, tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text(recording[0].read_text()[:-20])
    assert len(load(path)) == len(load(recording[0])) - 1


# -- doctor --board -----------------------------------------------------------------------------------------------------
class Board:
    """A transport around the simulated one, with a cache that only flush and invalidate reach through, and faults."""

    def __init__(self, scratch_stuck=False, deaf=False):
        self._transport, self._stuck, self._deaf = transport(), scratch_stuck, deaf
        self.wait_for_interrupt = self._transport.wait_for_interrupt

    def read(self, offset):
        value = self._transport.read(offset)
        return value & 0xFFFF if self._stuck and offset == REGISTERS["SCRATCH"].offset else value

    def write(self, offset, value):
        self._transport.write(offset, value)

    def allocate(self, size):
        if self._deaf:
            raise MemoryError("CMA is exhausted")
        inner = self._transport.allocate(size)
        return Cached(inner, size)


class Cached:
    def __init__(self, inner, size):
        self._inner, self.address, self.array = inner, inner.address, np.zeros(size, np.uint8)

    def flush(self):
        self._inner.array[:] = self.array

    def invalidate(self):
        self.array[:] = self._inner.array

    def free(self):
        self._inner.free()


def test_a_healthy_board_passes_and_the_cache_is_noticed():
    entries = {entry["check"]: entry for entry in doctor_board.check_engine(Board(), CONFIG)}
    assert all(entry["ok"] for entry in entries.values()), entries
    assert entries["a flush left out"]["needed"].startswith("not coherent")
    assert {"program beats", "activation beats", "weight beats", "store beats"} <= set(entries)
    coherent = {entry["check"]: entry for entry in doctor_board.check_engine(transport(), CONFIG)}
    assert coherent["a flush left out"]["needed"] == "coherent, or not cached"


@pytest.mark.parametrize("faults, config, check, words", [
    ({"scratch_stuck": True}, CONFIG, "scratch register", "reads back wrong: 0xffffffff"),
    ({}, ENGINES["small8x16"], "configuration", "another engine than small8x16"),
    ({"deaf": True}, CONFIG, "network", "CMA is exhausted")])
def test_a_broken_board_is_named(faults, config, check, words):
    failed = [entry for entry in doctor_board.check_engine(Board(**faults), config) if not entry["ok"]]
    assert failed and failed[0]["check"] == check and words in failed[0]["needed"] + failed[0]["fix"]
