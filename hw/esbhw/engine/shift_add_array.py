"""The shift-add array: weights in registers, one dot product a column, shifts, adds and one's complements."""

from amaranth import Cat, Module, Signal
from amaranth.lib.wiring import Component, In, Out

from esbflow import engine_facts as facts
from esbflow.engine_config import CODE_BITS, EngineConfig
from esbhw.engine.array import array_signature
from esbhw.engine.codebook import CodebookDecoder
from esbhw.fabric.bit_planes import join_planes, plane_sum
from esbhw.fabric.idioms import register
from esbhw.fabric.luts import exclusive_or
from esbhw.target import share


class ShiftAddColumn(Component):
    """One output channel: its weights, twice, and their dot product with the activations.

    Magnitude bit j gates a copy of the activation that weighs 2**j. A leaf row adds two gated activations; a tree adds
    the rows of a bit plane; the planes are joined at the end. A set sign inverts the activation first, so that the result
    has the largest digit times |w| too much (sign and magnitude); in two's complement the top plane's sum is inverted.
    Throughput is one dot a cycle, latency `engine_facts.array_latency`; no reset, no back-pressure.

    Members
    -------
    activations : In(word_bits), offset binary
    swap : In(1), as in `array_signature`
    write_en : In(rows // min(rows, path_codes)), of each part of as many weights as the weight path brings
    write_digits : In(min(rows, path_codes) * weight_bits): part k of the shadow tile is written where bit k is set
    dot : Out(dot_bits)
    """

    def __init__(self, config: EngineConfig):
        self._rows, self._digit_bits = config.rows, config.digit_bits
        self._planes, self._magnitude = config.weight_planes
        self._width = facts.weight_bits(config)
        self._part = min(config.rows, config.path_codes)
        self._dot_bits = facts.dot_bits(config)
        super().__init__({
            "activations": In(config.word_bits), "swap": In(1),
            "write_en": In(config.rows // self._part), "write_digits": In(self._part * self._width),
            "dot": Out(self._dot_bits),
        })

    def elaborate(self, platform):
        m = Module()
        late_swap = Signal(reset_less=True)  # magnitudes are used a cycle after signs
        m.d.sync += late_swap.eq(self.swap)
        activations, weights = [], []
        for r in range(self._rows):
            part, place = divmod(r, self._part)
            # A register a digit, not a row of digits: a processor that simulates this takes bytes, not bit fields.
            shadow = Signal(self._width, name=f"shadow_{r}", reset_less=True)
            with m.If(self.write_en[part]):
                m.d.sync += shadow.eq(self.write_digits.word_select(place, self._width))
            digit = self.activations.word_select(r, self._digit_bits)
            weight = Signal(self._planes, name=f"weight_{r}", reset_less=True)
            with m.If(late_swap if self._magnitude else self.swap):
                m.d.sync += weight.eq(shadow[:self._planes])
            if self._magnitude:
                sign = Signal(name=f"sign_{r}", reset_less=True)
                with m.If(self.swap):
                    m.d.sync += sign.eq(shadow[self._planes])
                digit = register(m, exclusive_or(m, platform, f"flip_{r}", digit, sign), f"flipped_{r}")
            activations.append(digit)
            weights.append(weight)
        planes = [plane_sum(m, platform, activations, weights, j) for j in range(self._planes)]
        largest = self._rows * ((1 << self._digit_bits) - 1)
        m.d.comb += self.dot.eq(join_planes(m, platform, planes, largest, self._magnitude).value)
        return m


class ShiftAddArray(Component):
    """rows x cols multiply-accumulate lanes without multipliers; ports as in `array_signature`.

    The next tile's codes are looked up in a codebook and written to shadow registers, a row of the weight path a cycle;
    a digit is in its shadow register, to be swapped, LOAD_LATENCY cycles after its code was on the port.
    Latency is `engine_facts.array_latency`; one pixel a cycle; no back-pressure, no reset.
    """

    LOAD_LATENCY = 2

    def __init__(self, config: EngineConfig):
        self._config = config
        super().__init__(array_signature(config))

    def elaborate(self, platform):
        m = Module()
        config = self._config
        width, codes = facts.weight_bits(config), config.path_codes
        block = min(8, codes)
        digits = Signal(codes * width, reset_less=True)
        for k in range(0, codes, block):
            decoder = share(m, platform, f"decoder_{k // block}", f"codebook_{width}x{block}", CodebookDecoder, width, block)
            m.d.comb += [
                decoder.write_en.eq(self.book_en), decoder.write_address.eq(self.book_address),
                decoder.write_data.eq(self.book_data), decoder.book.eq(self.book),
                decoder.codes.eq(self.load_codes[k * CODE_BITS:(k + block) * CODE_BITS]),
            ]
            with m.If(self.load_en):
                m.d.sync += digits[k * width:(k + block) * width].eq(decoder.digits)
        writing = Signal(config.tile_rows, reset_less=True)
        m.d.sync += [writing[i].eq(self.load_en & (self.load_index == i)) for i in range(config.tile_rows)]
        part = min(config.rows, codes)
        dots = []
        for number in range(config.slices * config.cols):
            part_of, c = divmod(number, config.cols)
            column = share(m, platform, f"column_{number}", "shift_add_column", ShiftAddColumn, config)
            row, place = divmod(c * config.rows, codes)
            parts = config.rows // part
            m.d.comb += [
                column.activations.eq(self.activations.word_select(part_of, config.word_bits)), column.swap.eq(self.swap),
                column.write_en.eq(writing[row:row + parts]),
                column.write_digits.eq(digits[place * width:(place + part) * width]),
            ]
            dots.append(column.dot)
        m.d.comb += self.dots.eq(Cat(*dots))
        return m
