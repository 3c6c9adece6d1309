"""Both arrays: dots of the active tile, a next tile that loads meanwhile, a swap that takes effect at once."""

import random

import cocotb
import numpy as np

from esbflow import engine_facts as facts
from esbflow.engine_config import CODE_BITS
from esbhw.engine.array import make_array
from sim.benches.testbench import Testbench, config, cut, join


class Tile:
    """Random codes and a random codebook of weight digits."""

    def __init__(self, size, rng):
        self.size = size
        self.book = [rng.randrange(size.weight_min, size.weight_max + 1) for _ in range(facts.CODES)]
        self.codes = np.array([[rng.randrange(facts.CODES) for _ in range(size.rows)] for _ in range(size.cols)])

    @property
    def path_rows(self) -> list:
        """The codes as they come, a row of the weight path each."""
        codes, per_row = self.codes, self.size.path_codes
        if self.size.array == "table":
            codes = codes.reshape(self.size.cols, -1, 4).transpose(1, 0, 2)
        flat = codes.reshape(-1).tolist()
        return [join(flat[k:k + per_row], CODE_BITS) for k in range(0, len(flat), per_row)]

    def dots(self, activations: list) -> list:
        """What the array gives for digits in offset binary, which it takes for unsigned ones."""
        values = np.array(self.book)[self.codes]
        return (values @ np.array(activations) + facts.array_offset(self.size, values, False)).tolist()


async def load(tb, tile, book: int, rng, wait):
    """Bring a tile as the sequencer does; returns the cycle from which it may be swapped in."""
    size = tile.size
    for code, value in enumerate(tile.book):
        tb.set(book_en=1, book_address=code | book << CODE_BITS, book_data=facts.book_entry(size, value))
        await wait()
    tb.set(book_en=0)
    rows, set_rows = tile.path_rows, max(1, size.tile_rows // size.table_sets)
    for index, codes in enumerate(rows):
        tb.set(load_en=1, load_index=index, load_codes=codes, book=book)
        await wait()
        tb.set(load_en=0, load_index=rng.randrange(len(rows)), load_codes=rng.getrandbits(len(rows)))
        if (index + 1) % set_rows == 0:
            for _ in range(size.set_cycles - set_rows):
                await wait()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def the_next_tile_loads_while_the_active_one_works(dut):
    """A new tile again and again: each pixel's dots belong to the tile that was active with its activations."""
    size = config()
    array = make_array(size)
    tb = Testbench(dut, array.signature)
    await tb.reset()
    rng = random.Random(11)
    latency, expected = facts.array_latency(size), []
    state = {"active": None}

    async def wait(swap=False):
        activations = [rng.choice((0, size.largest_digit, rng.randrange(size.largest_digit + 1))) for _ in range(size.rows)]
        tb.set(activations=join(activations, size.digit_bits), swap=int(swap))
        expected.append(state["active"].dots(activations) if state["active"] else None)
        await tb.tick()
        if len(expected) > latency and expected[-latency - 1] is not None:
            assert cut(tb.get("dots"), facts.dot_bits(size), size.cols) == expected[-latency - 1]

    for number in range(12):
        tile = Tile(size, rng)
        await load(tb, tile, number & 1, rng, wait)
        # The table array may be swapped a cycle before its last entry can be read.
        for _ in range(array.LOAD_LATENCY - 1 - (size.array == "table") + rng.choice((0, 0, 1, 5))):
            await wait()
        await wait(swap=True)
        state["active"] = tile
        for _ in range(rng.randrange(1, 6)):
            await wait()
    assert sum(dots is not None for dots in expected) > 200
