"""Primitives against plain RTL, by proof, on small sizes; and a planted fault that the proof must find."""

import pytest
from amaranth import Module
from amaranth.lib.wiring import Component, In, Out

from esbflow.engine_config import EngineConfig
from esbhw import equivalence, yosys
from esbhw.arithmetic.requantize import RequantizeLane
from esbhw.engine.accumulators import AccumulatorColumn
from esbhw.engine.channel_unit import ChannelLane
from esbhw.engine.shift_add_array import ShiftAddColumn
from esbhw.engine.table_array import TableColumn, TableGenerators
from esbhw.fabric.adder_rows import add_row, gated, inverted, plain
from esbhw.fabric.lut_ram import LutRam, LutRamPorts
from esbhw.fabric.luts import exclusive_or, multiplexed
from esbhw.target import Target

pytestmark = pytest.mark.skipif(yosys.find() is None, reason="Yosys is not installed: pip install pyosys")


def config(rows=8, **options) -> EngineConfig:
    return EngineConfig("proven", rows=rows, cols=rows, **options)


TABLE = config(16, array="table")
MODULES = {
    "accumulator": (AccumulatorColumn, config()), "narrow accumulator": (AccumulatorColumn, config(accumulator_width=16)),
    "sign and magnitude": (ShiftAddColumn, config()), "two magnitudes": (ShiftAddColumn, config(weight_min=-3, weight_max=3)),
    "complement": (ShiftAddColumn, config(weight_min=-8, weight_max=7)),
    "two bits": (ShiftAddColumn, config(16, weight_min=-2, weight_max=1)), "binary": (
        ShiftAddColumn, config(weight_min=-1, weight_max=0)),
    "tables": (TableColumn, TABLE), "generators": (TableGenerators, TABLE, 4),
    "narrow generators": (TableGenerators, config(16, array="table", weight_min=-2, weight_max=1), 2),
    "accumulator of a channel unit": (AccumulatorColumn, EngineConfig("proven", 8, 16, channel_unit=8)),
    "channel": (ChannelLane, EngineConfig("proven", 8, 16, channel_unit=8)),
    "channel in complement": (ChannelLane, EngineConfig("proven", 8, 16, channel_unit=4, weight_min=-8, weight_max=7)),
    "shifting requantizer": (RequantizeLane, config(requantizer="shift", accumulator_width=16)),
    "LUT RAM": (LutRam, 3), "LUT RAM ports": (LutRamPorts, 3, 2),
}


def prove(make, *arguments, spoil=None):
    gold, gate = (equivalence.shared_module(make(*arguments), "module", Target(name)) for name in ("generic", "xilinx"))
    assert "LUT6_2" in gate or "RAM32M16" in gate
    assert "LUT6_2" not in gold and "RAM32M16" not in gold
    equivalence.prove_module("module", gold, spoil(gate) if spoil else gate, memory=make in (LutRam, LutRamPorts))


@pytest.mark.parametrize("name", MODULES)
def test_primitives_equal_the_plain_rtl(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prove(*MODULES[name])


def spoilt(text):
    at = text.rindex("64'", 0, text.rindex("LUT6_2")) + 3 + 31  # bit 32: O6 where all inputs are low
    return text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1:]


def test_a_wrong_bit_in_one_lut_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(equivalence.NotEqual, match="module module is not proven equal"):
        prove(ShiftAddColumn, config(), spoil=spoilt)


def test_a_whole_engine_is_compared_module_by_module(tmp_path, monkeypatch):
    """The longest proofs are left to `python -m esbhw.equivalence`; which modules they are of, and the drain's walk, are not."""
    monkeypatch.chdir(tmp_path)
    differ, walk = [], []

    def note(name, gold, gate, stubs, memory):
        differ.append(name)
        if name.endswith("drain.walk"):
            walk.extend((gold, gate))

    prove_module = equivalence.prove_module
    monkeypatch.setattr(equivalence, "prove_module", note)
    sliced = EngineConfig("proven", 4, 16, array="table", weight_min=-8, weight_max=7, slices=2, activation_ports=2,
                          stripes=True, function_table=True, channel_unit=4)
    results = dict(equivalence.prove(sliced))
    assert {"\\esb_engine.drain", "\\esb_engine.drain.walk", "\\requantize_lane", "\\accumulator_column"} <= {*differ}
    assert {*results.values()} == {"proven", "equal text"} | {how for how in results.values() if how.endswith("bits")}
    assert results["esb_engine"] == "equal text"
    assert all(f"\\{name}" in differ or how == "equal text" for name, how in results.items())
    prove_module("walk", *walk)
    with pytest.raises(equivalence.NotEqual, match="module walk is not proven equal"):
        prove_module("walk", walk[0], spoilt(walk[1]))


def test_numbers_behind_names_count_anew_in_each_module():
    text = ("module \\top\n  wire width 1 input 0 \\a$7\n  wire width 1 \\a$3\n  cell \\top.b$9 \\b\n    connect \\x$12 \\a$7\n"
            "    connect \\x$11 \\a$3\n  end\nend\n"
            "module \\top.b$9\n  wire width 1 input 0 \\x$12\n  wire width 1 input 1 \\x$11\nend\n")
    moved = text.replace("$7", "$8").replace("$12", "$40").replace("$11", "$31").replace("$9", "$10")
    assert equivalence.rtlil_modules(text) == equivalence.rtlil_modules(moved)
    swapped = moved.replace("connect \\x$40 \\a$8", "connect \\x$31 \\a$8").replace("connect \\x$31 \\a$3", "connect \\x$40 \\a$3")
    assert equivalence.rtlil_modules(text) != equivalence.rtlil_modules(swapped)


class Rows(Component):
    """Rows of every kind, with carries in and sums that are cut."""

    def __init__(self):
        super().__init__({"a": In(9), "b": In(7), "c": In(11), "g": In(1), "h": In(1),
                          **{f"o{k}": Out(16) for k in range(7)}})

    def elaborate(self, platform):
        m = Module()
        a, b, c, g, h = self.a, self.b, self.c, self.g, self.h
        rows = [
            ([gated(a, g), gated(b, h).shifted(2)], {}), ([plain(a), plain(b), plain(c).shifted(1)], {}),
            ([plain(a), inverted(b, 9)], dict(width=8)), ([gated(c, g), plain(b)], dict(carry=h)),
            ([inverted(a)], {}), ([plain(a, 300), plain(b, 100), inverted(c).shifted(3)], {}), ([plain(a), plain(b)], {}),
        ]
        for k, (terms, options) in enumerate(rows):
            total, _ = add_row(m, platform, terms, f"row{k}", **options)
            m.d.comb += getattr(self, f"o{k}").eq(total)
        return m


class Pairs(Component):
    def __init__(self):
        super().__init__({"a": In(7), "b": In(7), "s": In(1), "x": Out(7), "y": Out(7)})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.x.eq(exclusive_or(m, platform, "flip", self.a, self.s)),
                     self.y.eq(multiplexed(m, platform, "choice", self.a, self.b, self.s))]
        return m


@pytest.mark.parametrize("make", [Rows, Pairs])
def test_every_kind_of_row_equals_its_sum(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prove(make)


def test_a_bit_of_too_many_inputs_is_refused():
    class Wide(Component):
        def __init__(self):
            super().__init__({"a": In(4), "g": In(3), "o": Out(6)})

        def elaborate(self, platform):
            m = Module()
            total, _ = add_row(m, platform, [gated(self.a, self.g[k]) for k in range(3)], "wide")
            m.d.comb += self.o.eq(total)
            return m

    with pytest.raises(ValueError, match=r"wide_bit0 needs 6 inputs and a LUT6_2 shares 5"):
        equivalence.shared_module(Wide(), "wide", Target("xilinx"))


def test_a_target_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="no target named 'asic'; known: generic, xilinx"):
        Target("asic")
