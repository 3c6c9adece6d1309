"""The array: one dot product per output channel, with a shadow copy of the weights behind the active one."""

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from esbflow.engine_config import AXI_BEAT_BITS, DIGIT_BITS, EngineConfig
from esbhw.arithmetic.shift_add import ACTIVATION_BITS, WEIGHT_BITS, ShiftAddDot


class ShiftAddArray(wiring.Component):
    """rows x cols multiply-accumulate lanes without multipliers.

    dot[c] = sum over r of activation[r] * weight[c][r], short of the one's-complement constant that
    :class:`ShiftAddDot` explains. The next tile's codes are written to shadow registers `path` at a time while the
    active tile works; `swap` makes them active for the activations of the following cycle. A code is in its shadow
    register, to be swapped, LOAD_LATENCY cycles after it was on the write port.

    Latency is LATENCY cycles from `activations` to `dots`; throughput one pixel a cycle; no back-pressure.

    Members
    -------
    activations : In(rows * 5)
    swap : In(1)
    load_en, load_index, load_codes, codebook : the shadow's write port; code c*rows + r of the tile stands for
        codebook entry of 5 bits (sign, magnitude).
    dots : Out(cols * dot_bits), dot c in its own field
    """

    LOAD_LATENCY = 2

    def __init__(self, config: EngineConfig):
        self._config = config
        self.LATENCY = ShiftAddDot.latency(config.rows)
        self.dot_bits = ShiftAddDot.dot_bits(config.rows)
        self._codes = min(config.weight_path_beats * AXI_BEAT_BITS // DIGIT_BITS, config.rows * config.cols)
        super().__init__({
            "activations": In(config.rows * ACTIVATION_BITS),
            "swap": In(1),
            "load_en": In(1),
            "load_index": In(range(max(2, config.tile_load_cycles))),
            "load_codes": In(self._codes * DIGIT_BITS),
            "codebook": In(16 * WEIGHT_BITS),
            "dots": Out(config.cols * self.dot_bits),
        })

    def elaborate(self, platform):
        m = Module()
        config = self._config
        entries = [self.codebook.word_select(i, WEIGHT_BITS) for i in range(16)]
        decoded = []
        for k in range(self._codes):
            code = self.load_codes.word_select(k, DIGIT_BITS)
            digit = Signal(WEIGHT_BITS, name=f"digit_{k}", reset_less=True)
            with m.If(self.load_en):
                m.d.sync += digit.eq(_select(entries, code))
            decoded.append(digit)
        writing = Signal()
        index = Signal.like(self.load_index)
        m.d.sync += [writing.eq(self.load_en), index.eq(self.load_index)]

        for c in range(config.cols):
            m.submodules[f"column_{c}"] = dot = ShiftAddDot(config.rows)
            active = []
            for r in range(config.rows):
                # A register a digit, not a row of digits: a processor that simulates this takes bytes, not bit fields.
                shadow = Signal(WEIGHT_BITS, name=f"shadow_{c}_{r}", reset_less=True)
                digit = Signal(WEIGHT_BITS, name=f"active_{c}_{r}", reset_less=True)
                row, k = divmod(c * config.rows + r, self._codes)
                with m.If(writing & (index == row)):
                    m.d.sync += shadow.eq(decoded[k])
                with m.If(self.swap):
                    m.d.sync += digit.eq(shadow)
                active.append(digit)
            m.d.comb += [
                dot.activations.eq(self.activations),
                dot.weights.eq(Cat(active)),
                self.dots.word_select(c, self.dot_bits).eq(dot.o),
            ]
        return m


def _select(entries, code):
    """A balanced tree of multiplexers."""
    for bit in range(len(code)):
        entries = [Mux(code[bit], b, a) for a, b in zip(entries[::2], entries[1::2])]
    return entries[0]
