"""ShiftAddArray: dots of the active tile, a shadow that loads meanwhile, a swap that takes effect at once."""

import random

import cocotb

from esbflow.engine_config import DIGIT_BITS
from esbhw.arithmetic.shift_add import ACTIVATION_BITS, MAGNITUDE_BITS, WEIGHT_BITS
from esbhw.engine.array import ShiftAddArray
from sim.benches.testbench import Testbench, config, cut, join


class Tile:
    """Random codes and a random codebook of signed digits."""

    def __init__(self, size, rng):
        self.book = [rng.randrange(-15, 16) for _ in range(16)]
        self.codes = [rng.randrange(16) for _ in range(size.rows * size.cols)]
        self.rows = size.rows

    @property
    def codebook(self) -> int:
        return join([abs(value) | (value < 0) << MAGNITUDE_BITS for value in self.book], WEIGHT_BITS)

    def dots(self, activations: list) -> list:
        """What the array gives: negative weights multiply the one's complement of the activation."""
        result = []
        for start in range(0, len(self.codes), self.rows):
            weights = [self.book[code] for code in self.codes[start:start + self.rows]]
            result.append(sum(a * w if w >= 0 else ~a * -w for a, w in zip(activations, weights)))
        return result


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_next_tile_loads_while_the_active_one_works(dut):
    """A new tile every few cycles: each pixel's dots belong to the tile that was active with its activations."""
    size = config()
    array = ShiftAddArray(size)
    tb = Testbench(dut, array.signature)
    await tb.reset()
    rng = random.Random(11)
    codes_a_row = len(array.load_codes) // DIGIT_BITS
    active, shadow, row, last_load = None, Tile(size, rng), 0, 0
    expected = []
    for cycle in range(40 * size.tile_load_cycles + 150):
        loading = row < size.tile_load_cycles
        last_load = cycle if loading else last_load
        swap = not loading and cycle - last_load >= array.LOAD_LATENCY and rng.random() < 0.3
        tb.set(load_en=loading, load_index=row if loading else rng.randrange(size.tile_load_cycles),
               load_codes=join(shadow.codes[row * codes_a_row:(row + 1) * codes_a_row], DIGIT_BITS),
               codebook=shadow.codebook if loading else rng.getrandbits(80), swap=swap)
        activations = [rng.randrange(-16, 16) for _ in range(size.rows)]
        tb.set(activations=join(activations, ACTIVATION_BITS))
        expected.append(active.dots(activations) if active else None)
        row += loading
        if swap:  # active from the next cycle on
            active, shadow, row = shadow, Tile(size, rng), 0
        await tb.tick()
        if cycle >= array.LATENCY and expected[cycle - array.LATENCY] is not None:
            assert cut(tb.get("dots"), array.dot_bits, size.cols, True) == expected[cycle - array.LATENCY]
    assert sum(dots is not None for dots in expected) > 100
