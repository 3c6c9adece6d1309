"""LUTs, flip-flops and block RAM of an engine without synthesis: a formula for each block, with fitted coefficients.

A block's LUTs are a sum of features, each a number that follows from the configuration (bits of all adders, bits of a RAM,
requantizer lanes...), times coefficients; its flip-flops are the same sum with coefficients of their own. The coefficients
lie in area_model.json, beside the largest error on engines that a fit had not seen. `python -m esbhw.area_fit` fits them
to the records of open synthesis. Block RAM follows from widths and depths alone.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from esbflow import engine_facts as facts
from esbflow.engine_config import AXI_BEAT_BITS, TABLE_INPUTS, EngineConfig
from esbflow.requantizer import constant_fields, multiplicand_bits

MODEL = Path(__file__).with_name("area_model.json")
RAM_BITS = 14
"""Bits of one RAM32M16, which is 8 LUTs."""
LARGEST_LUT_RAM = 64
"""Memories of so many words lie in LUT RAM, larger ones in block RAM."""
BYTE = 9
RAM_BYTES = ((512, 8), (1024, 4), (2048, 2), (4096, 1))
"""(words, bytes of 9 bits) of one 36 Kb block; half of it is a block of its own."""
RESOURCES = ("lut", "ff")


@dataclass(frozen=True)
class Area:
    """What an engine takes by the model. `blocks`: {block: {"lut", "ff"}}; `error`: the largest relative error of its LUTs,
    flip-flops or block RAM on engines that the fit had not seen."""

    lut: int
    ff: int
    bram36: float
    dsp: int  # none: no engine has one
    blocks: dict
    error: float


def area(config: EngineConfig) -> Area:
    """The model's LUTs (LUT RAM included), flip-flops and 36 Kb block RAMs of an engine."""
    model = coefficients()
    blocks = {}
    for block, values in features(config).items():
        fitted = model["blocks"].get(block, {})
        blocks[block] = {resource: round(sum(fitted.get(name, {}).get(resource, 0.0) * value
                                             for name, value in values.items())) for resource in RESOURCES}
    if config.function_table:
        blocks["function table"] = function_table(config)
    total = {resource: sum(block[resource] for block in blocks.values()) for resource in RESOURCES}
    return Area(total["lut"], total["ff"], block_rams(config), 0, blocks, model["error"])


@lru_cache
def coefficients() -> dict:
    """The fitted model: {"error", "blocks": {block: {feature: {"lut", "ff"}}}, "left_out": {engine: {resource: error}}}."""
    return json.loads(MODEL.read_text())


def features(config: EngineConfig) -> dict:
    """{block: {feature: value}}; blocks that an engine does not have are left out."""
    blocks = {
        "control and memory ports": {
            "engine": 1, "ports": config.weight_ports + 2 * (config.activation_ports - 1), "slices": config.slices - 1,
            "channel unit": int(config.channel_unit > 0), "path beats": config.weight_path_beats,
            "image buffers": config.slices * (config.image_beats > 0),
            "map memories": config.activation_ports * (config.map_beats > 0)},
        f"{config.array} array": _table_array(config) if config.array == "table" else _shift_add_array(config),
        "accumulators": _accumulators(config),
        "drain and requantizer": _drain(config),
        "buffers": _buffers(config),
    }
    if config.channel_unit:
        blocks["channel unit"] = _channel_unit(config)
    if config.map_beats:
        blocks["map memory"] = {"ports": config.activation_ports}
    if config.image_beats:
        blocks["image buffer"] = {"slices": config.slices, "planes": config.slices * (8 // config.digit_bits)}
        blocks["unfolder"] = {"engine": 1}
    return blocks


def block_rams(config: EngineConfig) -> float:
    """36 Kb block RAMs of all memories."""
    total = sum(_rams(*memory) for memory in memories(config))
    return total + _rams(AXI_BEAT_BITS, facts.write_beats(config), 1, config.slices)  # FIFOs of the write ports


def memories(config: EngineConfig) -> list:
    """(bits that are written at once, words, how many of them side by side, how many memories): accumulators, activations,
    weight slots, constants, residual, image buffer, map memory; the FIFOs apart."""
    beats, lanes, ports = config.beats_per_word, config.requantize_lanes, config.weight_ports
    copies = facts.TAP_SIDE if config.channel_unit else 1
    residuals = facts.residual_planes(config) * config.residual
    return [
        (config.cols * config.accumulator_width, config.accumulator_depth, 1, 2 * config.slices),
        (AXI_BEAT_BITS, 2 * config.activation_beats // beats, beats, copies * config.slices),
        (AXI_BEAT_BITS, config.weight_slots * config.tile_rows, config.weight_path_beats // ports, ports),
        (sum(bits for _, bits in constant_fields(config)), 2 * config.tile_channels // lanes, lanes // ports, ports),
        (AXI_BEAT_BITS, 2 * config.residual_beats // beats, beats, residuals * config.slices),
        *([(AXI_BEAT_BITS, config.image_beats // 2, 1, 2 * config.slices)] if config.image_beats else []),
        *([(AXI_BEAT_BITS, config.map_beats * config.slices_per_port, 1, config.activation_ports)]
          if config.map_beats else []),
    ]


def _rams(width: int, depth: int, count: int, memories_: int) -> float:
    """36 Kb blocks of memories of `count` words side by side; half of one where that is enough for the rest."""
    if depth <= LARGEST_LUT_RAM:
        return 0
    words, size = next((shape for shape in RAM_BYTES if depth <= shape[0]), RAM_BYTES[-1])
    # Each part that is written by itself takes whole bytes.
    return memories_ * -(-depth // words) * math.ceil(2 * count * -(-width // BYTE) / size) / 2


def _lut_ram(width: int, depth: int, count: int, memories_: int) -> int:
    """Bits of a memory in LUT RAM, times its parts of 32 words; 0 in block RAM."""
    return width * -(-depth // 32) * count * memories_ if depth <= LARGEST_LUT_RAM else 0


# -- adders, counted as esbhw.fabric.adder_rows builds them -------------------------------------------------------------
class Tree(NamedTuple):
    """LUTs and flip-flops of a tree of adder rows, and its result's (lowest bit, largest value)."""

    luts: int
    registers: int
    result: tuple[int, int]


def tree(operands: list) -> Tree:
    """(LUTs, flip-flops, result) of a registered ternary tree over operands (lowest bit, largest value).

    >>> tree([(0, 15)] * 3)
    Tree(luts=5, registers=6, result=(0, 45))
    """
    luts = registers = 0
    while len(operands) > 1:
        operands = sorted(operands, key=lambda operand: operand[1].bit_length())
        sums = []
        for k in range(0, len(operands), 3):
            cost, result = row(operands[k:k + 3])
            luts, registers = luts + cost, registers + result[1].bit_length()
            sums.append(result)
        operands = sums
    return Tree(luts, registers, operands[0])


class Row(NamedTuple):
    """LUTs of an adder row, and its result's (lowest bit, largest value)."""

    luts: int
    result: tuple[int, int]


def row(operands: list) -> Row:
    """(LUTs, result) of one adder row: a LUT for each bit from the second lowest operand's first to the largest's last."""
    largest = sum(value for _, value in operands)
    if len(operands) == 1:
        return Row(0, operands[0])
    first = sorted(low for low, _ in operands)[1]
    last = max(value.bit_length() for _, value in operands) + (len(operands) == 3)
    return Row(min(last, largest.bit_length()) - first, (min(low for low, _ in operands), largest))


class SumCost(NamedTuple):
    """LUTs and flip-flops of a sum."""

    luts: int
    registers: int


def planes_sum(config: EngineConfig, count: int, planes: int) -> SumCost:
    """(LUTs, flip-flops) of a dot product of `count` digits by planes of the weights: leaf rows, trees, join."""
    largest = config.largest_digit
    leaves = [row([(0, largest)] * len(range(k, min(k + 2, count)))) for k in range(0, count, 2)]
    luts, registers, result = tree([leaf.result for leaf in leaves])
    luts += sum(max(leaf.luts, largest.bit_length()) for leaf in leaves)
    registers += sum(leaf.result[1].bit_length() for leaf in leaves)
    joined = tree([(j, result[1] << j) for j in range(planes)])
    return SumCost(planes * luts + joined.luts, planes * registers + joined.registers)


# -- blocks -------------------------------------------------------------------------------------------------------------
def _shift_add_array(config: EngineConfig) -> dict:
    planes, magnitude = config.weight_planes
    luts, registers = planes_sum(config, config.rows, planes)
    columns = config.cols * config.slices
    return {
        "adder bits": columns * luts, "adder registers": columns * registers,
        "signs": columns * config.rows * config.digit_bits * magnitude,
        "weight registers": 2 * columns * config.rows * facts.weight_bits(config),
        "codebook bits": config.path_codes * facts.weight_bits(config), "tile rows": config.tile_rows,
    }


def _table_array(config: EngineConfig) -> dict:
    groups, entry = facts.table_groups(config), facts.table_largest(config)
    planes, bits = config.digit_bits, entry.bit_length()
    luts, registers, plane = tree([(0, entry)] * groups)
    joined = tree([(p, plane[1] << p) for p in range(planes)])
    generators = config.table_groups * config.cols
    return {
        "RAM blocks": config.slices * planes * groups * -(-config.cols * bits // RAM_BITS),
        "adder bits": config.cols * config.slices * (planes * luts + joined.luts),
        "adder registers": config.cols * config.slices * (planes * (registers + groups * bits) + joined.registers),
        "generators": generators, "generator bits": generators * bits,
        "codebook bits": generators * facts.weight_bits(config), "tile rows": config.tile_rows // config.table_sets,
        "sets": config.table_sets, "groups of rows": config.rows // TABLE_INPUTS,
    }


def _accumulators(config: EngineConfig) -> dict:
    unit, columns = config.channel_unit > 0, config.cols * config.slices
    return {
        "columns": columns, "column bits": columns * config.accumulator_width, "dot bits": columns * facts.dot_bits(config),
        "chosen bits": columns * facts.dot_bits(config) * unit, "columns of a unit": columns * unit,
        "LUT RAM bits": _lut_ram(*memories(config)[0]), "shift LUTs": columns * _shift_luts(config),
    }


def _shift_luts(config: EngineConfig) -> int:
    """LUTs of six inputs for the choice between the shifts of a dot, bit by bit."""
    step, largest, bits = config.shift_step, config.largest_shift, facts.dot_bits(config)
    select, total = largest.bit_length(), 0
    for i in range(min(bits + step * largest, config.accumulator_width)):
        choices = sum(0 <= i - step * k < bits for k in range(largest + 1))
        total += -(-(choices + select - 1) // 5)
    return total


def _drain(config: EngineConfig) -> dict:
    lanes, groups = config.requantize_lanes * config.slices, config.cols // config.requantize_lanes
    multiplies = config.requantizer == "multiply"
    return {
        "engine": 1, "lanes": lanes * multiplies, "lane bits": lanes * multiplies * multiplicand_bits(config),
        "shift lanes": lanes * (not multiplies), "shift lane bits": lanes * (not multiplies) * config.accumulator_width,
        "residual lanes": lanes * config.residual,
        "ESB lanes": lanes * config.esb_output, "chosen bits": lanes * config.accumulator_width * (groups - 1),
        "lanes by groups": lanes * config.lane_groups, "residual": int(config.residual), "ESB": int(config.esb_output),
    }


def function_table(config: EngineConfig) -> dict:
    """Resources of all lanes' tables, counted and not fitted: RAM64M8, which hold 7 bits in 8 LUTs, the choice of an entry's
    half, and the other half of a level, which lanes for ESB have anyhow."""
    ports, level = config.weight_ports, 0 if config.esb_output else 18
    memories_ = 8 * ports * -(-8 * facts.LEVEL_ENTRIES // facts.LEVEL_ROWS // ports // 7)
    lanes = config.requantize_lanes * config.slices
    return {"lut": lanes * (memories_ + 18 + level), "ff": lanes * (8 + level)}


def _buffers(config: EngineConfig) -> dict:
    small = sum(_lut_ram(*memory) for memory in memories(config)[1:])
    copies = config.slices * (facts.TAP_SIDE if config.channel_unit else 1)
    return {
        "engine": 1, "LUT RAM bits": small, "word bits": copies * config.word_bits,
        "chosen bits": copies * config.word_bits * (config.words_per_beat - 1),
        "chosen residual bits": config.slices * config.word_bits * (config.words_per_beat - 1)
        * config.residual,
        "weight ports": config.weight_ports,
    }


def _channel_unit(config: EngineConfig) -> dict:
    planes, magnitude = facts.channel_planes(config)
    luts, registers = planes_sum(config, facts.TAPS, planes)
    lanes, blocks = config.channel_unit * config.slices, config.rows // config.channel_unit
    return {
        "engine": 1, "lanes": lanes, "adder bits": lanes * luts, "adder registers": lanes * registers,
        "tap bits": 2 * lanes * facts.TAPS * (planes + magnitude), "signs": lanes * facts.TAPS * magnitude,
        "chosen bits": lanes * facts.TAP_SIDE * config.digit_bits * (blocks - 1),
    }
