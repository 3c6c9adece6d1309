"""The activation buffer: two halves of whole memory beats, read as words of one pixel."""

from amaranth import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig


class ActivationBuffer(wiring.Component):
    """Holds beats as they lie in memory; gives one word of `rows` digits a cycle.

    The digits of the word asked for are on `digits` ACTIVATION_LATENCY cycles later, signed ones in offset binary (so
    that their top bit is inverted); where `inside` was low, all of them stand for zero. Writes and reads do not
    disturb each other.

    Members
    -------
    write_valid, write_half : In(1);  write_address : In(16), of beats;  write_data : In(128)
    read_half : In(1);  read_address : In(20), of words;  inside, signed : In(1)
    digits : Out(word_bits)
    address_fault : Out(1), for good, on a write behind the end of a half
    """

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__({
            "write_valid": In(1), "write_half": In(1), "write_address": In(16), "write_data": In(AXI_BEAT_BITS),
            "read_half": In(1), "read_address": In(20), "inside": In(1), "signed": In(1),
            "digits": Out(config.word_bits),
            "address_fault": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        beats_per_row = config.beats_per_word
        rows = config.activation_beats // beats_per_row
        m.submodules.memory = memory = Memory(
            shape=unsigned(AXI_BEAT_BITS * beats_per_row), depth=2 * rows, init=[])
        write = memory.write_port(granularity=AXI_BEAT_BITS)
        read = memory.read_port()
        part_bits = (beats_per_row - 1).bit_length()
        row_bits = (rows - 1).bit_length()
        fits = self.write_address < config.activation_beats
        m.d.comb += [
            write.addr.eq(Cat((self.write_address >> part_bits)[:row_bits], self.write_half)),
            write.data.eq(self.write_data.replicate(beats_per_row)),
            write.en.eq((1 << self.write_address[:part_bits] if part_bits else 1) & (self.write_valid & fits
                        ).replicate(beats_per_row)),
        ]
        with m.If(self.write_valid & ~fits):
            m.d.sync += self.address_fault.eq(1)

        sub_bits = (config.words_per_beat - 1).bit_length()
        sub = Signal(max(1, sub_bits))
        inside = Signal()
        is_signed = Signal()
        m.d.comb += [
            read.addr.eq(Cat((self.read_address >> sub_bits)[:row_bits], self.read_half)), read.en.eq(1)]
        m.d.sync += [
            sub.eq(self.read_address[:sub_bits] if sub_bits else 0), inside.eq(self.inside),
            is_signed.eq(self.signed),
        ]
        word = read.data.word_select(sub, config.word_bits) if sub_bits else read.data
        bits = config.digit_bits
        for r in range(config.rows):
            digit = word.word_select(r, bits) if sub_bits else read.data.word_select(r, bits)
            top = Const(config.sign_offset, bits)
            m.d.sync += self.digits.word_select(r, bits).eq(Mux(inside, digit, 0) ^ Mux(is_signed, top, 0))
        return m
