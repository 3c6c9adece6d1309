"""The Vivado steps under tclsh, against a model of Vivado's commands. Nothing here has run Vivado."""

import json
import os
import re
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from esbflow import handoff
from esbflow.cli import main
from esbflow.engines import ENGINES
from esbhw import bitstream, generate, vivado_flow, vivado_reports
from esbhw.boards import BOARDS, board
from esbhw.flow_error import FlowError

HERE = Path(__file__).parent
CONFIG = ENGINES["tiny4x4"]
MHZ = 333
VIVADO_BOARDS = [name for name, b in BOARDS.items() if b.flow == "vivado"]
pytestmark = pytest.mark.skipif(shutil.which("tclsh") is None, reason="tclsh is not installed")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{(target, compute clock): folder of what generate.write gives}, made once."""
    folders = {}
    for target, mhz in (("xilinx", None), ("generic", None), ("xilinx", MHZ), ("generic", MHZ)):
        folders[target, mhz] = tmp_path_factory.mktemp(target)
        generate.write(CONFIG, folders[target, mhz], target, mhz)
    return folders


@pytest.fixture
def prepared(written, tmp_path, monkeypatch):
    """Makes the folder that a board's tools work in."""
    def copies(config, folder, target="xilinx", compute_mhz=None):
        return [Path(shutil.copy(path, folder)) for path in written[target, compute_mhz].iterdir()]

    def prepare(name="zcu102", compute_mhz=None):
        monkeypatch.setattr(vivado_flow.generate, "write", copies)
        folder = tmp_path / name
        bitstream.prepare(CONFIG, board(name), folder, compute_mhz=compute_mhz)
        return folder
    return prepare


def steps(folder, names=vivado_flow.STEPS, **environment):
    """Runs steps under the model; returns what they said, and the last exit status."""
    said = ""
    for name in names:
        result = subprocess.run(["tclsh", str(HERE / "model.tcl"), name], cwd=folder, text=True, capture_output=True, check=False,
                                env={**os.environ, **environment})
        said += result.stdout + result.stderr
        if result.returncode:
            return said, result.returncode
    return said, 0


@pytest.fixture
def vivado(tmp_path, monkeypatch):
    """A program `vivado` on the PATH that is the model; its argument of -source is the step."""
    program = tmp_path / "bin" / "vivado"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nfor last; do :; done\nexec tclsh {HERE / "model.tcl"} "$last"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize("name", VIVADO_BOARDS)
def test_the_steps_run_for_every_board(prepared, name):
    folder = prepared(name)
    said, status = steps(folder)
    assert status == 0, said
    assert "esbflow: built tiny4x4.bit" in said and f"written for {vivado_flow.VERSIONS}" in said
    assert sorted(p.name for p in (folder / "work").glob("tiny4x4.*")) == ["tiny4x4.bit", "tiny4x4.hwh"]


@pytest.mark.parametrize("name", VIVADO_BOARDS)
def test_the_steps_give_every_board_a_compute_clock(prepared, name):
    folder = prepared(name, MHZ)
    said, status = steps(folder)
    assert status == 0 and "esbflow: built tiny4x4.bit" in said, said
    assert not handoff.differences(handoff.read(folder / "work" / "tiny4x4.hwh"), handoff.read(folder / "expected.hwh"))
    assert json.loads((folder / "board.json").read_text())["compute_clock_mhz"] == MHZ


@pytest.mark.parametrize("name, file, old, new, words", [
    ("zcu102", "design.tcl", "wire $ps/$esb(compute_clock_pin) $esb(cell)/compute_clk", "", "clock esb_engine_0/compute_clk is not connected"),
    ("zcu102", "settings.tcl", "PSU__FPGA_PL1_ENABLE} {1}", "PSU__FPGA_PL1_ENABLE} {0}", "cell ps has no pin pl_clk1"),
    ("pynq-z2", "settings.tcl", "PCW_EN_CLK1_PORT} {1}", "PCW_EN_CLK1_PORT} {0}", "cell ps has no pin FCLK_CLK1"),
    ("zcu102", "settings.tcl", "{engine_crossings.xdc}", "{other.xdc}", "there is no file"),
    ("zcu102", "package.tcl", "PROCESSING_ORDER LATE", "PROCESSING_TIME LATE", "a file has no property PROCESSING_TIME"),
    ("zcu102", "engine.v", 'clock:1.0 compute_clk CLK"', 'clock:1.0 other CLK"', "no interface compute_clk"),
])
def test_the_model_refuses_a_compute_clock_that_is_not_whole(prepared, name, file, old, new, words):
    path = prepared(name, MHZ) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    said, status = steps(path.parent)
    assert status == 1 and words in said, said[-500:]


def test_the_readme_of_a_build_says_its_compute_clock(prepared, vivado, tmp_path):
    prepared(compute_mhz=MHZ)
    figures = bitstream.build(CONFIG, board("zcu102"), tmp_path / "work", tmp_path / "out", say=lambda text: None, compute_mhz=MHZ)
    text = (Path(figures["folder"]) / "README.md").read_text()
    assert "ENGINE=tiny4x4 ARGUMENTS='--compute-clock 333'`" in text and "clock 250 MHz, compute clock 333 MHz" in text


def test_the_model_accepts_a_public_sequence(tmp_path):
    said, status = steps(tmp_path, [str(HERE / "public_sequence.tcl")])
    assert (status, said.strip()) == (0, "public sequence accepted")


FAULTS = [
    ("design.tcl", "cell reset [core xilinx.com ip proc_sys_reset]", "", "there is no object cell|reset"),
    ("design.tcl", "CONFIG.C_IRQ_CONNECTION", "CONFIG.C_IRQ_KIND", "has no parameter C_IRQ_KIND"),
    ("design.tcl", "xilinx.com:bd_rule:$esb(processor)", "xilinx.com:rule:ps", "there is no rule"),
    ("design.tcl", "    wire $clock memory_$index/aclk\n", "", "clock memory_0/aclk is not connected"),
    ("design.tcl", "wire reset/interconnect_aresetn registers/aresetn\n", "", "reset registers/aresetn is not connected"),
    ("design.tcl", "bus memory_$index/M00_AXI $ps/$port", "bus memory_$index/S00_AXI $ps/$port", "are both slaves"),
    ("design.tcl", "exclude_bd_addr_seg -target_address_space $space $segment", "", "LPS_OCM has no address in esb_engine_0/m_axi_"),
    ("design.tcl", "-range 0x10000", "-range 0x18000", "a range of 98304 bytes"),
    ("settings.tcl", "engine_address) {0xA0000000}", "engine_address) {0xA0000800}", "is not aligned to its 4096 bytes"),
    ("settings.tcl", "engine_address) {0xA0000000}", "engine_address) {0xA0010000}", "overlaps esb_engine_0/s_axi/reg0"),
    ("settings.tcl", "PSU__USE__S_AXI_GP3} {1}", "PSU__USE__S_AXI_GP3} {0}", "cell ps has no pin saxihp1_fpd_aclk"),
    ("settings.tcl", "PSU__USE__M_AXI_GP1} {0}", "PSU__USE__M_AXI_GP1} {1}", "clock ps/maxihpm1_fpd_aclk is not connected"),
    ("package.tcl", "ipx::associate_bus_interfaces -busif $bus -clock ap_clk $core", "", "has no clock"),
    ("package.tcl", "    set_property description $description $register\n", "", "register ID has no description"),
    ("package.tcl", "ipx::check_integrity $core\n", "", "the core was not checked"),
    ("package.tcl", "set_property usage register $block", "set_property kind register $block", "a block has no property kind"),
    ("engine.v", 'aximm:1.0 m_axi_weights RLAST"', 'aximm:1.0 m_axi_weights RNONE"', "m_axi_weights has no port for RLAST"),
    ("engine.v", "module esb_tiny4x4(", "module other(", "the files have no module esb_tiny4x4"),
    ("build.tcl", "Performance_ExploreWithRemap", "Performance_Best", "there is no strategy Performance_Best"),
    ("build.tcl", "run synth_1 -jobs $esb(jobs)\n", "", "synthesis has not run"),
]


@pytest.mark.parametrize("file, old, new, words", FAULTS, ids=[fault[3][:40] for fault in FAULTS])
def test_the_model_refuses_what_vivado_would(prepared, file, old, new, words):
    path = prepared() / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    said, status = steps(path.parent)
    assert status == 1 and words in said, said[-500:]


def test_the_whole_build_publishes_one_stem(prepared, vivado, tmp_path, written):
    prepared()
    work, out = tmp_path / "work", tmp_path / "bitstreams"
    figures = bitstream.build(CONFIG, board("zcu102"), work, out, say=lambda text: None)
    folder = out / "zcu102" / "tiny4x4"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "figures.json", "tiny4x4.bit", "tiny4x4.hwh", "tiny4x4.json"]
    assert (figures["wns_ns"], figures["lut"], figures["dsp"], figures["bram36"]) == (0.104, 16102, 0, 39.5)
    assert handoff.check_overlay(folder / "tiny4x4.bit") == CONFIG
    assert [p.name for p in out.rglob("*") if p.name.startswith(".") or ".new" in p.name or ".old" in p.name] == []


@pytest.mark.parametrize("fault, words", [
    ("timing", r"^timing is missed: worst setup slack -0.104 ns, .*; ask for a slower clock with --clock-mhz$"),
    ("dsp", r"^Vivado used 2 DSP blocks, and this engine must have none$"),
    ("synth", r"^Vivado stopped in build.tcl: .*synth_1 failed \(synth_design ERROR\)"),
    ("licence", r"^Vivado stopped in build.tcl: there is no licence for xczu9eg-ffvb1156-2-e \(the ZU9EG needs Vivado's Ent"),
    ("nobit", r"^Vivado stopped in build.tcl: .*the build gave no bitstream"),
    ("part", r"^Vivado stopped in package.tcl: .*this Vivado has no part xczu9eg"),
    ("hwh", r"^the build's .hwh is not what the driver expects: configuration hash: 0\w{16}, expected \w{16}$"),
])
def test_a_failed_build_publishes_nothing_and_keeps_the_last_one(prepared, vivado, tmp_path, monkeypatch, fault, words):
    prepared()
    earlier = tmp_path / "bitstreams" / "zcu102" / "tiny4x4" / "tiny4x4.bit"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("of an earlier build")
    monkeypatch.setenv("MODEL_FAULT", fault)
    with pytest.raises(FlowError, match=words):
        bitstream.build(CONFIG, board("zcu102"), tmp_path / "work", tmp_path / "bitstreams", say=lambda text: None)
    assert earlier.read_text() == "of an earlier build" and [p.name for p in earlier.parent.parent.iterdir()] == ["tiny4x4"]


@pytest.mark.parametrize("arguments, words", [
    (["--board", "zcu103"], "no board named 'zcu103'; known: zcu102, zcu104"),
    (["--board", "zcu102", "--engine", "huge"], "no engine named 'huge'; known: tiny4x4"),
    (["--board", "ultra96", "--engine", "table128x128-w4", "--dry-run"], r"does not fit Avnet Ultra96-V2: .*; the largest named engine that fits is"),
    (["--board", "pynq-z2", "--engine", "table128x128-w4", "--dry-run"],
     r"does not fit TUL PYNQ-Z2: at least [\d,]+ LUTs and .*; the largest named engine that may fit is \w"),
    (["--board", "ulx3s", "--engine", "large64x64"],
     r"does not fit Radiona ULX3S-85F: at least [\d,]+ LUTs and [\d,]+ flip-flops too many; the largest named engine that may fit is"),
    (["--board", "zcu102", "--engine", "tiny4x4"], "Vivado is not installed, or its settings64.sh was not sourced; --dry-run"),
    (["--board", "ulx3s", "--engine", "tiny4x4", "--clock-mhz", "50"], "ULX3S-85F runs at its oscillator's 25 MHz"),
])
def test_bad_input_is_one_sentence_and_writes_nothing(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vivado_flow.shutil, "which", lambda name: None)
    status = main(["bitstream", *arguments])
    said = capsys.readouterr().err
    assert status == 2 and re.search(words, said) and said.count("\n") == 1
    assert not (tmp_path / "bitstreams").exists()


def test_an_engine_with_more_masters_than_the_board_has_ports_is_refused(tmp_path):
    config = replace(ENGINES["base16x16"], weight_path_beats=4, weight_ports=4, slices=2, activation_ports=2)
    with pytest.raises(ValueError, match="has 6 ports to memory and engine base16x16 7 masters; use an engine with fewer "
                                         "weight_ports or activation_ports"):
        vivado_flow.prepare(config, BOARDS["zcu102"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_part_that_is_too_small_is_refused_by_how_much():
    with pytest.raises(FlowError, match=r"^large64x64 does not fit Avnet Ultra96-V2: [\d,]+ LUTs and [\d,]+ flip-flops too many; "
                                        r"the largest named engine that fits is \S+$"):
        bitstream.check_size(ENGINES["large64x64"], board("ultra96"))
    own = replace(ENGINES["large64x64"], accumulator_depth=256)
    with pytest.raises(FlowError, match=r"^large64x64 does not fit Avnet Ultra96-V2: at least [\d,]+ LUTs and [\d,]+ flip-flops too "
                                        r"many by the area model; the largest named engine that fits is \S+$"):
        bitstream.check_size(own, board("ultra96"))
    bitstream.check_size(own, board("zcu102"))


# -- reports ------------------------------------------------------------------------------------------------------------
def test_reports_in_the_real_format_are_read():
    assert vivado_reports.timing((HERE / "reports" / "timing.rpt").read_text()) == {
        "wns_ns": 0.104, "tns_ns": 0.0, "whs_ns": 0.011, "wpws_ns": 1.468, "failing_endpoints": 0, "endpoints": 48211}
    assert vivado_reports.utilization((HERE / "reports" / "utilization.rpt").read_text()) == {
        "lut": 16102, "lutram": 1882, "ff": 19877, "latches": 0, "bram36": 39.5, "uram": 0, "dsp": 0}
    assert vivado_reports.power((HERE / "reports" / "power.rpt").read_text()) == {
        "total_w": 3.912, "dynamic_w": 3.201, "static_w": 0.711, "confidence": "Medium"}


def test_reports_of_7_series_have_slices_and_no_ultra_ram():
    text = ("| Slice LUTs                 | 37302 |     0 |     53200 | 70.12 |\n|   LUT as Memory            |  7437 |     0 |     17400 "
            "| 42.74 |\n| Slice Registers            | 45101 |     0 |    106400 | 42.39 |\n|   Register as Latch        |     0 |     "
            "0 |    106400 |  0.00 |\n| Block RAM Tile    |  124 |     0 |       140 | 88.57 |\n| DSPs           |    0 |     0 |\n")
    assert vivado_reports.utilization(text) == {"lut": 37302, "lutram": 7437, "ff": 45101, "latches": 0, "bram36": 124.0, "uram": 0,
                                                "dsp": 0}


@pytest.mark.parametrize("change, words", [
    (("0.104        0.000                      0                48211", "   NA           NA                     NA                    0"),
     "no constrained path"), (("| Design Timing Summary", "| Other"), "has no Design Timing Summary")])
def test_a_report_without_a_clock_is_no_success(change, words):
    with pytest.raises(FlowError, match=words):
        vivado_reports.timing((HERE / "reports" / "timing.rpt").read_text().replace(*change))


def test_a_missing_row_is_an_error_and_not_a_zero():
    text = (HERE / "reports" / "utilization.rpt").read_text().replace("| DSPs ", "| DSP48 ")
    with pytest.raises(FlowError, match="no row for dsp"):
        vivado_reports.utilization(text)


# -- settings -----------------------------------------------------------------------------------------------------------
def test_the_settings_are_the_registers_and_the_configuration(prepared):
    folder = prepared("pynq-z2")
    script = 'source settings.tcl; puts [llength $esb(registers)]; puts [lindex $esb(registers) 7]; puts $esb(processor_settings)'
    (folder / "show.tcl").write_text(script)
    lines = subprocess.run(["tclsh", "show.tcl"], cwd=folder, text=True, capture_output=True, check=True).stdout.splitlines()
    assert int(lines[0]) == len(json.loads((folder / "engine.json").read_text())["registers"])
    assert lines[1].startswith("{STATUS} {0x01C} {read-only} {state of the run} {{{busy} {0} {1}}")
    assert "{CONFIG.PCW_S_AXI_HP0_DATA_WIDTH} {64}" in lines[2] and "{CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ} {100}" in lines[2]


def test_tclint_finds_no_error():
    tclint = shutil.which("tclint")
    if tclint is None:
        pytest.skip("tclint is not installed")
    result = subprocess.run([tclint, *map(str, sorted(vivado_flow.SOURCES.glob("*.tcl")))], capture_output=True, text=True, check=False)
    assert not re.search(r"syntax", result.stdout), result.stdout


def test_the_page_lists_every_board():
    page = (HERE.parents[1] / "docs" / "hardware.md").read_text()
    assert [name for name in re.findall(r"^\| ([\w-]+) \|", page, re.MULTILINE) if name in BOARDS] == list(BOARDS)
