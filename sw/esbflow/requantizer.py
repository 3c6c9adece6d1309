"""What compiler and gateware both know of the requantizer lanes: widths, stages, and the constants folded into b.

A lane computes T = acc*m + r*n + b modulo 2**width without sign extensions and without a rounding adder. Everything that
this leaves out is constant for a channel, and the compiler adds it to b:

- half a step, 2**(s-1), for linear outputs: then floor(T / 2**s) is the nearest level, ties toward plus infinity;
- minus 2**(n+1) * 4**k for each row k of the two multipliers (esbhw.fabric.multiplier_rows);
- n times what the residual's digits miss when the lane reads them as a two's complement of 8 bits.

A lane that shifts (`requantizer="shift"`) computes T = (+-acc) + (+-r << k) + b. There the missing ones of one's complements
and the residual's offset are what b holds.
"""

from dataclasses import dataclass

import numpy as np

from esbflow.engine_config import DIGIT_BITS, EngineConfig
from esbflow.engine_facts import LEVEL_ENTRIES
from esbflow.numbers import ESB, Format

FACTOR_BITS = 12
"""m and n, two's complement."""
RESIDUAL_BITS = 8
"""The residual as a lane reads it, two's complement."""
DIGIT_STEP = 2
"""Bits of a multiplier for each row."""
ROWS_A_STAGE = 2
"""Rows between two registers: two LUTs deep, with a path of one carry chain and two bits."""
LEVEL_BITS = 32
ACCUMULATOR_CYCLES = 5
"""From a drain's issue of a value to the accumulators' address."""
SILENT_SHIFT = 62
"""The s with which every sum of the accumulators alone, which is not negative, becomes zero."""


@dataclass(frozen=True)
class Stages:
    """Numbers of a lane's stages; the registers of stage i are written at the end of cycle i after the input.

    product : of acc's first rows; the residual's rows come before.  count : of all, and so a lane's latency
    """

    config: EngineConfig

    @property
    def product(self) -> int:
        """The first rows of acc*m are summed."""
        return RESIDUAL_BITS // DIGIT_STEP // ROWS_A_STAGE if self.config.residual else 0

    @property
    def total(self) -> int:
        """All is summed: acc*m + r*n + b."""
        rows = 0 if self.config.requantizer == "shift" else FACTOR_BITS // DIGIT_STEP
        return self.product + rows // ROWS_A_STAGE

    @property
    def held(self) -> int:
        """The largest sum of a pool's window so far."""
        return self.total + 1

    @property
    def coarse(self) -> int:
        """Shifted by a multiple of 16."""
        return self.held + 1

    @property
    def fine(self) -> int:
        """Shifted by the rest of s, and known whether the level lies beyond the format."""
        return self.coarse + 1

    @property
    def magnitude(self) -> int:
        """Of engines with ESB output: how far the magnitude reaches."""
        return self.fine + 1

    @property
    def octave(self) -> int:
        """Of engines with ESB output: the place of the leading one."""
        return self.magnitude + 1

    @property
    def rounded(self) -> int:
        """Of engines with ESB output: rounded to the significant bits."""
        return self.octave + 1

    @property
    def output(self) -> int:
        """The level, clamped, as it is packed or looked up."""
        return (self.rounded if self.config.esb_output else self.fine) + 1

    @property
    def lookup(self) -> int:
        """The function table's, of engines that have one."""
        return self.output + 1

    @property
    def count(self) -> int:
        """Stages in all, which is a lane's latency in cycles."""
        return (self.lookup if self.config.function_table else self.output) + 1


def drain_latency(config: EngineConfig) -> int:
    """Cycles from a drain's issue of a beat's last value to the beat: address, memory, group, lanes, packing.

    >>> drain_latency(EngineConfig("full", rows=4, cols=4))
    19
    """
    stages = Stages(config)
    return ACCUMULATOR_CYCLES - stages.product + 2 + stages.count + 1


def table_write_delay(config: EngineConfig) -> int:
    """Cycles from a beat of a function table to its place in the lanes.

    A drain gives its tokens back with its last issue, and values of that look their levels up `drain_latency` - 2 cycles
    later. A table's first beat comes 9 cycles behind such a token or more, and the last one 6 cycles at least before the
    first issue of a drain that wants it. So the table must be written between drain_latency - 11 and drain_latency + 3
    cycles after its beats.
    """
    return drain_latency(config) - 4


def level_bits(config: EngineConfig) -> int:
    """Bits of a level that a lane gives at once: a digit, or all that a function table is asked for.

    >>> level_bits(EngineConfig("plain", rows=4, cols=4)), level_bits(EngineConfig("table", 4, 4, function_table=True))
    (4, 8)
    """
    return (LEVEL_ENTRIES - 1).bit_length() if config.function_table else DIGIT_BITS


def residual_sum_bits() -> int:
    """Bits of r*n with its rows' offsets: the rows of n + 2 bits, one above the other, and a carry.

    >>> residual_sum_bits()
    21
    """
    return FACTOR_BITS + 3 + RESIDUAL_BITS - DIGIT_STEP


def multiplicand_bits(config: EngineConfig) -> int:
    """Bits of acc in the multiplier's rows: they must hold the residual's product."""
    return max(config.accumulator_width, residual_sum_bits() - 2) if config.residual else config.accumulator_width


def rows_offset(multiplicand: int, multiplier: int) -> int:
    """What the rows of one multiplier add to the product.

    >>> rows_offset(4, 4)  # 2**5 and, two places higher, 2**5
    160
    """
    return sum(1 << multiplicand + 1 + place for place in range(0, multiplier, DIGIT_STEP))


def constant_fields(config: EngineConfig) -> tuple[tuple[str, int], ...]:
    """(name, bits) of a channel's constants as they lie in a 128-bit beat, lowest bits first; b begins at bit 32 or 16."""
    if config.requantizer == "shift":
        return (("negative", 1), ("residual_negative", 1), ("residual_off", 1), ("residual_shift", 4), ("s", 6), ("pad", 3),
                ("b", config.requantize_width))
    return (("m", FACTOR_BITS), ("n", FACTOR_BITS), ("s", 6), ("pad", 2), ("b", config.requantize_width))


def fold(config: EngineConfig, m, n, s, b, form: Format, residual: tuple | None = None) -> dict:
    """{field: values} of a lane's constants: b has everything that the lane leaves out, modulo 2**requantize_width.

    Parameters
    ----------
    m, n, s, b : of the requantizer, integers or int64 arrays of one shape. Where lanes shift, m is 1 or -1 and n is 0 or a
        signed power of two, as esbflow.compiler.shifts makes them.
    form : of the output.
    residual : (bits, signed) of the residual as it lies in memory; None where there is none.
    """
    m, n, s, b = (np.asarray(value, dtype=np.int64) for value in (m, n, s, b))
    half = np.where(s > 0, np.int64(1) << np.maximum(s - 1, 0), 0)
    folded = b + (0 if isinstance(form, ESB) else half)
    if config.residual and residual is not None:
        folded = folded + n * residual_offset(*residual)
    mask = (np.int64(1) << config.requantize_width) - 1
    if config.requantizer == "multiply":
        folded = folded - rows_offset(multiplicand_bits(config), FACTOR_BITS)
        if config.residual:
            folded = folded - rows_offset(FACTOR_BITS, RESIDUAL_BITS)
        factors = (np.int64(1) << FACTOR_BITS) - 1
        return {"m": m & factors, "n": n & factors, "s": s, "b": folded & mask}
    off, shift = (n == 0).astype(np.int64), np.maximum(np.frexp(np.abs(n).astype(np.float64))[1] - 1, 0).astype(np.int64)
    # The residual enters 128 too high; a negative one as the one's complement of that, 127 too high.
    folded = folded + (m < 0)
    if config.residual:
        folded = folded - (1 - off) * (np.where(n < 0, 127, 128) << shift)
    return {"negative": (m < 0).astype(np.int64), "residual_negative": (n < 0).astype(np.int64), "residual_off": off,
            "residual_shift": shift, "s": s, "b": folded & mask}


def residual_offset(bits: int, signed: bool) -> int:
    """The residual minus what the lane reads, by its bits in memory.

    A signed one of 4 bits enters with its top bit inverted, 8 too high. An unsigned byte enters with its top bit inverted
    too and is then read as a two's complement, 128 too low.

    >>> residual_offset(4, True), residual_offset(8, False), residual_offset(4, False), residual_offset(8, True)
    (-8, 128, 0, 0)
    """
    if bits == RESIDUAL_BITS:
        return 0 if signed else 128
    return -(1 << bits - 1) if signed else 0
