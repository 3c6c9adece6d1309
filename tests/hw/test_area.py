"""The area model: what it counts by construction, and that it is the fit to today's records."""

from dataclasses import replace
from pathlib import Path

import pytest

from esbflow import area, engine_facts
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES
from esbhw import area_fit, performance
from esbhw.engine.shift_add_array import ShiftAddColumn
from esbhw.engine.table_array import TableColumn
from esbhw.generate import elaborate_definitions
from esbhw.target import Target

RESULTS = Path(__file__).parents[2] / "docs" / performance.RESULTS


@pytest.fixture(scope="module")
def measured():
    return area_fit.engines(RESULTS)


def test_the_model_is_the_fit_to_the_records(measured):
    assert {name for name, _, _ in measured} >= set(area.coefficients()["left_out"]), "run: python -m esbhw.area_fit"
    blocks = area_fit.fit(measured)
    for name, config, _ in measured:
        found, fitted = area.area(config), area_fit.predict(blocks, config)
        assert found.lut == pytest.approx(fitted["lut"], rel=0.002), f"{name}; run: python -m esbhw.area_fit"
        assert found.ff == pytest.approx(fitted["ff"], rel=0.002)


def test_engines_left_out_of_the_fit_are_predicted_within_its_limit(measured):
    errors = area_fit.left_out(measured)
    worst = max(abs(error) for found in errors.values() for error in found.values())
    assert worst <= area_fit.LIMIT and len(errors) >= 10
    assert worst == pytest.approx(area.coefficients()["error"], abs=0.002)


def test_block_ram_follows_from_widths_and_depths(measured):
    assert {name: area.block_rams(config) for name, config, _ in measured} == {
        name: record["bram36"] for name, _, record in measured}


@pytest.mark.parametrize("config", [
    EngineConfig("e", 16, 16), EngineConfig("e", 8, 8, weight_min=-8, weight_max=7),
    EngineConfig("e", 16, 16, weight_min=-2, weight_max=1, digit_bits=2), EngineConfig("e", 8, 8, array="table"),
    EngineConfig("e", 32, 32, array="table", weight_min=-2, weight_max=1, digit_bits=2)])
def test_adders_are_counted_as_they_are_built(config):
    target = Target("xilinx")
    column = TableColumn if config.array == "table" else ShiftAddColumn
    target.definitions["column"] = column(config)
    built = elaborate_definitions(target).count("cell \\LUT6_2 ")
    counted = area.features(config)[f"{config.array} array"]
    expected = (counted["adder bits"] + counted.get("signs", 0) / 2) / config.cols
    # Trees of few operands may differ by a LUT or two.
    assert built == pytest.approx(expected, rel=0.05)


def test_an_engine_that_no_one_synthesized_has_an_estimate():
    small, large = (area.area(EngineConfig("e", rows, 64, array="table", table_groups=4)) for rows in (32, 64))
    assert small.lut < large.lut < 2 * small.lut and small.ff < large.ff
    assert sum(block["lut"] for block in large.blocks.values()) == large.lut
    assert large.dsp == 0 and 0 < large.error <= area_fit.LIMIT


def test_a_channel_unit_and_narrow_digits_change_what_they_should():
    plain, unit, narrow = (area.area(EngineConfig("e", 32, 32, **options)) for options in (
        {}, {"channel_unit": 32}, {"digit_bits": 2}))
    assert unit.lut > plain.lut + 32 * 100 and "channel unit" in unit.blocks
    assert narrow.blocks["shiftadd array"]["lut"] < 0.7 * plain.blocks["shiftadd array"]["lut"]
    assert engine_facts.residual_planes(EngineConfig("e", 32, 32, digit_bits=2)) == 4
    assert area.area(ENGINES["tiny4x4"]).bram36 == 8


def test_an_image_buffer_counts_in_block_ram():
    """Yosys maps 12 for tiny4x4 with 512 beats, and 8 without."""
    tiny = ENGINES["tiny4x4"]
    assert (area.block_rams(tiny), area.block_rams(replace(tiny, image_beats=512))) == (8, 12)
