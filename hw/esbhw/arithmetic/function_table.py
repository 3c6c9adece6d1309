"""The function table behind a requantizer lane: a level of 8 bits becomes any other integer of 8 bits."""

from amaranth import Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.data import ArrayLayout, StructLayout
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbflow.engine_facts import LEVEL_ENTRIES, LEVEL_ROWS
from esbflow.requantizer import level_bits
from esbhw.fabric.idioms import pick

ENTRY_BITS = 8
ROW_ENTRIES = LEVEL_ENTRIES // LEVEL_ROWS
"""Entries side by side: LUT RAM has words of 64 rows."""


def table_write_layout(config: EngineConfig) -> ArrayLayout:
    """A row's part on each weight port."""
    ports = config.weight_ports
    return ArrayLayout(StructLayout({
        "valid": 1, "row": range(LEVEL_ROWS), "entries": ENTRY_BITS * ROW_ENTRIES // ports}), ports)


class FunctionTable(wiring.Component):
    """Half of the table's entry for a level, or the level's lower half as it is; one cycle later, in three levels of LUTs.

    The entries of a row lie side by side, so that the content comes in 64 writes. Each weight port has a memory of its own
    for its part of the rows. There is one copy, and it is written while nobody reads: see table_write_delay.

    Members
    -------
    enable : In(1), take the level;  level : In(8);  on : In(1), look it up;  upper : In(1), which half of the entry
    write : In(table_write_layout(config))
    digit : Out(4)
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "enable": In(1), "level": In(level_bits(config)), "on": In(1), "upper": In(1),
            "write": In(table_write_layout(config)), "digit": Out(DIGIT_BITS),
        })

    def elaborate(self, platform):
        m = Module()
        choice = (ROW_ENTRIES - 1).bit_length()
        words = []
        for k in range(self._config.weight_ports):
            part = self.write[k]
            m.submodules[f"memory{k}"] = memory = Memory(shape=unsigned(len(part.entries)), depth=LEVEL_ROWS, init=[])
            write, read = memory.write_port(), memory.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(part.valid), write.addr.eq(part.row), write.data.eq(part.entries),
                read.addr.eq(self.level[choice:]),
            ]
            words += [read.data[i:i + ENTRY_BITS] for i in range(0, len(part.entries), ENTRY_BITS)]
        halves = [Mux(self.upper, word[DIGIT_BITS:], word[:DIGIT_BITS]) for word in words]
        entry = pick(self.level[:choice], halves)
        digit = Signal(DIGIT_BITS, reset_less=True)
        with m.If(self.enable):
            m.d.sync += digit.eq(Mux(self.on, entry, self.level[:DIGIT_BITS]))
        m.d.comb += self.digit.eq(digit)
        return m

