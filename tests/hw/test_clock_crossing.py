"""The crossings of an engine with two clocks: proven, constrained by the names that the netlist has, and described alike."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from amaranth import Module

from esbflow import handoff
from esbflow.cli import main
from esbflow.engines import ENGINES
from esbhw import crossing_constraints, crossing_proof, generate, hwh, yosys
from esbhw.boards import BOARDS
from esbhw.engine import clock_crossing
from esbhw.engine.two_clocks import CONSTANT, channels
from esbsim import toolchain

TINY = ENGINES["tiny4x4"]
PORTS = replace(ENGINES["small8x16"], name="ports", weight_path_beats=2, weight_ports=2)
MHZ = 400
needs_yosys = pytest.mark.skipif(yosys.find() is None, reason="Yosys is not installed: pip install pyosys")


# -- proof --------------------------------------------------------------------------------------------------------------
@needs_yosys
@pytest.mark.parametrize("from_bus", [True, False])
def test_items_cross_once_and_in_order_at_every_ratio(from_bus):
    crossing_proof.prove(from_bus)


class NoHandshake(clock_crossing.ResetCrossing):
    """The buses' side leaves with the pin, whether the other has been in reset or not."""

    def elaborate(self, platform):
        m = Module()
        self.there.connect(m, "compute", self.request)
        self.back.connect(m, "bus", self.held)
        m.d.compute += self.held.eq(self.there.seen)
        m.d.bus += self.request.eq(~self.reset_n)
        m.d.comb += [self.bus_reset.eq(~self.reset_n), self.compute_reset.eq(self.held)]
        return m


class ShortRequest(clock_crossing.ResetCrossing):
    """A request ends with its pin, so that a short one may come and go while the one before is under way."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        m.d.bus += self.request.eq(~self.reset_n)
        return m


FAULTS = {
    "binary pointers": (clock_crossing, "gray", lambda count: count),
    "another sign of a full FIFO": (clock_crossing, "FULL", 0b11001),
    "no handshake": (crossing_proof, "ResetCrossing", NoHandshake),
    "a short request": (crossing_proof, "ResetCrossing", ShortRequest),
}


@needs_yosys
@pytest.mark.parametrize("from_bus", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(monkeypatch, fault, from_bus):
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(crossing_proof.NotProven, match="is not proven"):
        crossing_proof.prove(from_bus)


# -- constraints --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[(TINY, "generic"), (TINY, "xilinx"), (PORTS, "generic")],
                ids=lambda case: f"{case[0].name}-{case[1]}")
def delivered(request, tmp_path_factory):
    """(configuration, target, folder)"""
    config, target = request.param
    folder = tmp_path_factory.mktemp("engine")
    generate.write(config, folder, target, MHZ)
    return config, target, folder


def constrained(text: str) -> list:
    """Cells that engine_crossings.xdc names, as instance/register."""
    return re.findall(r"get_cells \{?(\w+/\w+)_reg(?:\[\*\])?\}?\]", text)


def test_every_constraint_names_registers_of_the_netlist(delivered):
    config, _, folder = delivered
    verilog, text = (folder / "engine.v").read_text(), (folder / crossing_constraints.FILE).read_text()
    modules = {found[1]: found[0] for found in re.finditer(r"^module (\w+)\b.*?^endmodule", verilog, re.M | re.S)}
    instances = dict(re.findall(r"^  (\w+) (\w+) \($", modules[config.module_name], re.M))
    kinds = {instance: kind for kind, instance in instances.items()}
    cells = constrained(text)
    assert len(cells) == 9 * len(channels(config)) + 3 and len(cells) == text.count("get_cells")
    for cell in cells:
        instance, register = cell.split("/")
        vector = register in ("write_gray", "read_gray", "write_gray_meta", "read_gray_meta", "o__payload")
        declared = re.search(rf"^  (?:\(\*[^\n]*\*\)\n  )*reg (\[\d+:0\] )?{register}\b", modules[kinds[instance]], re.M)
        assert declared and (declared[1] is not None) == vector, cell
    # Both registers of a synchronizer lie together, and are not optimized away.
    for register in ("write_gray_meta", "write_gray_seen", "read_gray_meta", "read_gray_seen", "level_seen", "answer_meta"):
        assert re.search(rf'\(\* ASYNC_REG = "TRUE" \*\)\n  (?:output \w+;\n  )?reg (?:\[\d+:0\] )?{register}\b', verilog)
    for line in text.splitlines():
        assert re.match(r"#|set_max_delay -datapath_only .* \d\.\d{3}$|set_bus_skew .* \d\.\d{3}$|set_false_path -to ", line)


NETLIST = """
read_rtlil engine.il
hierarchy -top esb_engine
blackbox esb_engine.core
proc
flatten
opt_clean
memory_collect
write_json netlist.json
"""


def crossings_of(content: dict) -> dict:  # noqa: C901 - one rule for each kind of line
    """Of a flat netlist: {names of a register, pin or memory: other clocks that its value may depend on}."""
    cells = content["cells"]
    wires = {}
    for name, net in content["netnames"].items():
        for bit in net["bits"]:
            wires.setdefault(bit, []).append(name.replace(".", "/"))
    clock_of = {bits: name for name in ("ap_clk", "compute_clk") for bits in content["ports"][name]["bits"]}
    launched, inputs = {}, {}
    for port in content["ports"].values():
        if port["direction"] == "input":
            launched |= dict.fromkeys(port["bits"], "ap_clk")
    ends = []
    for name, cell in cells.items():
        pins = cell["connections"]
        if cell["type"] == "esb_engine.core":
            for pin, bits in pins.items():
                if cell["port_directions"][pin] == "output":
                    launched |= dict.fromkeys(bits, "compute_clk")
                elif not set(bits) & set(clock_of):
                    ends.append(((f"core/{pin}",), "compute_clk", bits))
        elif "CLK" in pins:
            launched |= dict.fromkeys(pins["Q"], clock_of[pins["CLK"][0]])
            ends.append((tuple(wires[pins["Q"][0]]), clock_of[pins["CLK"][0]],
                         [bit for pin, bits in pins.items() if pin not in ("Q", "CLK") for bit in bits]))
        elif cell["type"] == "$mem_v2":
            clock = clock_of[pins["WR_CLK"][0]]
            inputs |= dict.fromkeys(pins["RD_DATA"], (clock, pins["RD_ADDR"]))
            ends.append(((name,), clock, [bit for pin in ("WR_ADDR", "WR_DATA", "WR_EN") for bit in pins[pin]]))
        else:
            given = [bit for pin, bits in pins.items() if cell["port_directions"][pin] == "input" for bit in bits]
            for pin, bits in pins.items():
                if cell["port_directions"][pin] == "output":
                    inputs |= dict.fromkeys(bits, (None, given))
    ends += [((name,), "ap_clk", port["bits"]) for name, port in content["ports"].items() if port["direction"] == "output"]
    found = {}
    for name, clock, bits in ends:
        seen, todo = set(), list(bits)
        while todo:
            bit = todo.pop()
            if bit in seen or isinstance(bit, str):
                continue
            seen.add(bit)
            if launched.get(bit, clock) != clock:
                found.setdefault(name, set()).add(launched[bit])
            if bit in inputs:
                source, given = inputs[bit]
                if source not in (None, clock):
                    found.setdefault(name, set()).add(source)
                todo += given
    return found


@needs_yosys
def test_no_path_crosses_that_is_not_constrained(tmp_path):
    (tmp_path / "engine.il").write_text(generate.rtlil(PORTS, "generic", True))
    (tmp_path / "netlist.ys").write_text(NETLIST)
    yosys.require().run("netlist.ys", tmp_path)
    modules = json.loads((tmp_path / "netlist.json").read_text())["modules"]
    found = crossings_of(modules["esb_engine"])
    constant = re.compile(rf"m_axi_\w+_(?:(?:ar|aw)(?:{'|'.join(CONSTANT)})|wstrb)$")
    named = set(constrained(crossing_constraints.constraints(PORTS, MHZ)))
    ends = {cell for cell in named if cell.endswith(("_meta", "/o__payload"))}
    reached = {names: set(names) & ends for names in found if not constant.match(names[0])}
    assert set().union(*reached.values()) == ends and len(ends) > 40
    assert all(reached.values()), [names for names, hit in reached.items() if not hit]


def test_readers_have_nothing_to_say(delivered):
    config, target, folder = delivered
    if target == "xilinx":
        pytest.skip("the primitives are the vendor's; what is new here is plain Verilog")
    binary, root, _ = toolchain.verilator()
    result = subprocess.run([binary, "--lint-only", "-Wall", "--language", "1364-2005", "--top-module", config.module_name, "engine.v"],
                            cwd=folder, env=toolchain.verilator_environment(root), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr[-3000:]) == (0, "")
    if shutil.which("iverilog"):
        result = subprocess.run(["iverilog", "-Wall", "-Wno-timescale", "-g2005", "-t", "null", "-s", config.module_name, "engine.v"],
                                cwd=folder, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")


# -- descriptions -------------------------------------------------------------------------------------------------------
def test_the_core_declares_its_second_clock(delivered):
    _config, _, folder = delivered
    verilog = (folder / "engine.v").read_text()
    spirit = "{http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009}"
    root = ElementTree.parse(folder / "component.xml").getroot()
    buses = {bus.findtext(f"{spirit}name"): {entry.findtext(f"{spirit}name"): entry.findtext(f"{spirit}value")
                                             for entry in bus.iter(f"{spirit}parameter")} for bus in root.iter(f"{spirit}busInterface")}
    assert buses["ap_clk"]["ASSOCIATED_BUSIF"].split(":") == [name for name in buses if "axi" in name]
    assert buses["ap_clk"]["ASSOCIATED_RESET"] == "ap_rst_n" and buses["compute_clk"] == {}
    files = {file.text for file in root.iter(f"{spirit}name") if file.text.endswith((".v", ".xdc"))}
    assert files == {"engine.v", "engine_ooc.xdc", "engine_crossings.xdc"} and all((folder / name).exists() for name in files)
    assert 'X_INTERFACE_INFO = "xilinx.com:signal:clock:1.0 compute_clk CLK"' in verilog
    assert "--compute-clock 400 --out DIR" in verilog and "-period 2.500 [get_ports compute_clk]" in (folder / "engine_ooc.xdc").read_text()


def test_an_engine_with_one_clock_stays_what_it_was(tmp_path):
    generate.write(TINY, tmp_path, "generic", MHZ)
    generate.write(TINY, tmp_path, "generic")
    assert not (tmp_path / crossing_constraints.FILE).exists()
    assert not [path.name for path in tmp_path.iterdir() if re.search("compute_c|compute clock|crossing", path.read_text(), re.I)]


@pytest.mark.parametrize("name", [name for name, board in BOARDS.items() if board.flow == "vivado"])
def test_hwh_and_json_agree_on_the_clocks(tmp_path, name):
    for stem, mhz in (("one", None), ("two", MHZ)):
        (tmp_path / f"{stem}.hwh").write_text(hwh.hwh(TINY, BOARDS[name], mhz))
        (tmp_path / f"{stem}.bit").write_text("")
        (tmp_path / f"{stem}.json").write_text(json.dumps(generate.manifest(TINY, "xilinx", mhz)))
        assert handoff.check_overlay(tmp_path / f"{stem}.bit") == TINY
    one, two = (handoff.read(tmp_path / f"{stem}.hwh") for stem in ("one", "two"))
    assert handoff.differences(one, two) == ["compute clock: none, expected 400"]
    (tmp_path / "two.hwh").write_text((tmp_path / "one.hwh").read_text())
    with pytest.raises(handoff.HandoffError, match="another compute clock None and not 400"):
        handoff.check_overlay(tmp_path / "two.bit")


def test_the_command_writes_it_and_refuses_what_cannot_be(tmp_path, capsys):
    assert main(["rtl", "--engine", "tiny4x4", "--compute-clock", "300", "--out", str(tmp_path / "engine")]) == 0
    assert json.loads((tmp_path / "engine" / "engine.json").read_text())["compute_clock_mhz"] == 300
    capsys.readouterr()
    for command, words in ((["rtl", "--compute-clock", "1001", "--out", str(tmp_path / "new")], "must be 1 to 1000 MHz, not 1001"),
                           (["rtl", "--compute-clock", "0", "--out", str(tmp_path / "new")], "--compute-clock"),
                           (["bitstream", "--board", "ulx3s", "--compute-clock", "50", "--work", str(tmp_path / "new")],
                            "Radiona ULX3S-85F has one clock; leave --compute-clock out"),
                           (["bitstream", "--board", "zcu102", "--compute-clock", "2000", "--dry-run", "--work", str(tmp_path / "new")],
                            "must be 1 to 1000 MHz, not 2000")):
        try:
            status = main([*command, "--engine", "tiny4x4"])
        except SystemExit as ended:
            status = ended.code
        assert status == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_proof_runs_as_a_program():
    if yosys.find() is None:
        pytest.skip("Yosys is not installed")
    result = subprocess.run([sys.executable, "-m", "esbhw.crossing_proof"], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and result.stdout.count("proven: ") == 2
