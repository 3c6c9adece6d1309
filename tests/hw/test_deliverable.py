"""What `esbflow rtl` hands over: names, header, warnings of three readers, and the IP-XACT description against the RTL."""

import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES, engine
from esbflow.registers import ADDRESS_BITS, REGISTERS, vlnv
from esbhw import generate, names
from esbhw.interfaces import interfaces
from esbsim import toolchain

SPIRIT = "{http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009}"
TABLE = EngineConfig("table8x8", rows=8, cols=8, array="table", accumulator_depth=64, activation_beats=64, residual_beats=64,
                     weight_slots=4, map_beats=128)
CASES = [(ENGINES["tiny4x4"], "generic"), (ENGINES["tiny4x4"], "xilinx"), (TABLE, "generic"), (TABLE, "xilinx")]
# What the primitives look like from outside; their behaviour is the vendor's.
PRIMITIVES = """
module LUT6_2(input I0, I1, I2, I3, I4, I5, output O5, O6); parameter [63:0] INIT = 0; assign {O5, O6} = {I0 ^ I1 ^ I2, I3 ^ I4 ^ I5};
endmodule
module CARRY8(input CI, CI_TOP, input [7:0] DI, S, output [7:0] CO, O); parameter CARRY_TYPE = "SINGLE_CY8";
assign CO = DI; assign O = S ^ {8{CI ^ CI_TOP}}; endmodule
module FDRE(input C, CE, D, R, output reg Q); parameter [0:0] INIT = 0; initial Q = INIT;
always @(posedge C) if (R) Q <= 0; else if (CE) Q <= D; endmodule
module LUT6(input I0, I1, I2, I3, I4, I5, output O); parameter [63:0] INIT = 0; assign O = I0 ^ I1 ^ I2 ^ I3 ^ I4 ^ I5; endmodule
module RAM32M16(input [4:0] ADDRA, ADDRB, ADDRC, ADDRD, ADDRE, ADDRF, ADDRG, ADDRH, input [1:0] DIA, DIB, DIC, DID, DIE, DIF,
DIG, DIH, output [1:0] DOA, DOB, DOC, DOD, DOE, DOF, DOG, DOH, input WCLK, WE);
assign {DOA, DOB, DOC, DOD, DOE, DOF, DOG, DOH} = {DIA, DIB, DIC, DID, DIE, DIF, DIG, DIH}; endmodule
"""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].name}-{case[1]}")
def delivered(request, tmp_path_factory):
    """(configuration, target, folder)"""
    config, target = request.param
    folder = tmp_path_factory.mktemp("engine")
    generate.write(config, folder, target)
    return config, target, folder


def test_names_are_plain_and_belong_to_the_engine(delivered):
    config, _, folder = delivered
    text = (folder / "engine.v").read_text()
    assert "\\" not in text and not re.search(r"(?<![\w$])\$(?!signed\b)", text)
    modules = re.findall(r"^module (\w+)", text, re.MULTILINE)
    assert config.module_name in modules and all(m == config.module_name or m.startswith(f"{config.module_name}_") for m in modules)
    assert not [m for m in modules if re.search(r"_\d{3,}$", m)], "numbered modules"
    declared = re.findall(r"^  (?:input|output|reg) (?:\[[\d:]+\] )?(\w+)", text, re.MULTILINE)
    assert len(declared) > 500 and not [name for name in declared if re.fullmatch(r"_\d+_", name)]
    assert not [name for name in declared if re.fullmatch(r"net(_\d+)?(_q)?", name)]
    nameless = {name for name in declared if re.fullmatch(r"register(_\d+)?", name)}
    assert len(nameless) < 4, nameless
    assert not set(re.findall(r"^  [a-z]\w* (\w+) \($", text, re.MULTILINE)) & names.KEYWORDS


def test_two_engines_live_in_one_project(tmp_path):
    texts = [generate.verilog(config, "generic") for config in (CASES[0][0], TABLE)]
    modules = [set(re.findall(r"^module (\w+)", text, re.MULTILINE)) for text in texts]
    assert not modules[0] & modules[1]
    (tmp_path / "both.v").write_text("".join(texts))
    result = subprocess.run(["iverilog", "-Wall", "-g2005", "-t", "null", "-s", CASES[0][0].module_name, "-s", TABLE.module_name,
                             "both.v"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_header_says_what_the_file_is_and_how_to_make_it_again(delivered):
    config, target, folder = delivered
    text = (folder / "engine.v").read_text()
    head = [line for line in text.splitlines() if line.startswith("//")]
    assert f"configuration hash {config.hash:016x}" in text and "SPDX-License-Identifier: Apache-2.0" in head[1]
    fields = "".join(line[3:] for line in head[5:]).removeprefix("Configuration: ")
    assert EngineConfig.from_dict(json.loads(fields)) == config
    assert any(f"esbflow rtl --engine engine.json --target {target}" in line for line in head)
    assert generate.verilog(engine(str(folder / "engine.json")), target) == text


def _primitives(folder):
    (folder / "primitives.v").write_text(PRIMITIVES)
    return "primitives.v"


def test_verilator_has_nothing_to_say(delivered):
    config, target, folder = delivered
    binary, root, _ = toolchain.verilator()
    (folder / "lint.vlt").write_text('`verilator_config\nlint_off -file "*primitives.v"\n')
    sources = ["engine.v", *(["lint.vlt", _primitives(folder)] if target == "xilinx" else [])]
    result = subprocess.run([binary, "--lint-only", "-Wall", "--language", "1364-2005", "--top-module", config.module_name, *sources],
                            cwd=folder, env=toolchain.verilator_environment(root), capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr[-3000:]) == (0, "")


def test_every_waiver_has_a_reason_and_is_needed(delivered):
    _, _, folder = delivered
    text = (folder / "engine.v").read_text()
    assert re.findall(r"lint_off (\w+) \*/  // \w", text) == list(generate.WAIVED)


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus is not installed")
def test_icarus_has_nothing_to_say(delivered):
    config, target, folder = delivered
    sources = ["engine.v", *([_primitives(folder)] if target == "xilinx" else [])]
    result = subprocess.run(["iverilog", "-Wall", "-Wno-timescale", "-g2005", "-t", "null", "-s", config.module_name, *sources],
                            cwd=folder, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_slang_has_nothing_to_say(delivered):
    pyslang = pytest.importorskip("pyslang")
    config, target, folder = delivered
    driver = pyslang.driver.Driver()
    driver.addStandardArgs()
    sources = [folder / "engine.v", *([folder / _primitives(folder)] if target == "xilinx" else [])]
    # A register file's choice is one casez of many lines, and a primitive's outputs are not all used.
    waived = "-Wno-case-too-complex -Wno-unconnected-output-port"
    assert driver.parseCommandLine(f"slang --top {config.module_name} -Werror {waived} {' '.join(map(str, sources))}")
    assert driver.processOptions() and driver.parseAllSources()
    assert driver.runFullCompilation(True)


def _text(element, path):
    return element.findtext("/".join(SPIRIT + part for part in path.split("/")))


def _all(element, path):
    return element.findall("/".join(SPIRIT + part for part in path.split("/")))


def test_the_ip_description_is_the_rtl_s(delivered):
    config, _, folder = delivered
    root = ElementTree.parse(folder / "component.xml").getroot()
    assert ":".join(_text(root, part) for part in ("vendor", "library", "name", "version")) == vlnv(config)
    top = re.search(rf"^module {config.module_name}\b.*?^endmodule", (folder / "engine.v").read_text(), re.M | re.S)[0]
    ports = {name: (direction, int(left or 0)) for direction, left, name in
             re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);", top, re.MULTILINE)}
    described = {_text(port, "name"): (_text(port, "wire/direction") + "put", int(_text(port, "wire/vector/left") or 0))
                 for port in _all(root, "model/ports/port")}
    assert described == ports and len(ports) > 70
    mapped = [_text(pin, "physicalPort/name") for pin in _all(root, "busInterfaces/busInterface/portMaps/portMap")]
    assert sorted(mapped) == sorted(ports), "each port belongs to one interface"
    files = {_text(file, "name") for file in _all(root, "fileSets/fileSet/file")}
    assert files == {"engine.v", "engine_ooc.xdc"} and all((folder / name).exists() for name in files)


def test_the_register_map_is_complete(delivered):
    _, _, folder = delivered
    root = ElementTree.parse(folder / "component.xml").getroot()
    blocks = _all(root, "memoryMaps/memoryMap/addressBlock")
    assert len(blocks) == 1 and int(_text(blocks[0], "range")) == 1 << ADDRESS_BITS
    registers = _all(blocks[0], "register")
    assert [_text(r, "name") for r in registers] == list(REGISTERS)
    for element, register in zip(registers, REGISTERS.values()):
        assert int(_text(element, "addressOffset"), 16) == register.offset and _text(element, "access") == register.access
        assert _text(element, "description") == register.description
        fields = tuple((_text(f, "name"), int(_text(f, "bitOffset")), int(_text(f, "bitWidth"))) for f in _all(element, "field"))
        assert fields == register.fields


def test_clock_reset_and_interrupt_are_associated(delivered):
    config, _, folder = delivered
    text = (folder / "engine.v").read_text()
    found = interfaces(config)
    buses = ":".join(interface.name for interface in found if "aximm" in interface.kind)
    assert f"ASSOCIATED_BUSIF {buses}, ASSOCIATED_RESET ap_rst_n" in text
    assert "POLARITY ACTIVE_LOW" in text and "SENSITIVITY LEVEL_HIGH" in text
    assert len(re.findall(r'X_INTERFACE_INFO = "', text)) == sum(len(interface.pins) for interface in found)


@pytest.mark.parametrize("name", ["", "../up", "a b", "-w4", 'q"', "x" * 65])
def test_a_name_that_no_file_or_module_can_have_is_refused(name):
    with pytest.raises(ValueError, match=r"^name must be 1 to 64 letters, digits"):
        EngineConfig(name, rows=4, cols=4)


def test_equal_and_odd_names_become_different_identifiers():
    text = ("module \\t\n  wire width 2 input 0 \\end\n  wire input 1 \\x$1\n  wire input 2 \\x\n  wire output 3 \\port$9$0\n"
            "  wire width 3 \\sum\nconnect \\sum { \\port$9$0 \\end }\nend\n")
    assert re.findall(r"\d \\(\w+)$", names.readable(text, "t", "e"), re.M) == ["end_", "x_2", "x", "sum_2", "sum"]
