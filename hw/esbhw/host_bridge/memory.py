"""Block RAM as the engine's memory: AXI4 slaves for its three masters, and words for the host."""

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_ADDRESS_BITS, AXI_BEAT_BITS
from esbhw.engine.axi import read_signature, write_signature

DECERR = 3
BEAT_BYTES = AXI_BEAT_BITS // 8
WORDS = AXI_BEAT_BITS // 32


class BlockMemory(wiring.Component):
    """Memory at address 0. Masters take turns burst by burst; a beat a cycle within one. INCR bursts of whole beats.

    A burst that reaches outside is answered with DECERR and changes nothing.

    Parameters
    ----------
    beats : depth in beats of 128 bits.
    readers : how many read masters.

    Members
    -------
    read_N : In(read_signature()), from the masters;  write : In(write_signature())
    host_request, host_write : In(1);  host_address : In(range(4 * beats)), of 32-bit words;  host_data : In(32): held until
        host_done
    host_done : Out(1), for one cycle;  host_result : Out(32), what was read
    """

    def __init__(self, beats: int, readers: int):
        self.beats, self._readers = beats, readers
        self.word_bits = (beats * WORDS - 1).bit_length()
        super().__init__({
            **{f"read_{i}": In(read_signature()) for i in range(readers)}, "write": In(write_signature()),
            "host_request": In(1), "host_write": In(1), "host_address": In(self.word_bits), "host_data": In(32),
            "host_done": Out(1), "host_result": Out(32),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=AXI_BEAT_BITS, depth=self.beats, init=[])
        self._reads(m, memory.read_port())
        self._writes(m, memory.write_port(granularity=8))
        return m

    def _reads(self, m, port) -> None:
        """Bursts and the host's words through the read port: the host comes first, masters take turns."""
        readers = [getattr(self, f"read_{i}") for i in range(self._readers)]
        owner = Signal(range(self._readers + 1))  # the last is the host
        turn = Signal(range(self._readers))
        address = Signal(AXI_ADDRESS_BITS - 4)
        left = Signal(9)
        outside, valid, last = Signal(), Signal(), Signal()
        host_asked, host_taken = Signal(), Signal()
        ready = Array([reader.rready for reader in readers])[owner]
        busy = (left != 0) | valid
        host_read = self.host_request & ~self.host_write & ~host_asked & ~host_taken
        for i, reader in enumerate(readers):
            m.d.comb += [reader.rdata.eq(port.data), reader.rvalid.eq(valid & (owner == i)), reader.rlast.eq(last),
                         reader.rresp.eq(Mux(outside, DECERR, 0))]
        word = port.data.word_select(self.host_address[:2], 32)
        m.d.comb += [port.addr.eq(address), port.en.eq(0)]
        # In a register of its own: from the block RAMs to the bridge is the longest way on the FPGA.
        m.d.sync += [host_asked.eq(0), host_taken.eq(host_asked), self.host_result.eq(word)]
        with m.If(~busy):
            m.d.sync += turn.eq(Mux(turn == self._readers - 1, 0, turn + 1))
            with m.If(host_read):
                m.d.comb += [port.addr.eq(self.host_address[2:]), port.en.eq(1)]
                m.d.sync += host_asked.eq(1)
            with m.Else():
                with m.Switch(turn):
                    for i, reader in enumerate(readers):
                        with m.Case(i):
                            m.d.comb += reader.arready.eq(1)
                            with m.If(reader.arvalid):
                                end = (reader.araddr >> 4) + reader.arlen
                                m.d.sync += [owner.eq(i), address.eq(reader.araddr[4:]), left.eq(reader.arlen + 1),
                                             outside.eq(end >= self.beats)]
        with m.Elif(~valid | ready):
            m.d.comb += port.en.eq(left != 0)
            m.d.sync += [valid.eq(left != 0), last.eq(left == 1)]
            with m.If(left != 0):
                m.d.sync += [address.eq(address + 1), left.eq(left - 1)]
        self._host_read_done = host_taken

    def _writes(self, m, port) -> None:
        """A burst, or a word of the host's, through the write port."""
        bus = self.write
        address = Signal(AXI_ADDRESS_BITS - 4)
        taking, outside = Signal(), Signal()
        host = self.host_request & self.host_write & ~taking
        host_written = Signal()
        m.d.comb += [
            bus.awready.eq(~taking & ~host & ~bus.bvalid), bus.wready.eq(taking), bus.bresp.eq(Mux(outside, DECERR, 0)),
            port.addr.eq(address), port.data.eq(bus.wdata),
            port.en.eq(Mux(taking & bus.wvalid & ~outside, bus.wstrb, 0)),
        ]
        m.d.sync += host_written.eq(0)
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(host & ~host_written):
            m.d.comb += [port.addr.eq(self.host_address[2:]), port.data.eq(self.host_data.replicate(WORDS)),
                         port.en.eq(0xF << Cat(0, 0, self.host_address[:2]))]
            m.d.sync += host_written.eq(1)
        with m.Elif(bus.awvalid & bus.awready):
            end = (bus.awaddr >> 4) + bus.awlen
            m.d.sync += [address.eq(bus.awaddr[4:]), taking.eq(1), outside.eq(end >= self.beats)]
        with m.Elif(taking & bus.wvalid):
            m.d.sync += address.eq(address + 1)
            with m.If(bus.wlast):
                m.d.sync += [taking.eq(0), bus.bvalid.eq(1)]
        m.d.comb += self.host_done.eq(self._host_read_done | host_written)
