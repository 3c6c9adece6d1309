"""Codebooks in LUT RAM: what a tile's 4-bit codes stand for."""

from amaranth import Cat, Module
from amaranth.lib.wiring import Component, In, Out

from esbflow.engine_config import CODE_BITS
from esbhw.fabric.lut_ram import LutRamPorts
from esbhw.target import share

ADDRESS_BITS = CODE_BITS + 1  # code, and which of the two books


class CodebookDecoder(Component):
    """`count` codes looked up at once, combinational; the book is written one entry a cycle.

    Members
    -------
    write_en : In(1);  write_address : In(5), code and book;  write_data : In(width)
    book : In(1);  codes : In(count * 4);  digits : Out(count * width)
    """

    def __init__(self, width: int, count: int):
        self._width, self._count = width, count
        super().__init__({
            "write_en": In(1), "write_address": In(ADDRESS_BITS), "write_data": In(width),
            "book": In(1), "codes": In(count * CODE_BITS), "digits": Out(count * width),
        })

    def elaborate(self, platform):
        m = Module()
        width, count = self._width, self._count
        ram = share(m, platform, "ram", f"lut_ram_{width}x{count}", LutRamPorts, width, count)
        m.d.comb += [
            ram.write_en.eq(self.write_en), ram.write_address.eq(self.write_address), ram.write_data.eq(self.write_data),
            ram.read_address.eq(Cat(Cat(self.codes.word_select(k, CODE_BITS), self.book) for k in range(count))),
            self.digits.eq(ram.read_data),
        ]
        return m
