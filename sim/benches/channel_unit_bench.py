"""The channel unit: sums and maxima of windows, taps that load while others work, a swap that takes effect at once."""

import random

import cocotb
import numpy as np

from esbflow import engine_facts as facts
from esbflow.engine_config import AXI_BEAT_BITS, TAP_BITS
from esbhw.engine.channel_unit import ChannelUnit, window_layout
from sim.benches.testbench import Testbench, config, cut, join, pack


class Pass:
    """Random taps and window."""

    def __init__(self, size, rng):
        self.size = size
        low, high = facts.channel_range(size)
        self.taps = np.array([[rng.choice((low, high, rng.randrange(low, high + 1))) for _ in range(facts.TAPS)]
                              for _ in range(size.channel_unit)])
        self.cols, self.maximum = rng.randrange(1, 4), rng.randrange(2)
        self.part = rng.randrange(size.channel_blocks)
        if rng.random() < 0.5:  # as a compiler does it; the other half shows that older columns count as well
            self.taps.reshape(-1, 3, 3)[:, :, self.cols:] = 0

    def path_rows(self) -> list:
        """The taps as they lie in a slot, a row of the weight path each."""
        words = [sum(int(facts.tap_entry(self.size, int(tap))) << facts.TAP_ENTRY_BITS * k for k, tap in enumerate(taps))
                 for taps in self.taps]
        per_row = self.size.weight_path_beats * AXI_BEAT_BITS // TAP_BITS
        return [join(words[k:k + per_row], TAP_BITS) for k in range(0, len(words), per_row)]

    def result(self, columns: list) -> list:
        """`columns`: the last three, newest first, each (3, rows) digits as the unit gets them."""
        blocks = self.size.rows // self.size.channel_unit
        first = self.part % blocks * self.size.channel_unit
        window = np.array(columns)[:, :, first:first + self.size.channel_unit]  # age, row, channel
        if self.maximum:
            return window[:self.cols].max(axis=(0, 1)).tolist()
        flat = window.transpose(2, 1, 0).reshape(self.size.channel_unit, -1)
        return ((flat * self.taps).sum(axis=1) + facts.channel_offset(self.size, self.taps, False)).tolist()


@cocotb.test(timeout_time=10, timeout_unit="ms")
async def every_column_gives_the_window_of_its_pass(dut):
    size = config()
    tb = Testbench(dut, ChannelUnit(size).signature)
    await tb.reset()
    rng = random.Random(5)
    latency, bits = facts.compute_latency(size), facts.channel_bits(size)
    columns, expected, state = [], [], {"active": None, "age": 0}

    async def wait(swap=False, **inputs):
        largest = size.largest_digit
        column = [[rng.choice((0, largest, rng.randrange(largest + 1))) for _ in range(size.rows)]
                  for _ in range(facts.TAP_SIDE)]
        columns.insert(0, column)
        active = state["active"]
        window = pack(window_layout(size), part=active.part, tap_cols=active.cols, maximum=active.maximum) if active else 0
        tb.set(words=join([digit for row in column for digit in row], size.digit_bits), window=window,
               swap=int(swap), **inputs)
        state["age"] += 1
        # A pass's first outputs come when its window is full of its own columns.
        own = active and state["age"] >= active.cols and (active.maximum or state["age"] >= facts.TAP_SIDE)
        expected.append(active.result(columns[:facts.TAP_SIDE]) if own else None)
        await tb.tick()
        if len(expected) > latency and expected[-latency - 1] is not None:
            assert cut(tb.get("sums"), bits, size.channel_unit) == expected[-latency - 1]

    for _ in range(25):
        following = Pass(size, rng)
        for index, taps in enumerate(following.path_rows()):
            await wait(load_en=1, load_index=index, load_taps=taps)
            tb.set(load_en=0, load_taps=rng.getrandbits(64))
        for _ in range(ChannelUnit.LOAD_LATENCY - 1 + rng.choice((0, 0, 1, 9))):
            await wait()
        await wait(swap=True)
        state.update(active=following, age=0)
        for _ in range(rng.randrange(3, 9)):
            await wait()
    assert sum(sums is not None for sums in expected) > 100
