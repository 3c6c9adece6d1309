"""Resources from Yosys: no DSP, no latch, and sums that can be checked by hand."""

import subprocess

import pytest
from amaranth import ClockSignal, Const, Instance, Module, Signal
from amaranth.back import rtlil

from esbflow.engines import ENGINES
from esbhw import synthesis, yosys
from esbhw.netlist import Netlist, lut6_2_pairs
from esbhw.synthesis import SynthesisError, add_up, normalise_ports, split_modules, synthesize, synthesize_rtlil

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
    for field in ("lut", "lutram", "pairs", "ff", "carry8", "bram36"):
        assert sum(getattr(block, field) for block in blocks.values()) == getattr(found, field) > 0
    again = synthesize(ENGINES["tiny4x4"])
    assert again.to_dict() | {"seconds": 0} == found.to_dict() | {"seconds": 0}
    assert again.seconds < 20


def test_equal_modules_are_synthesized_once(tmp_path):
    seen = []
    mapped = synthesize_rtlil(RTLIL, "whole", lambda done, total: seen.append((done, total)), tmp_path)
    assert seen[0] == (0, 2) and seen[-1] == (2, 2)
    assert mapped["pair"].cells == mapped["twin"].cells == {("cell", "LUT2"): 8}
    assert mapped["whole"].cells == {("child", "pair"): 1, ("child", "twin"): 1}
    assert len(list((tmp_path / "synthesis").glob("*.json"))) == 2
    assert add_up(mapped, "whole").lut == 16
    assert add_up(mapped, "whole").pairs == 8, "four of each module: the eight LUTs share their places in twos"
    flat = add_up(synthesize_rtlil(RTLIL, "whole", None, tmp_path, flatten=True), "whole", per_block=False)
    assert flat.lut == 8, "(a & b) & b is a & b"


NUMBERED = r"""
module \first
  wire width 4 input 0 \port$9313$0
  wire width 4 input 1 \port$12$4
  wire width 4 output 2 \o
  cell $xor $1
    parameter \A_SIGNED 0
    parameter \B_SIGNED 0
    parameter \A_WIDTH 4
    parameter \B_WIDTH 4
    parameter \Y_WIDTH 4
    connect \A \port$9313$0
    connect \B \port$12$4 [3:0]
    connect \Y \o
  end
end
module \second
  wire width 4 input 0 \port$7$0
  wire width 4 input 1 \port$9313$0
  wire width 4 output 2 \o
  cell $xor $1
    parameter \A_SIGNED 0
    parameter \B_SIGNED 0
    parameter \A_WIDTH 4
    parameter \B_WIDTH 4
    parameter \Y_WIDTH 4
    connect \A \port$7$0
    connect \B \port$9313$0 [3:0]
    connect \Y \o
  end
end
module \whole
  wire width 4 input 0 \port$9313$0
  wire width 4 input 1 \b
  wire width 4 output 2 \o
  wire width 4 \inner
  cell \first \one
    connect \port$9313$0 \port$9313$0 [3:0]
    connect \port$12$4 \b
    connect \o \inner
  end
  cell \second \two
    connect \port$9313$0 \inner
    connect \port$7$0 \port$9313$0 [3:0]
    connect \o \o
  end
end
"""


def test_ports_that_amaranth_numbers_are_named_in_order(tmp_path):
    """The same number may name other ports in another module, and a parent's net of that number is yet another."""
    modules = normalise_ports(split_modules(NUMBERED))
    assert modules["first"].replace("first", "x") == modules["second"].replace("second", "x")
    cells = modules["whole"].split("  cell ")
    assert "connect \\port$0 \\port$0 [3:0]\n    connect \\port$1 \\b\n" in cells[1]
    assert "connect \\port$1 \\inner\n    connect \\port$0 \\port$0 [3:0]\n" in cells[2]
    mapped = synthesize_rtlil(NUMBERED, "whole", None, tmp_path)
    assert len(list((tmp_path / "synthesis").glob("*.json"))) == 2
    assert mapped["first"].path == mapped["second"].path
    assert add_up(mapped, "whole").lut == 8
    assert not add_up(synthesize_rtlil(NUMBERED, "whole", None, tmp_path, flatten=True), "whole", per_block=False).lut > 4


def test_names_with_brackets_are_no_bits_of_another_wire():
    text = "connect \\regions[1].base$3 \\regions [108:69]\n  wire width 69 \\regions[1]\n"
    assert synthesis.without_brackets(text) == text.replace("regions[1]", "regions<1>")


def test_a_net_that_two_registers_drive_is_found():
    cells = {"a": ("FDRE", {"C": [1], "D": [2], "Q": [3]}), "b": ("FDRE", {"C": [1], "D": [2], "Q": [4]})}
    assert Netlist({}, cells, {4: "regions[1]"}).driven_twice() is None
    assert Netlist({}, cells | {"c": ("LUT1", {"I0": [2], "O": [4]})}, {4: "regions[1]"}).driven_twice() == "regions[1]"


def test_primitives_that_the_rtl_instantiates_are_kept_and_counted(tmp_path):
    m = Module()
    a, o, we = Signal(48), Signal(40), Signal()
    rows, cut, sums = Signal(8), Signal(8), Signal(8)
    for i in range(8):
        m.submodules[f"row_{i}"] = Instance(
            "LUT6_2", p_INIT=Const(0x8778077777770888, 64), **{f"i_I{n}": a[i + 8 * n] for n in range(5)}, i_I5=Const(1, 1),
            o_O6=rows[i], o_O5=cut[i])
        m.submodules[f"ff_{i}"] = Instance("FDRE", i_C=ClockSignal(), i_CE=Const(1, 1), i_R=Const(0, 1), i_D=sums[i], o_Q=o[i])
    m.submodules.carry = Instance("CARRY8", i_CI=Const(0, 1), i_CI_TOP=Const(0, 1), i_DI=cut, i_S=rows, o_O=sums)
    m.submodules.ram = Instance(
        "RAM32M16", i_WCLK=ClockSignal(), i_WE=we, **{f"i_ADDR{c}": a[:5] for c in "ABCDEFG"}, i_ADDRH=a[5:10],
        **{f"i_DI{c}": a[2 * n:2 * n + 2] for n, c in enumerate("ABCDEFGH")},
        **{f"o_DO{c}": o[8 + 2 * n:10 + 2 * n] for n, c in enumerate("ABCDEFGH")})
    m.d.comb += o[30].eq(a[40] & a[41])
    mapped = synthesize_rtlil(rtlil.convert(m, name="top", ports=[a, o, we], emit_src=False), "top", None, tmp_path)
    assert mapped["top"].cells == {("cell", kind): number for kind, number in
                                   {"LUT6_2": 8, "FDRE": 8, "CARRY8": 1, "RAM32M16": 1, "LUT2": 1}.items()}
    found = add_up(mapped, "top")
    assert (found.lut, found.lutram, found.ff, found.carry8, found.pairs) == (17, 8, 8, 1, 0)


def test_pairs_of_luts_that_could_share_a_lut6_2():
    def netlist(*inputs, carry=()):
        cells = {f"x{i}": (f"LUT{len(pins)}", {"O": [100 + i], **{f"I{n}": [bit] for n, bit in enumerate(pins)}})
                 for i, pins in enumerate(inputs)}
        cells["row"] = ("CARRY4", {"S": [100 + i for i in carry], "DI": [2], "O": [200], "CI": [3]})
        return Netlist({}, cells, {})

    assert lut6_2_pairs(netlist([2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7])) == 0, "a LUT6 fills its place"
    assert lut6_2_pairs(netlist([2, 3, 4, 5, 6], [2, 3, 4, 5, 6])) == 1
    assert lut6_2_pairs(netlist([2, 3, 4, 5, 6], [2, 3, 4, 7])) == 0, "six inputs together"
    assert lut6_2_pairs(netlist([2, 3, 4], [4, 5, 6])) == 1
    assert lut6_2_pairs(netlist([2, 3, 4], [5, 6])) == 1, "five inputs together, none shared"
    assert lut6_2_pairs(netlist([2, 3, 4], [5, 6, 7])) == 0
    assert lut6_2_pairs(netlist([2, 3], [2, 3], carry=[0, 1])) == 0, "both before carry's S, which is output O6"
    assert lut6_2_pairs(netlist([2, 3], [2, 3], carry=[0])) == 1
    assert lut6_2_pairs(netlist([2, 3], [4, 5], carry=[0, 1])) == 0
    assert lut6_2_pairs(netlist([2, 3, "1"], [3, 4, 5, 6])) == 1, "a constant is no input"
    assert lut6_2_pairs(netlist(*[[2, 3]] * 5)) == 2
    # The widest chooses first, and chooses what leaves the fewest inputs.
    assert lut6_2_pairs(netlist([2, 3, 4, 5, 6], [2, 3], [2, 3, 4, 5], [3, 7])) == 2


def test_lut_ram_and_half_brams_are_counted_as_documented():
    found = synthesis._resources({"LUT3": 5, "RAM32M16": 2, "SRL16E": 3, "RAMB18E2": 1, "RAMB36E2": 2, "CARRY4": 3,
                                  "FDRE": 7, "MUXF7": 9, "LDCE": 1, "DSP48E2": 1})
    assert (found.lut, found.lutram, found.ff, found.carry8, found.bram36) == (24, 19, 7, 1.5, 2.5)
    assert (found.latches, found.dsp) == (1, 1)


def test_an_unknown_primitive_is_named():
    with pytest.raises(SynthesisError, match=r"^Yosys used a GTHE4, whose cost is not in the table"):
        synthesis._resources({"GTHE4": 1})


def test_a_design_that_yosys_refuses_gives_its_words(tmp_path):
    with pytest.raises(SynthesisError, match=r"(?s)^Yosys could not synthesize a module of the engine:.*"):
        synthesize_rtlil("module \\top\n  wire input 0 \\a\n  cell $nonsense $1\n  end\nend\n", "top", cache=tmp_path)
    assert list((tmp_path / "synthesis").iterdir()) == []


def test_without_yosys_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(yosys, "find", lambda: None)
    with pytest.raises(SynthesisError, match=r"^Yosys is not installed; install it with: pip install 'esbflow\[hw\]'"):
        synthesize_rtlil(RTLIL, "whole", cache=tmp_path)


def test_a_failing_tool_leaves_no_half_written_result(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        return subprocess.CompletedProcess(arguments, 1, stdout="killed")

    tool = yosys.require()
    monkeypatch.setattr(yosys, "require", lambda: tool)
    monkeypatch.setattr(yosys.children, "run", fail)
    with pytest.raises(SynthesisError, match=r"killed$"):
        synthesize_rtlil(RTLIL, "whole", cache=tmp_path)
    assert list((tmp_path / "synthesis").iterdir()) == []


def test_a_module_maps_to_the_same_netlist_whatever_runs_beside_it(tmp_path):
    """Names of cells count through a run of Yosys, and it sorts by them: a module starts from the same number always."""
    both = RTLIL + NUMBERED.split("module \\whole")[0]
    alone = synthesize_rtlil(RTLIL, "whole", None, tmp_path / "alone")
    beside = synthesize_rtlil(both, "first", None, tmp_path / "beside")
    assert len({module.path for module in beside.values()}) == 3, "pair, whole and first"
    for name in ("pair", "whole"):
        assert alone[name].path.name == beside[name].path.name
        assert alone[name].path.read_bytes() == beside[name].path.read_bytes()


def test_the_native_library_and_webassembly_map_to_the_same(tmp_path, monkeypatch):
    """Where both are of one version, the counts are too: a cache's key names both, but a table names one."""
    tools = {}
    for choice in yosys.CHOICES:
        monkeypatch.setattr(yosys, "CHOICES", [choice])
        tools[choice[0]] = yosys.find.__wrapped__()
    if None in tools.values() or len({tuple(t.version.split(".")[:2]) for t in tools.values()}) > 1:
        pytest.skip("not both are installed in one version")
    found = []
    for tool in tools.values():
        monkeypatch.setattr(yosys, "require", lambda tool=tool: tool)
        found.append(add_up(synthesize_rtlil(RTLIL, "whole", None, tmp_path), "whole"))
    assert found[0] == found[1]
    assert len(list((tmp_path / "synthesis").glob("*.json"))) == 4, "each has results of its own"


def test_a_package_that_cannot_be_imported_is_passed_over(monkeypatch):
    broken = ("pytest", "no_such_module", "", 1, 1)  # installed by name, but its module is not there
    monkeypatch.setattr(yosys, "CHOICES", [("no-such-package", "sys", "", 1, 1), broken, ("pytest", "pytest", "", 3, 4)])
    assert yosys.find.__wrapped__().jobs == 3
    monkeypatch.setattr(yosys, "CHOICES", [broken])
    assert yosys.find.__wrapped__() is None
