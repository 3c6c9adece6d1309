"""Packets of a serial link to memory words and register accesses; esbflow.bridge describes them."""

from dataclasses import dataclass

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.crc import Processor
from amaranth.lib.crc.catalog import CRC16_XMODEM
from amaranth.lib.wiring import In, Out

from esbflow import bridge
from esbflow.registers import ADDRESS_BITS
from esbhw.engine.control import lite_signature
from esbhw.host_bridge.uart import Receiver, Sender


@dataclass(frozen=True, eq=False)
class _Packet:
    """A request and its answer, as far as they have come.

    receiver, sender : the serial line;  request_crc, answer_crc : over what came and what goes
    opcode, header : of the request;  left : words of it that are still to come or go
    index : bytes of the field at hand;  word : the word at hand;  good : all checks were right so far
    quiet : cycles since a byte came, `quiet_cycles` at most
    checked : the check that came, or the answer's;  check : its second byte is due
    """

    receiver: Receiver
    sender: Sender
    request_crc: Processor
    answer_crc: Processor
    opcode: Signal
    header: Signal
    left: Signal
    index: Signal
    quiet: Signal
    word: Signal
    good: Signal
    checked: Signal
    check: Signal
    quiet_cycles: int

    def silent(self) -> Value:
        """Whether nothing has come for so long that the packet is given up."""
        return self.quiet == self.quiet_cycles

    def take(self, m, bits, goes_on) -> None:
        """The next byte into a shift register; after its last byte, what `goes_on` does."""
        with m.If(self.receiver.valid):
            m.d.sync += [bits.eq(Cat(bits[8:], self.receiver.data)), self.index.eq(self.index + 1)]
            with m.If(self.index == len(bits) // 8 - 1):
                m.d.sync += self.index.eq(0)
                goes_on()
        with m.Elif(self.silent()):
            m.next = "OPCODE"

    def send(self, m, byte, goes_on) -> None:
        """A byte of the answer; once it is on its way, what `goes_on` does."""
        sender = self.sender
        m.d.comb += [sender.i.valid.eq(1), sender.i.payload.eq(byte), self.answer_crc.valid.eq(sender.i.ready)]
        with m.If(sender.i.ready):
            goes_on()


def _go(m, state: str):
    """A function that makes `state` the next one."""
    def step():
        m.next = state
    return step


class HostBridge(wiring.Component):
    """Answers one request after the other; esbflow.bridge describes both. The serial line is what takes the time.

    There is no back-pressure: the host sends no more before it has the answer. A packet that stops is given up.

    Parameters
    ----------
    divisor : clock cycles of a bit.
    memory_bytes, clock_hz : what the info words say.
    quiet_bits : bit times after which a packet that does not go on is given up.

    Members
    -------
    rx : In(1);  tx : Out(1), the serial line
    lite : Out(lite_signature().flip()), AXI4-Lite master to the engine's registers
    request, write : Out(1);  address : Out(30), of a word;  data : Out(32), held until `done`: a word of the memory
    done : In(1);  result : In(32), with it
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
        packet = self._parts(m)
        with m.FSM():
            self._header_states(m, packet)
            self._word_states(m, packet)
            self._answer_states(m, packet)
        return m

    def _parts(self, m) -> _Packet:
        """The serial line, both checks, and the registers that the states work on."""
        m.submodules.receiver = receiver = Receiver(self._divisor)
        m.submodules.sender = sender = Sender(self._divisor)
        m.submodules.request_crc = request_crc = CRC16_XMODEM(8).create()
        m.submodules.answer_crc = answer_crc = CRC16_XMODEM(8).create()
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(sender.tx)]
        packet = _Packet(
            receiver, sender, request_crc, answer_crc, quiet_cycles=self._quiet,
            opcode=Signal(8), header=Signal(48), left=Signal(16), index=Signal(3), quiet=Signal(range(self._quiet + 1)),
            word=Signal(32), good=Signal(), checked=Signal(16), check=Signal())
        m.d.comb += [
            request_crc.data.eq(receiver.data), request_crc.valid.eq(receiver.valid),
            answer_crc.data.eq(sender.i.payload), self.write.eq(packet.opcode == ord(bridge.WRITE)),
            self.address.eq(packet.header[2:32] & 0x0FFF_FFFF), self.data.eq(packet.word),
        ]
        m.d.sync += packet.quiet.eq(Mux(receiver.valid, 0, Mux(packet.silent(), packet.quiet, packet.quiet + 1)))
        return packet

    def _header_states(self, m, packet: _Packet) -> None:
        """Opcode and header of a request, and whether its check is right; what is not understood passes by."""
        receiver, request_crc, header = packet.receiver, packet.request_crc, packet.header
        space, words = header[30:32], header[32:48]
        came = receiver.valid
        with m.State("OPCODE"):
            m.d.sync += [packet.index.eq(0), packet.good.eq(1)]
            m.d.comb += [request_crc.start.eq(~came), packet.answer_crc.start.eq(1)]
            with m.If(came):
                m.d.sync += packet.opcode.eq(receiver.data)
                with m.If((receiver.data == ord(bridge.READ)) | (receiver.data == ord(bridge.WRITE))):
                    m.next = "HEADER"
                with m.Else():
                    m.next = "LOST"
        with m.State("HEADER"):
            packet.take(m, header, _go(m, "HEADER-CRC"))
        with m.State("HEADER-CRC"):
            packet.take(m, packet.checked, _go(m, "HEADER-CHECK"))
        with m.State("HEADER-CHECK"):
            m.d.comb += request_crc.start.eq(1)
            m.d.sync += packet.left.eq(words)
            with m.If(~request_crc.match_detected | (words == 0)
                      | ((space != 0) & self.write & (words != 1))):
                m.next = "LOST"
            with m.Elif(self.write):
                m.next = "WORD"
            with m.Else():
                m.next = "STATUS"
        with m.State("LOST"):
            m.d.sync += packet.good.eq(0)
            with m.If(packet.silent()):
                m.next = "STATUS"

    def _word_states(self, m, packet: _Packet) -> None:
        """The words of a write: into memory as they come, into a register once their check is right."""
        space, request_crc = packet.header[30:32], packet.request_crc
        with m.State("WORD"):
            packet.take(m, packet.word, _go(m, "WORD-TAKEN"))
        with m.State("WORD-TAKEN"):
            with m.If(space == 0):
                self._access(m, packet, _go(m, "NEXT-WORD"))
            with m.Else():
                m.next = "WORDS-CRC"
        with m.State("NEXT-WORD"):
            m.next = "WORD"
            with m.If(packet.left == 0):
                m.next = "WORDS-CRC"
        with m.State("WORDS-CRC"):
            packet.take(m, packet.checked, _go(m, "WORDS-CHECK"))
        with m.State("WORDS-CHECK"):
            m.d.sync += packet.good.eq(request_crc.match_detected)
            m.next = "STATUS"
            with m.If((space != 0) & request_crc.match_detected):
                m.next = "REGISTER-WRITE"
        with m.State("REGISTER-WRITE"):
            self._access(m, packet, _go(m, "STATUS"))

    def _answer_states(self, m, packet: _Packet) -> None:
        """The status, the words of a read, and the answer's check."""
        word, index, check, checked = packet.word, packet.index, packet.check, packet.checked
        with m.State("STATUS"):
            def after_status():
                m.next = "ANSWER-CRC"
                with m.If(packet.good & ~self.write):
                    m.next = "READ"
            packet.send(m, Mux(packet.good, ord(bridge.GOOD), ord(bridge.BAD)), after_status)
        with m.State("READ"):
            self._access(m, packet, _go(m, "READ-SEND"))
        with m.State("READ-SEND"):
            def after_byte():
                m.d.sync += [word.eq(word >> 8), index.eq(index + 1)]
                with m.If(index == 3):
                    m.d.sync += index.eq(0)
                    m.next = "READ"
                    with m.If(packet.left == 0):
                        m.next = "ANSWER-CRC"
            packet.send(m, word[:8], after_byte)
        with m.State("ANSWER-CRC"):
            def after_crc():
                m.d.sync += check.eq(~check)
                with m.If(check):
                    m.next = "OPCODE"
            packet.send(m, Mux(check, checked[:8], packet.answer_crc.crc[8:]), after_crc)
            with m.If(~check):
                m.d.sync += checked.eq(packet.answer_crc.crc)

    def _access(self, m, packet: _Packet, goes_on) -> None:
        """One word read or written in the space that the header says; then the next address."""
        header, left, word = packet.header, packet.left, packet.word
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
