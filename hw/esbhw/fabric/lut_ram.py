"""Distributed RAM of 32 words: one write port, and an asynchronous read port for each pair of bits or for all of them."""

from amaranth import Cat, ClockSignal, Const, Instance, Module, Signal, unsigned
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import Component, In, Out

from esbhw.target import has_primitives

WORDS = 32
PORTS = 7  # of a RAM32M16, 2 bits each; its eighth LUT holds the write address


class LutRam(Component):
    """32 words of `width` bits: written at the clock edge, read at once. A RAM32M16 for every 14 bits.

    Members
    -------
    write_en : In(1);  write_address : In(5);  write_data : In(width)
    read_address : In(5);  read_data : Out(width), combinational
    """

    def __init__(self, width: int):
        self.width, self.ports = width, 1
        super().__init__({
            "write_en": In(1), "write_address": In(5), "write_data": In(width),
            "read_address": In(5), "read_data": Out(width),
        })

    def elaborate(self, platform):
        m = Module()
        if has_primitives(platform):
            _primitives(m, self.write_en, self.write_address,
                        [(self.write_data[k:k + 2], self.read_address, self.read_data[k:k + 2])
                         for k in range(0, self.width, 2)])
        else:
            _memory(m, self.write_en, self.write_address, self.write_data, [(self.read_address, self.read_data)])
        return m


class LutRamPorts(Component):
    """32 words of `width` bits with `ports` read ports of their own addresses: a copy of the content for each.

    Members
    -------
    write_en : In(1);  write_address : In(5);  write_data : In(width)
    read_address : In(ports * 5);  read_data : Out(ports * width), combinational
    """

    def __init__(self, width: int, ports: int):
        self.width, self.ports = width, ports
        super().__init__({
            "write_en": In(1), "write_address": In(5), "write_data": In(width),
            "read_address": In(ports * 5), "read_data": Out(ports * width),
        })

    def elaborate(self, platform):
        m = Module()
        reads = [(self.read_address.word_select(p, 5), self.read_data.word_select(p, self.width))
                 for p in range(self.ports)]
        if has_primitives(platform):
            _primitives(m, self.write_en, self.write_address,
                        [(self.write_data[k:k + 2], address, data[k:k + 2])
                         for address, data in reads for k in range(0, self.width, 2)])
        else:
            _memory(m, self.write_en, self.write_address, self.write_data, reads)
        return m


def _memory(m, write_en, write_address, write_data, reads) -> None:
    """The plain twin: a memory for each read port, as the RAM blocks hold a copy for each."""
    for k, (address, data) in enumerate(reads):
        m.submodules[f"memory_{k}"] = memory = Memory(shape=unsigned(len(write_data)), depth=WORDS, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(write_en), write.addr.eq(write_address), write.data.eq(write_data),
            read.addr.eq(address), data.eq(read.data),
        ]


def _primitives(m, write_en, write_address, ports) -> None:
    """RAM32M16s that hold `ports`: (write data of 1 or 2 bits, read address, read data)."""
    for start in range(0, len(ports), PORTS):
        pins = {}
        for letter, (data, address, out) in zip("ABCDEFG", ports[start:start + PORTS]):
            read = Signal(2, name=f"read_{start}_{letter}")
            m.d.comb += out.eq(read)
            pins |= {f"i_DI{letter}": Cat(data, Const(0, 2 - len(data))), f"i_ADDR{letter}": address,
                     f"o_DO{letter}": read}
        for letter in "ABCDEFG"[len(ports) - start:]:
            pins |= {f"i_DI{letter}": Const(0, 2), f"i_ADDR{letter}": Const(0, 5)}
        m.submodules[f"ram_{start // PORTS}"] = Instance(
            "RAM32M16", i_WCLK=ClockSignal(), i_WE=write_en, i_ADDRH=write_address, i_DIH=Const(0, 2), **pins)
