"""Instruction fields as an Amaranth layout, made from the same tables that encode them."""

from amaranth import signed
from amaranth.lib.data import Field, FlexibleLayout

from esbflow import instructions
from esbflow.engine_config import EngineConfig


def places(opcode: str, config: EngineConfig | None = None) -> dict:
    """As `instructions.layout`, without the fields of options that an engine of this configuration has not."""
    options = {name: option for (owner, name), option in instructions.OPTIONAL.items() if owner == opcode}
    return {name: place for name, place in instructions.layout(opcode).items()
            if config is None or name not in options or getattr(config, options[name])}


def instruction_layout(opcode: str, config: EngineConfig | None = None) -> FlexibleLayout:
    """A view of the 256 bits of one instruction, of the fields that an engine has."""
    fields = {}
    for name, (low, width) in places(opcode, config).items():
        shape = signed(width) if instructions.is_signed(opcode, name) else width
        fields[name] = Field(shape, low)
    return FlexibleLayout(instructions.INSTRUCTION_BITS, fields)
