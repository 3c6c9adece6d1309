"""Longest paths on small netlists whose lengths are counted by hand, and on the smallest engine."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from esbflow.engines import ENGINES
from esbhw.generate import TOP, rtlil
from esbhw.logic_depth import by_block, depths
from esbhw.names import readable
from esbhw.netlist import Netlist
from esbhw.synthesis import Mapped, add_up, synthesize_rtlil


def lut(output, *inputs):
    return f"LUT{len(inputs)}", {"O": [output], **{f"I{i}": [bit] for i, bit in enumerate(inputs)}}


def ff(d, q, enable="1"):
    return "FDRE", {"C": [1], "CE": [enable], "D": [d], "Q": [q], "R": ["0"]}


def carry4(s, di, o, co, carry_in="0", first="0"):
    return "CARRY4", {"S": s, "DI": di, "O": o, "CO": co, "CI": [carry_in], "CYINIT": [first]}


@pytest.fixture
def found(tmp_path):
    """found({module: (ports, cells, names, {type of a cell: module})}) is what `depths` finds below module `top`."""
    def measure(modules):
        mapped = {}
        for name, (ports, cells, names, children) in modules.items():
            Netlist({"clk": ("input", [1]), **ports}, cells, names).save(tmp_path / name)
            mapped[name] = Mapped(Counter(), children, 0, tmp_path / name)
        return depths(mapped, "top")
    return measure


def test_levels_are_counted_from_register_to_register(found):
    cells = {"a": ff("0", 2), "x": lut(3, 2, "1"), "inv": ("INV", {"I": [3], "O": [4]}), "y": lut(5, 2, 4), "b": ff(5, 6),
             "wide": ("MUXF7", {"I0": [5], "I1": [4], "S": [2], "O": [7]}), "c": ff("0", 8, enable=7)}
    depth = found({"top": ({}, cells, {2: "start", 6: "near", 8: "gated", 4: "middle"}, {})})[""]
    assert (depth.by_levels.levels, depth.by_levels.start) == (3, "start")
    assert str(depth.by_levels) == "3 levels, 0 carry bits: from start to near.D through middle"
    cells["z"] = lut(9, 7, 2)
    cells["d"] = ff(9, 10)
    depth = found({"top": ({}, cells, {2: "start", 10: "far"}, {})})[""]
    assert (depth.by_levels.levels, depth.by_levels.end) == (4, "far.D")
    assert not depth.passes


def test_carry_bits_are_the_places_that_a_carry_ripples_through(found):
    def chain(last):
        return {"a": ff("0", 2), "x": lut(3, 2, "1"), "low": carry4([3, "0", "0", "0"], ["0"] * 4, [20, 21, 22, 23], [24, 25, 26, 27]),
                "high": carry4(["0"] * 4, ["0"] * 4, [30, 31, 32, 33], [34, 35, 36, 37], carry_in=27), "b": ff(last, 50)}

    for net, bits in ((20, 0), (21, 1), (23, 3), (27, 4), (30, 4), (33, 7), (37, 8)):
        depth = found({"top": ({}, chain(net), {}, {})})[""]
        assert (depth.by_carry.carry, depth.by_carry.levels) == (bits, 1)
    wide = {"a": ff("0", 2), "b": ff(3, 4), "row": ("CARRY8", {
        "S": [2, *["0"] * 7], "DI": ["0"] * 8, "CI": ["0"], "CI_TOP": ["0"], "O": [*range(60, 67), 3], "CO": list(range(70, 78))})}
    assert found({"top": ({}, wide, {}, {})})[""].by_carry.carry == 7


def test_the_path_with_most_levels_and_the_one_with_most_carry_bits_are_both_found(found):
    cells = {"a": ff("0", 2), **{f"x{i}": lut(3 + i, 2 + i, "1") for i in range(5)}, "b": ff(7, 8),
             "row": carry4([2, "0", "0", "0"], ["0"] * 4, [20, 21, 22, 23], [24, 25, 26, 27]), "c": ff(23, 9)}
    depth = found({"top": ({}, cells, {8: "deep", 9: "long"}, {})})[""]
    assert (depth.by_levels.levels, depth.by_levels.carry, depth.by_levels.end) == (5, 0, "deep.D")
    assert (depth.by_carry.levels, depth.by_carry.carry, depth.by_carry.end) == (0, 3, "long.D")


def test_reading_lut_ram_is_a_level_and_block_ram_is_a_register(found):
    ram = {"a": ff("0", 2), "ram": ("RAM32M16", {"WCLK": [1], "WE": [2], "ADDRA": [2, 2, 2, 2, 2], "DOA": [3, 4], "DIA": [2, 2],
                                                 "ADDRH": [2, 2, 2, 2, 2]}),
           "x": lut(5, 3, 4), "b": ff(5, 6)}
    assert found({"top": ({}, ram, {}, {})})[""].by_levels.levels == 2
    ram["ram"][1]["ADDRA"] = ["0"] * 5  # written in one cycle, read in the next: still a level
    assert found({"top": ({}, ram, {}, {})})[""].by_levels.levels == 2
    ram["ram"] = ("RAMB36E2", {"CLKARDCLK": [1], "ADDRARDADDR": [2], "DOUTADOUT": [3, 4]})
    assert found({"top": ({}, ram, {}, {})})[""].by_levels.levels == 1
    ram["ram"] = ("SRLC32E", {"CLK": [1], "CE": ["1"], "A": [2, 2, 2, 2, 2], "D": [2], "Q": [3]})
    assert found({"top": ({}, ram, {}, {})})[""].by_levels.levels == 2


def test_both_outputs_of_a_lut6_2_are_one_level_and_o5_does_not_see_the_sixth_input(found):
    pair = ("LUT6_2", {"I0": [2], "I1": [2], "I2": [2], "I3": [2], "I4": [2], "I5": [9], "O5": [3], "O6": [4]})
    cells = {"a": ff("0", 2), "pair": pair, "late": lut(9, 2, "1"), "b": ff(3, 5)}
    assert found({"top": ({}, cells, {}, {})})[""].by_levels.levels == 1
    assert found({"top": ({}, cells | {"c": ff(4, 6)}, {}, {})})[""].by_levels.levels == 2


def test_paths_through_ports_are_composed(found):
    """start (register in source) -> LUT there -> LUT in the top -> through `middle` (2 LUTs) -> LUT and register in sink."""
    source = ({"o": ("output", [4])}, {"r": ff("0", 2), "x": lut(4, 2, "1")}, {2: "launch"}, {})
    middle = ({"i": ("input", [2, 9]), "o": ("output", [3, 9])}, {"x": lut(4, 2, "1"), "y": lut(3, 4, "1")}, {4: "inside"}, {})
    sink = ({"i": ("input", [2]), "o": ("output", [5])}, {"x": lut(3, 2, "1"), "r": ff(3, 5)}, {5: "capture"}, {})
    cells = {"first": ("stub_0", {"clk": [1], "o": [10]}), "x": lut(11, 10, "1"),
             "second": ("stub_1", {"clk": [1], "i": [11, 10], "o": [12, 13]}),
             "third": ("stub_2", {"clk": [1], "i": [12], "o": [14]}), "fourth": ("stub_2", {"clk": [1], "i": [13], "o": [15]})}
    children = {"stub_0": "source", "stub_1": "middle", "stub_2": "sink"}
    result = found({"source": source, "middle": middle, "sink": sink, "top": ({}, cells, {11: "wire"}, children)})
    assert str(result["third"].by_levels) == ("5 levels, 0 carry bits: from first.launch to third.capture.D "
                                              "through wire, second.inside")
    assert result["fourth"].by_levels.levels == 2, "the second wire of `middle` goes straight through"
    assert list(result) == ["third", "fourth"], "instances in which no path ends are left out; the deepest comes first"


def test_a_path_may_leave_a_module_and_come_back(found):
    inner = ({"i": ("input", [2]), "o": ("output", [3])}, {"a": ff("0", 5), "x": lut(3, 5, "1"), "y": lut(6, 2, "1"), "b": ff(6, 7)},
             {5: "out", 7: "back"}, {})
    cells = {"inner": ("stub_0", {"clk": [1], "i": [11], "o": [10]}), "x": lut(11, 10, "1")}
    result = found({"inner": inner, "top": ({}, cells, {}, {"stub_0": "inner"})})
    assert str(result["inner"].by_levels) == "3 levels, 0 carry bits: from inner.out to inner.back.D"


def test_the_ports_of_the_engine_begin_and_end_paths(found):
    cells = {"x": lut(3, 2, "1"), "y": lut(4, 3, "1")}
    depth = found({"top": ({"i": ("input", [2]), "o": ("output", [4])}, cells, {2: "i", 4: "o"}, {})})[""]
    assert str(depth.by_levels) == "2 levels, 0 carry bits: from port i to port o"


def test_a_circle_without_a_register_is_named(found):
    with pytest.raises(ValueError, match=r"^logic runs in a circle through (ping|pong)$"):
        found({"top": ({}, {"x": lut(2, 3, "1"), "y": lut(3, 2, "1")}, {2: "ping", 3: "pong"}, {})})


TINY = ENGINES["tiny4x4"]
SMALL = {
    "tiny4x4": TINY,
    "four accumulators a pixel, shifts, narrow digits, tables, 2 slices on 2 ports, function table, maps, batch tiles": replace(
        TINY, rows=16, array="table", table_groups=2, weight_min=-2, weight_max=1, digit_bits=2, requantizer="shift", slices=2,
        activation_ports=2, function_table=True, map_beats=512, batch_tiles=True),
    "tables, 4 weight ports, channel unit, stripes in 4 slices on 2 ports, function table, image buffers, maps, batch tiles": replace(
        TINY, rows=8, cols=16, array="table", table_groups=2, weight_path_beats=4, weight_ports=4, channel_unit=8, slices=4,
        activation_ports=2, function_table=True, stripes=True, image_beats=2048, map_beats=1024,
        batch_tiles=True),
}
"""Together all that an engine can have."""


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_every_path_of_small_engines_is_short_enough_for_the_planning_clock(config):
    text = rtlil(config, "xilinx")
    mapped = synthesize_rtlil(text, TOP)
    assert add_up(mapped, TOP).dsp == 0
    found = depths(mapped, TOP, text)
    beyond = [f"{block}: {depth.by_levels}; {depth.by_carry}" for block, depth in found.items() if not depth.passes]
    assert not beyond, "\n".join(beyond)
    assert {"control, counters, tokens", "AXI ports", "fetch", "loaders", "drain and requantizer", "array"} <= set(by_block(found))
    named = [name for depth in found.values() for path in (depth.by_levels, depth.by_carry)
             for name in (path.start, path.end.partition(" (")[0].rpartition(".")[0] or path.end, *path.through)]
    assert len(named) > 100
    renamed = readable(text, TOP, "e")
    assert not (strange := _strange_to(renamed, named)), f"engine.v has no {strange[:5]}"
    assert not (nameless := _nameless(renamed)), f"without a name of their own: {nameless[:5]}"


def _nameless(text):
    """(module, port, register, memory's register or instance) of renamed RTLIL called "net", or with a number of Amaranth's."""
    found = []
    for module in re.findall(r"^module .*?^end$", text, re.M | re.S):
        ports = re.findall(r"^  wire (?:width \d+ )?(?:input|output) \d+ +(?:signed )?\\(\S+)$", module, re.M)
        parts = re.findall(r"^  cell \\\S+ \\(\S+)$", module, re.M)
        memories = re.findall(r"^  cell \$memrd_v2 .*?^    connect \\DATA \\(\S+)", module, re.M | re.S)
        registers = re.findall(r"^    connect \\Q \\(\S+)", module, re.M)
        found += [(module.split()[1], name) for name in (*ports, *parts, *memories, *registers)
                  if "$" in name or re.fullmatch(r"(net|U|unnamed)(_\d+)?", name)]
    return found


def _strange_to(text, ways):
    """Those of the instances' nets, registers and ports, given from the top, that renamed RTLIL does not declare."""
    declared, instances = {}, {}
    for module in re.findall(r"^module .*?^end$", text, re.M | re.S):
        name = re.search(r"^module \\(\S+)", module)[1]
        declared[name] = set(re.findall(r"^  (?:wire|memory) .*?\\(\S+)$|^  cell \S+ \\(\S+)$", module, re.M))
        declared[name] = {part for pair in declared[name] for part in pair}
        instances[name] = {instance: kind for kind, instance in re.findall(r"^  cell \\(\S+) \\(\S+)$", module, re.M)}

    def known(way):
        module, rest = "e", way.removeprefix("port ")
        while rest.split(".")[0] in instances[module] and instances[module][rest.split(".")[0]] in declared:
            first, _, rest = rest.partition(".")
            module = instances[module][first]
        net = re.sub(r"\[\d+\]$|(\.\d+)+$", "", rest)  # a bit of it, or Yosys' cell of a memory
        return bool({rest, net} & declared[module])

    return [way for way in ways if not known(way)]
