"""Instructions and engine configurations."""

import dataclasses
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esbflow import engines, instructions
from esbflow.engine_config import EngineConfig
from esbflow.engines import ENGINES, engine


# -- instructions -------------------------------------------------------------------------------------------------
@st.composite
def any_instruction(draw):
    opcode = draw(st.sampled_from(list(instructions.OPCODES)))
    values = {}
    for name, width in instructions.FIELDS[opcode][1:]:
        low = -(1 << width - 1) if instructions.is_signed(opcode, name) else 0
        values[name] = draw(st.integers(low, low + (1 << width) - 1))
    return opcode, values


@given(any_instruction())
def test_instructions_decode_to_what_was_encoded(instruction):
    opcode, values = instruction
    word = instructions.encode(opcode, **values)
    name, fields = instructions.decode(word)
    assert 0 <= word < 1 << 256 and name == opcode
    assert {key: fields[key] for key in values} == values and fields["opcode"] == instructions.OPCODES[opcode]


@pytest.mark.parametrize("opcode, name", [(opcode, name) for opcode, fields in instructions.FIELDS.items()
                                          for name, _ in fields[1:]])
def test_a_value_beyond_its_field_is_refused(opcode, name):
    width = dict(instructions.FIELDS[opcode])[name]
    signed = instructions.is_signed(opcode, name)
    for value in (1 << width - signed, -(1 << width - 1) - 1 if signed else -1):
        with pytest.raises(ValueError, match=f"^{opcode}: {name} = {value} does not fit in {width} bits$"):
            instructions.encode(opcode, **{name: value})


@pytest.mark.parametrize("number", [0, 9, 15])
def test_an_unknown_opcode_is_refused(number):
    with pytest.raises(ValueError, match=f"^no instruction has opcode {number}$"):
        instructions.decode(number)


# -- engine configurations ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields, error, message", [
    ({"rows": 6}, ValueError, r"rows must be a power of two in 4..128, not 6"),
    ({"rows": 256, "cols": 256}, ValueError, r"rows must be a power of two in 4..128, not 256"),
    ({"rows": 128, "cols": 4}, ValueError, r"cols must be a power of two in 8..128, not 4"),
    ({"rows": 16, "cols": 4, "requantize_lanes": 8}, ValueError, r"requantize_lanes must be a power of two in 1..4, not 8"),
    ({"rows": 64, "accumulator_depth": 64}, ValueError, r"accumulator_depth must be a power of two in 128..1024, not 64"),
    ({"rows": 16, "channel_unit": 16}, ValueError, r"channel_unit must be a power of two in 4..8, not 16"),
    ({"cols": 4, "channel_unit": 4}, ValueError, "the taps of 4 channels take 2 beats and a weight slot has 1; use more cols, "
     "or channel_unit = 0"),
    ({"cols": 4, "array": "table"}, ValueError, "weight_path_beats brings 32 codes a cycle and 1 table groups take 16; use more "
     "table_groups"),
    ({"rows": 8.0}, TypeError, r"rows must be an integer, not 8.0"),
    ({"rows": True}, TypeError, r"rows must be an integer, not True"),
    ({"requantize_lanes": 16}, ValueError, r"requantize_lanes must be a power of two in 1..8, not 16"),
    ({"accumulator_width": 33}, ValueError, r"accumulator_width must be in 16..32, not 33"),
    ({"accumulator_width": 15}, ValueError, r"accumulator_width must be in 16..32, not 15"),
    ({"accumulator_depth": 2048}, ValueError, r"accumulator_depth must be a power of two in 16..1024, not 2048"),
    ({"activation_beats": 100}, ValueError, r"activation_beats must be a power of two in 16..16384, not 100"),
    ({"residual_beats": 8}, ValueError, r"residual_beats must be a power of two in 16..16384, not 8"),
    ({"weight_slots": 1}, ValueError, r"weight_slots must be a power of two in 2..128, not 1"),
    ({"weight_path_beats": 64}, ValueError, r"weight_path_beats must be a power of two in 1..2, not 64"),
    ({"max_burst": 2}, ValueError, r"max_burst must be a power of two in 4..64, not 2"),
    ({"queue_depth": 64}, ValueError, r"queue_depth must be a power of two in 2..32, not 64"),
    ({"residual": 1}, TypeError, r"residual must be true or false, not 1"),
    ({"esb_output": "no"}, TypeError, r"esb_output must be true or false, not 'no'"),
    ({"slices": 3}, ValueError, r"slices must be a power of two in 1..16, not 3"),
    ({"slices": 2, "activation_ports": 4}, ValueError, r"activation_ports must be a power of two in 1..2, not 4"),
    ({"slices": 8, "activation_ports": 1}, ValueError, "8 slices with 4 requantize_lanes each give more than one port stores; "
     "use more activation_ports, or at most 2 requantize_lanes"),
    ({"clock_mhz": 0}, ValueError, r"clock_mhz must be in 1..1000, not 0"),
])
def test_an_engine_of_impossible_size_is_refused(fields, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        EngineConfig(**{"name": "x", "rows": 8, "cols": 8, **fields})


def test_the_hash_depends_on_every_size_and_on_neither_name_nor_clock():
    base = ENGINES["base16x16"]
    assert replace(base, name="other", clock_mhz=100).hash == base.hash
    other = {"rows": 8, "cols": 32, "accumulator_width": 30, "weight_path_beats": 4, "array": "shiftadd", "table_groups": 1,
             "weight_min": -8, "weight_max": 7, "residual": False, "esb_output": False, "channel_unit": 8,
             "weight_ports": 2, "slices": 4, "activation_ports": 1, "requantizer": "shift", "function_table": True,
             "stripes": True, "image_beats": 64, "map_beats": 64, "batch_tiles": True}
    base = replace(base, slices=2, activation_ports=2, array="table", weight_min=-12, weight_max=12, weight_path_beats=2,
                   table_groups=2)
    for field in dataclasses.fields(base):
        if field.name not in ("name", "clock_mhz"):
            value = other[field.name] if field.name in other else getattr(base, field.name) // 2
            changed = {field.name: value}
            if field.name == "array":
                changed |= {"weight_min": -15, "weight_max": 15}
            assert replace(base, **changed).hash != base.hash, field.name


@pytest.mark.parametrize("name", ENGINES)
def test_configurations_survive_json(name, tmp_path):
    config = ENGINES[name]
    assert EngineConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config == engine(name)
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"config": config.to_dict()}))
    assert engine(str(path)) == config


def test_unknown_engines_and_damaged_descriptions_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"^no engine named 'huge'; known: {', '.join(ENGINES)}$"):
        engine("huge")
    with pytest.raises(ValueError, match=r"^no engine parameter named 'colour'; known: accumulator_depth, .*$"):
        EngineConfig.from_dict({**ENGINES["tiny4x4"].to_dict(), "colour": 3})
    path = tmp_path / "engine.json"
    for content in ("", "{", "{}", "[]", '{"config": 3}', '{"config": {"name": "x"}}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"engine\.json is no (JSON file of an engine|engine's configuration): "):
            engine(str(path))
    assert engines.DEFAULT_ENGINE in ENGINES
