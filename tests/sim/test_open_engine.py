"""`open_engine`: .bit, .hwh and .json of one build, or a sentence that says what differs."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("pynq")

from esbflow import handoff
from esbflow.engines import ENGINES
from esbflow.errors import UserError
from esbflow.runtime import pynq_driver
from esbflow.runtime.errors import EngineMissing
from esbflow.runtime.pynq_driver import open_engine
from esbhw.boards import BOARDS
from esbhw.hwh import hwh
from esbsim.board import write_overlay

CONFIG = ENGINES["tiny4x4"]
OTHER = replace(CONFIG, name="other", queue_depth=4)


def test_an_engine_of_your_own_is_bound_and_read(tmp_path):
    mine = replace(CONFIG, name="my-engine")  # the same hardware under another name: another core
    driver = open_engine(write_overlay(mine, tmp_path))
    assert driver.engine.hash == mine.hash and type(driver).__name__ == "EsbEngineDriver"


def test_a_stale_hwh_is_named_before_anything_is_loaded(tmp_path):
    bit = write_overlay(CONFIG, tmp_path)
    bit.with_suffix(".hwh").write_text(hwh(OTHER))
    with pytest.raises(handoff.HandoffError, match=r"engine.hwh is not of the build that engine.json describes \(it has another core "
                                                   rf"esbflow.org:user:esb_other:1.0 .*configuration hash {OTHER.hash:016x} and not"):
        open_engine(bit)


@pytest.mark.parametrize("suffix", [".hwh", ".json", ".bit"])
def test_a_missing_file_is_named(tmp_path, suffix):
    bit = write_overlay(CONFIG, tmp_path)
    bit.with_suffix(suffix).unlink()
    with pytest.raises(handoff.HandoffError, match=rf"lacks engine{suffix}: an overlay is a .bit, a .hwh and a .json of one name$"):
        open_engine(bit)


@pytest.mark.parametrize("suffix, message", [(".hwh", "engine.hwh cannot be read as a .hwh"), (".bit", "engine.bit is damaged"),
                                             (".json", "engine.json is not an engine.json as")])
def test_a_truncated_file_is_named(tmp_path, suffix, message):
    path = write_overlay(CONFIG, tmp_path).with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=message):
        open_engine(tmp_path / "engine.bit")


def test_a_machine_without_a_board_is_told_where_to_go(tmp_path, monkeypatch):
    """What PYNQ says there: a RuntimeError like any other."""
    def overlay(*_, **__):
        raise RuntimeError("No Devices Found")

    bit = write_overlay(CONFIG, tmp_path)
    monkeypatch.setattr(pynq_driver.pynq, "Overlay", overlay)
    with pytest.raises(EngineMissing, match=r"^PYNQ finds no board on this machine; run this on a board with PYNQ's image, or"):
        open_engine(bit)


def test_the_bitstream_of_another_build_is_named(tmp_path):
    bit = write_overlay(CONFIG, tmp_path)
    there = bit.read_bytes()
    write_overlay(OTHER, tmp_path)
    bit.write_bytes(there)
    with pytest.raises(EngineMissing, match=rf"^the engine in the FPGA is {CONFIG.hash:016x}, and .* is of other, {OTHER.hash:016x}"):
        open_engine(bit)


def test_a_json_of_another_interface_is_refused(tmp_path):
    bit = write_overlay(CONFIG, tmp_path)
    path = bit.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "interface_version": 1}))
    with pytest.raises(handoff.HandoffError, match="is of interface version 1, and this is version"):
        open_engine(bit)


@pytest.mark.parametrize("name", [name for name, board in BOARDS.items() if board.flow == "vivado"])
def test_every_boards_handoff_is_what_its_table_says(tmp_path, name):
    board = BOARDS[name]
    (tmp_path / "engine.hwh").write_text(hwh(CONFIG, board))
    found = handoff.read(tmp_path / "engine.hwh")
    assert (found.address, found.range, found.hash) == (board.registers, 4096, f"{CONFIG.hash:016x}")
    assert found.interrupt == "axi_intc_0/intr" and set(found.port_bits.values()) == {board.port_bits}
    assert [port for _, port in sorted(found.memory, key=lambda pair: pair[1])] == list(board.memory_ports[:3])
    assert handoff.differences(found, found) == []
    narrow = replace(found, port_bits={key: 32 for key in found.port_bits}, address=0x8000_0000)
    said = handoff.differences(narrow, found)
    assert said[0] == f"address: 0x80000000, expected 0x{board.registers:x}" and "32 bits, expected" in said[1]
