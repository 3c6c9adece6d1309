"""Packets of a serial link to memory words and register accesses; esbflow.bridge describes them."""

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.crc.catalog import CRC16_XMODEM
from amaranth.lib.wiring import In, Out

from esbflow import bridge
from esbflow.registers import ADDRESS_BITS
from esbhw.engine.control import lite_signature
from esbhw.host_bridge.uart import Receiver, Sender


class HostBridge(wiring.Component):
    """Answers one request after the other.

    Parameters
    ----------
    divisor : clock cycles of a bit.
    memory_bytes, clock_hz : what the info words say.
    quiet_bits : bit times after which a packet that does not go on is given up.

    Members
    -------
    rx, tx : the serial line
    lite : Out(lite_signature().flip()), AXI4-Lite master to the engine's registers
    request, write, address, data : Out, held until `done`: a word of the memory;  result : In(32)
    """

    def __init__(self, divisor: int, memory_bytes: int, clock_hz: int, quiet_bits: int = 4096):
        self._divisor, self._quiet = divisor, divisor * quiet_bits
        self._info = dict(zip(bridge.INFO, (bridge.IDENTITY, bridge.VERSION, memory_bytes, clock_hz)))
        super().__init__({
            "rx": In(1, init=1), "tx": Out(1, init=1), "lite": Out(lite_signature().flip()),
            "request": Out(1), "write": Out(1), "address": Out(30), "data": Out(32), "done": In(1), "result": In(32),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = Receiver(self._divisor)
        m.submodules.sender = sender = Sender(self._divisor)
        m.submodules.request_crc = request_crc = CRC16_XMODEM(8).create()
        m.submodules.answer_crc = answer_crc = CRC16_XMODEM(8).create()
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(sender.tx)]

        opcode, header, left = Signal(8), Signal(48), Signal(16)
        index, quiet = Signal(3), Signal(range(self._quiet + 1))
        word, good = Signal(32), Signal()
        space, words = header[30:32], header[32:48]
        came = receiver.valid
        m.d.comb += [
            request_crc.data.eq(receiver.data), request_crc.valid.eq(came),
            answer_crc.data.eq(sender.i.payload),
            self.write.eq(opcode == ord(bridge.WRITE)), self.address.eq(header[2:32] & 0x0FFF_FFFF), self.data.eq(word),
        ]
        m.d.sync += quiet.eq(Mux(came, 0, Mux(quiet == self._quiet, quiet, quiet + 1)))

        def take(bits, goes_on):
            """The next byte into a shift register; after its last byte, what `goes_on` does."""
            with m.If(came):
                m.d.sync += [bits.eq(Cat(bits[8:], receiver.data)), index.eq(index + 1)]
                with m.If(index == len(bits) // 8 - 1):
                    m.d.sync += index.eq(0)
                    goes_on()
            with m.Elif(quiet == self._quiet):
                m.next = "OPCODE"

        def send(byte, state):
            m.d.comb += [sender.i.valid.eq(1), sender.i.payload.eq(byte), answer_crc.valid.eq(sender.i.ready)]
            with m.If(sender.i.ready):
                state()

        def go(state):
            def step():
                m.next = state
            return step

        checked, check = Signal(16), Signal()
        with m.FSM():
            with m.State("OPCODE"):
                m.d.sync += [index.eq(0), good.eq(1)]
                m.d.comb += [request_crc.start.eq(~came), answer_crc.start.eq(1)]
                with m.If(came):
                    m.d.sync += opcode.eq(receiver.data)
                    with m.If((receiver.data == ord(bridge.READ)) | (receiver.data == ord(bridge.WRITE))):
                        m.next = "HEADER"
                    with m.Else():
                        m.next = "LOST"
            with m.State("HEADER"):
                take(header, go("HEADER-CRC"))
            with m.State("HEADER-CRC"):
                take(checked, go("HEADER-CHECK"))
            with m.State("HEADER-CHECK"):
                m.d.comb += request_crc.start.eq(1)
                m.d.sync += left.eq(words)
                with m.If(~request_crc.match_detected | (words == 0)
                          | ((space != 0) & self.write & (words != 1))):
                    m.next = "LOST"
                with m.Elif(self.write):
                    m.next = "WORD"
                with m.Else():
                    m.next = "STATUS"
            with m.State("LOST"):
                m.d.sync += good.eq(0)
                with m.If(quiet == self._quiet):
                    m.next = "STATUS"

            with m.State("WORD"):  # of a write
                take(word, go("WORD-TAKEN"))
            with m.State("WORD-TAKEN"):
                with m.If(space == 0):
                    self._access(m, go("NEXT-WORD"), header, left, word)
                with m.Else():
                    m.next = "WORDS-CRC"
            with m.State("NEXT-WORD"):
                m.next = "WORD"
                with m.If(left == 0):
                    m.next = "WORDS-CRC"
            with m.State("WORDS-CRC"):
                take(checked, go("WORDS-CHECK"))
            with m.State("WORDS-CHECK"):
                m.d.sync += good.eq(request_crc.match_detected)
                m.next = "STATUS"
                with m.If((space != 0) & request_crc.match_detected):
                    m.next = "REGISTER-WRITE"
            with m.State("REGISTER-WRITE"):
                self._access(m, go("STATUS"), header, left, word)

            with m.State("STATUS"):
                def after_status():
                    m.next = "ANSWER-CRC"
                    with m.If(good & ~self.write):
                        m.next = "READ"
                send(Mux(good, ord(bridge.GOOD), ord(bridge.BAD)), after_status)
            with m.State("READ"):
                self._access(m, go("READ-SEND"), header, left, word)
            with m.State("READ-SEND"):
                def after_byte():
                    m.d.sync += [word.eq(word >> 8), index.eq(index + 1)]
                    with m.If(index == 3):
                        m.d.sync += index.eq(0)
                        m.next = "READ"
                        with m.If(left == 0):
                            m.next = "ANSWER-CRC"
                send(word[:8], after_byte)
            with m.State("ANSWER-CRC"):
                def after_crc():
                    m.d.sync += check.eq(~check)
                    with m.If(check):
                        m.next = "OPCODE"
                send(Mux(check, checked[:8], answer_crc.crc[8:]), after_crc)
                with m.If(~check):
                    m.d.sync += checked.eq(answer_crc.crc)
        return m

    def _access(self, m, goes_on, header, left, word):
        """One word read or written in the space that the header says; then the next address."""
        space, lite = header[30:32], self.lite
        finished = Signal()
        sent = Signal(2)  # address and data channels of a register write
        with m.Switch(space):
            with m.Case(bridge.MEMORY >> 30):
                m.d.comb += self.request.eq(1)
                with m.If(self.done):
                    m.d.comb += finished.eq(1)
                    with m.If(~self.write):
                        m.d.sync += word.eq(self.result)
            with m.Case(bridge.REGISTERS >> 30):
                m.d.comb += [lite.awaddr.eq(header[:ADDRESS_BITS]), lite.araddr.eq(header[:ADDRESS_BITS]),
                             lite.wdata.eq(word), lite.wstrb.eq(0xF), lite.rready.eq(1), lite.bready.eq(1)]
                with m.If(self.write):
                    m.d.comb += [lite.awvalid.eq(~sent[0]), lite.wvalid.eq(~sent[1])]
                    m.d.sync += [sent[0].eq(sent[0] | lite.awready), sent[1].eq(sent[1] | lite.wready)]
                    with m.If(lite.bvalid):
                        m.d.comb += finished.eq(1)
                        m.d.sync += sent.eq(0)
                with m.Else():
                    m.d.comb += lite.arvalid.eq(~sent[0])
                    m.d.sync += sent[0].eq(sent[0] | lite.arready)
                    with m.If(lite.rvalid):
                        m.d.comb += finished.eq(1)
                        m.d.sync += [sent.eq(0), word.eq(lite.rdata)]
            with m.Default():
                m.d.comb += finished.eq(1)
                m.d.sync += word.eq(0)
                with m.Switch(header[2:ADDRESS_BITS]):
                    for i, value in enumerate(self._info.values()):
                        with m.Case(i):
                            m.d.sync += word.eq(Const(value, 32))
        with m.If(finished):
            m.d.sync += [header[:30].eq(header[:30] + 4), left.eq(left - 1)]
            goes_on()
