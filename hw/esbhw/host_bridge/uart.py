"""Asynchronous serial: one start bit, eight data bits, low bit first, one stop bit."""

from amaranth import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out


class Receiver(wiring.Component):
    """Bytes of a serial line; each bit is sampled in its middle. There is no back-pressure: the reader is faster.

    Parameters
    ----------
    divisor : clock cycles of one bit, at least 4. A sender that is off by up to 2.5 % is understood, with 10 cycles and more
        one that is off by up to 4 %.

    Members
    -------
    rx : In(1), idle high, asynchronous
    valid : Out(1), data : Out(8), one byte for one cycle; a byte without its stop bit is dropped
    """

    def __init__(self, divisor: int):
        self._divisor = divisor
        super().__init__({"rx": In(1, init=1), "valid": Out(1), "data": Out(8)})

    def elaborate(self, platform):
        m = Module()
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)
        timer = Signal(range(self._divisor + self._divisor // 2 + 1))
        bits = Signal(range(10))
        shift = Signal(8)
        m.d.sync += self.valid.eq(0)
        with m.If(bits == 0):
            m.d.sync += timer.eq(self._divisor + self._divisor // 2 - 1)  # to the middle of the first data bit
            with m.If(~line):
                m.d.sync += bits.eq(9)
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [timer.eq(self._divisor - 1), bits.eq(bits - 1)]
            with m.If(bits == 1):
                m.d.sync += [self.valid.eq(line), self.data.eq(shift)]
            with m.Else():
                m.d.sync += shift.eq(Cat(shift[1:], line))
        return m


class Sender(wiring.Component):
    """Bytes onto a serial line, ten bit times each; `i` waits meanwhile.

    Parameters
    ----------
    divisor : clock cycles of one bit.

    Members
    -------
    i : In(stream of 8 bits);  tx : Out(1), idle high
    """

    def __init__(self, divisor: int):
        self._divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        timer = Signal(range(self._divisor))
        bits = Signal(range(11))
        shift = Signal(9, init=-1)
        m.d.comb += self.i.ready.eq((bits == 0) & (timer == 0))
        with m.If(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(bits != 0):
            m.d.sync += [self.tx.eq(shift[0]), shift.eq(Cat(shift[1:], 1)), bits.eq(bits - 1), timer.eq(self._divisor - 1)]
        with m.Elif(self.i.valid):
            m.d.sync += [shift.eq(Cat(self.i.payload, 1)), bits.eq(9), self.tx.eq(0), timer.eq(self._divisor - 1)]
        return m
