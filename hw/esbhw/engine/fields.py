"""Instruction fields as an Amaranth layout, made from the same tables that encode them."""

from amaranth import signed
from amaranth.lib.data import Field, FlexibleLayout

from esbflow import instructions


def instruction_layout(opcode: str) -> FlexibleLayout:
    """A view of the 256 bits of one instruction."""
    fields = {}
    for name, (low, width) in instructions.layout(opcode).items():
        shape = signed(width) if instructions.is_signed(opcode, name) else width
        fields[name] = Field(shape, low)
    return FlexibleLayout(instructions.INSTRUCTION_BITS, fields)
