"""Drain: requantizing, pooling, residual and packing of random tiles; its cycles, STAMP, END, back-pressure, faults."""

import random

import cocotb
import numpy as np

from esbflow.compiler.lower import rounding_fields, storage_bits
from esbflow.engine_config import AXI_BEAT_BITS, DIGIT_BITS
from esbflow.engine_facts import LEVEL_ENTRIES, LEVEL_ROWS, MOST_DIGITS
from esbflow.instructions import encode
from esbflow.numbers import Format
from esbflow.registers import COUNTERS, LOG_BEATS
from esbflow.requantizer import drain_latency, fold
from esbhw.arithmetic.function_table import ENTRY_BITS, ROW_ENTRIES, table_write_layout
from esbhw.arithmetic.requantize import constants_layout
from esbhw.engine.drain import Drain
from esbhw.engine.transfer import transfer_layout
from sim.benches.testbench import Sink, Source, Testbench, config, join, pack

TAKES = ("accumulators", "constants", "residual")


class Tile:
    """Random content of an accumulator bank, its constants and residual, and the DRAIN that takes it out."""

    def __init__(self, size, rng, form: str, kernel=(1, 1), stride=(1, 1), pad=(0, 0), residual=0, rows=3, cols=5,
                 out=None, per_row=False, bank=0, entry_bits=0, **more):
        self.size, self.format, self.kernel, self.stride, self.pad = size, Format.parse(form), kernel, stride, pad
        self.rows, self.cols = rows, cols
        words = size.words_per_beat
        self.pitch = -(-cols // words) * words
        out_rows, out_cols = out or (rows, cols)
        self.out = (out_rows, -(-out_cols // words) * words)
        self.planes = size.planes_per_tile
        self.table = [rng.randrange(1 << entry_bits) for _ in range(LEVEL_ENTRIES)] if entry_bits else None
        self.digits = max(1, (entry_bits or storage_bits(self.format)) // size.digit_bits)
        self.acc = np.array([[rng.randrange(6000) for _ in range(size.tile_channels)] for _ in range(rows * cols)])
        self.constants = [{"m": rng.randrange(-200, 200), "n": rng.randrange(-200, 200), "s": rng.randrange(1, 17),
                           "b": rng.randrange(-1 << 20, 1 << 20)} for _ in range(size.tile_channels)]
        self.residual, self.residual_signed = residual * 4 // size.digit_bits, rng.randrange(2)
        if size.digit_bits < 4 and residual == 1 and rng.randrange(2):
            self.residual = 1  # of its smallest size
        self.residual_bits = self.residual * size.digit_bits
        if size.requantizer == "shift":
            for k in self.constants:
                k.update(m=rng.choice((-1, 1)), n=rng.choice((-1, 0, 1)) << rng.randrange(8), s=rng.randrange(1, 9),
                         b=rng.randrange(-1 << 11, 1 << 11))
        signs = (self.residual_bits, bool(self.residual_signed)) if residual else None
        self.stored = [{name: int(value) for name, value in fold(size, **k, form=self.format, residual=signs).items()}
                       for k in self.constants]
        nibbles = (self.planes * rows * self.pitch, size.rows)
        self.low, self.high = ([[rng.randrange(16) for _ in range(nibbles[1])] for _ in range(nibbles[0])]
                               for _ in range(2))
        layout, lanes = constants_layout(size), size.requantize_lanes
        # What the memories give, by address.
        self.sums = [join(part, size.accumulator_width) for part in self.acc.reshape(-1, size.cols)]
        self.constants_words = [join([pack(layout, **k) for k in self.stored[at:at + lanes]], layout.size)
                                for at in range(0, size.tile_channels, lanes)]
        self.low_words, self.high_words = ([join(word, DIGIT_BITS) for word in half] for half in (self.low, self.high))
        run = self.out[1] * size.beats_per_word // words
        self.fields = dict(
            region=4, offset=rng.randrange(1000), acc_rows=rows, acc_cols=cols, out_rows=out_rows,
            out_cols=self.out[1], kernel_y=kernel[0], kernel_x=kernel[1], stride_y=stride[0], stride_x=stride[1],
            pad_y=pad[0], pad_x=pad[1], digits=self.digits % MOST_DIGITS, planes=self.planes, plane_stride=100,
            digit_stride=50,
            segments=out_rows if per_row else 1, segment_beats=run if per_row else run * out_rows,
            segment_stride=run + 3, bank=bank, constants=1 - bank, residual=int(residual > 0), residual_bank=bank,
            residual_digits=self.residual % 4, residual_signed=self.residual_signed, post_store=1, layer=3,
            table=int(entry_bits > 0), **rounding_fields(self.format), **more)

    def _residual_value(self, plane: int, y: int, x: int, channel: int) -> int:
        word = (plane * self.rows + y) * self.pitch + x
        bits = self.residual_bits
        value = (self.low[word][channel] | self.high[word][channel] << 4) & ((1 << bits) - 1)
        if self.residual_signed and value >> bits - 1:
            value -= 1 << bits
        return value

    def level(self, plane: int, y: int, x: int, channel: int, col: int) -> int:
        at = plane * self.size.rows + channel
        k = self.constants[at]
        r = self._residual_value(plane, y, col, channel) if self.residual else 0
        t = int(self.acc[y * self.cols + x][at]) * k["m"] + r * k["n"] + k["b"]
        return int(self.format.round_shift(np.int64(t), np.int64(k["s"])))

    def beats(self) -> list:
        """What must be written, in order: (digit, plane, row, column), each word `rows` nibbles.

        Behind the map's last column the residual is what lies there, up to the end of the beat.
        """
        def clamp(value, count):
            return min(max(value, 0), count - 1)

        words = []
        for digit in range(self.digits):
            for plane in range(self.planes):
                for row in range(self.out[0]):
                    for col in range(self.out[1]):
                        window = [(clamp(row * self.stride[0] - self.pad[0] + ky, self.rows),
                                   clamp(col * self.stride[1] - self.pad[1] + kx, self.cols))
                                  for ky in range(self.kernel[0]) for kx in range(self.kernel[1])]
                        levels = [max(self.level(plane, y, x, c, col) for y, x in window) for c in range(self.size.rows)]
                        if self.table:
                            levels = [self.table[level % LEVEL_ENTRIES] for level in levels]
                        words.append(join([level >> self.size.digit_bits * digit for level in levels], self.size.digit_bits))
        stream = join(words, self.size.word_bits)
        count = len(words) * self.size.word_bits // AXI_BEAT_BITS
        return [stream >> AXI_BEAT_BITS * i & ((1 << AXI_BEAT_BITS) - 1) for i in range(count)]

    def orders(self) -> list:
        f = self.fields
        return [pack(transfer_layout(1), region=4, offset=f["offset"] + 100 * plane + 50 * digit,
                     beats=f["segment_beats"], segments=f["segments"], stride=f["segment_stride"],
                     tag=int(f["post_store"] and (digit, plane) == (self.digits - 1, self.planes - 1)))
                for digit in range(self.digits) for plane in range(self.planes)]

    @property
    def issues(self) -> int:
        return (self.digits * self.planes * self.out[0] * self.out[1] * self.size.lane_groups
                * self.kernel[0] * self.kernel[1])

    @property
    def runs(self) -> int:
        return self.digits * self.planes * self.fields["segments"]


class Bench(Testbench):
    """Answers the three memories one cycle after their address, from the tile of each bank."""

    def __init__(self, dut):
        self.size = config()
        self.tiles, self.driven = {}, {}
        self.beats, self.beat_cycles, self.issues = [], [], []
        self.pulses = {f"{verb}_{name}": [] for verb in ("take", "post") for name in TAKES}
        super().__init__(dut, Drain(self.size).signature)

    async def begin(self, room: float = 1.0, tokens: int = 1):
        await self.reset()
        self.set(beats__ready=1, room=1, writer_idle=1, **{f"{name}_here": tokens for name in TAKES})
        self.room = room
        self.sink = Sink(self, "transfers", rate=0.7, seed=2)
        self.source = Source(self, "i", seed=3)
        cocotb.start_soon(self._watch())

    async def _watch(self):
        rng = random.Random(4)
        while True:
            await self.tick()
            if self.get("beats__valid") and self.get("beats__ready"):
                self.beats.append(self.get("beats__payload"))
                self.beat_cycles.append(self.cycle)
            if self.get("issue"):
                self.issues.append(self.cycle)
            for name, cycles in self.pulses.items():
                if self.get(name):
                    cycles.append(self.cycle)
            self._answer()
            self.set(room=rng.random() < self.room)

    def _answer(self):
        """What each memory gives for its address; an input is only set when it changes, which is most of the time."""
        tile = self.tiles.get(self.get("acc_bank"))
        if tile:
            index = self.get("acc_index")
            self._drive("acc_data", tile.sums[index] if index < len(tile.sums) else 0)
        tile = self.tiles.get(1 - self.get("constants_bank"))
        if tile:
            self._drive("constants_data", tile.constants_words[self.get("constants_group")])
        tile = self.tiles.get(self.get("residual_bank"))
        if tile:
            word = min(self.get("residual_address"), len(tile.low) - 1)
            self._drive("residual_low", tile.low_words[word])
            self._drive("residual_high", tile.high_words[word])

    def _drive(self, name: str, word: int) -> None:
        if self.driven.get(name) != word:
            self.driven[name] = word
            self.set(**{name: word})

    async def write_table(self, entries: list, first: int = 0, last: int = LEVEL_ROWS - 1) -> int:
        """A row a cycle, from the next one on, `first` and `last` at the ends; returns the last cycle."""
        layout = table_write_layout(self.size)
        for row in sorted(range(LEVEL_ROWS), key=lambda row: (row == last) - (row == first)):
            content = join(entries[ROW_ENTRIES * row:ROW_ENTRIES * (row + 1)], ENTRY_BITS)
            self.set(table_write=layout.const([{"valid": 1, "row": row, "entries": content}]).as_bits())
            await self.tick()
        self.set(table_write=0)
        return self.cycle

    async def run(self, tiles: list, within: int = 24_000) -> None:
        beats = len(self.beats) + sum(len(tile.beats()) for tile in tiles)
        for tile in tiles:
            self.tiles[tile.fields["bank"]] = tile
        await self.source.send([encode("DRAIN", **tile.fields) for tile in tiles])
        for _ in range(within):
            if len(self.beats) >= beats:
                return await self.tick(20)
            await self.tick()
        raise AssertionError(f"{len(self.beats)} of {beats} beats within {within} cycles")


CASES = {
    "plain": {"form": "u4"},
    "two digits": {"form": "s8", "residual": 1},
    "residual of two digits, rows apart": {"form": "s4", "residual": 2, "per_row": True},
    "esb": {"form": "esb4.1", "residual": 1},
    "unsigned esb": {"form": "uesb4.2"},
    "padded pooling": {"form": "s8", "kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "out": (3, 5), "rows": 5,
                       "cols": 9},
    "overhanging pooling": {"form": "u8", "kernel": (2, 3), "stride": (2, 1), "out": (2, 4), "rows": 3, "cols": 4},
    "wide": {"form": "s32", "rows": 1, "cols": 2},
    "sixteen bits": {"form": "s16", "rows": 2, "cols": 1},
    "wide pooling": {"form": "s16", "kernel": (2, 2), "stride": (1, 2), "out": (2, 2), "rows": 3, "cols": 4},
    "binary-like": {"form": "u1", "rows": 1, "cols": 8},
}
HELD_UP = ("two digits", "overhanging pooling", "sixteen bits")
"""Those that the writer holds up, too."""
LOOKUPS = {
    "signed to one digit": {"form": "s8", "entry_bits": 4, "residual": 1},
    "signed to two": {"form": "s8", "entry_bits": 8},
    "unsigned, rows apart": {"form": "u8", "entry_bits": 8, "per_row": True},
    "few levels": {"form": "s3", "entry_bits": 8},
    "esb": {"form": "esb4.1", "entry_bits": 4},
    "behind pooling": {"form": "s8", "entry_bits": 8, "kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "out": (3, 5),
                       "rows": 5, "cols": 9},
}
"""Into the function table."""


def _fitting(size, fields: dict) -> dict:
    """A case without what the engine has not."""
    form = fields["form"] if size.esb_output else fields["form"].replace("uesb4.2", "u5").replace("esb4.1", "s5")
    return {**fields, "form": form, **({} if size.residual else {"residual": 0})}


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize((("case", "room"), [*((case, 1.0) for case in CASES), *((case, 0.5) for case in HELD_UP)]))
async def a_tile_comes_out_as_the_formats_say(dut, case, room):
    tb = Bench(dut)
    await tb.begin(room)
    tile = Tile(tb.size, random.Random(case), **_fitting(tb.size, CASES[case]))
    await tb.run([tile])
    assert tb.beats == tile.beats()
    assert tb.sink.payloads == tile.orders()
    assert len(tb.issues) == tile.issues and not tb.get("field_fault")


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(case=list(LOOKUPS))
async def levels_are_looked_up_in_the_function_table(dut, case):
    tb = Bench(dut)
    await tb.begin()
    if not tb.size.function_table:
        return
    tile = Tile(tb.size, random.Random(case), **_fitting(tb.size, LOOKUPS[case]))
    await tb.write_table(tile.table)
    await tb.run([tile])
    assert tb.beats == tile.beats() and not tb.get("field_fault")
    plain = Tile(tb.size, random.Random(case), "s16")
    tb.beats.clear()
    await tb.run([plain])
    assert tb.beats == plain.beats(), "without a table levels stay as they are"


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_table_may_be_written_as_early_and_as_late_as_tokens_allow(dut):
    """Its first row 9 cycles behind the last issue of one drain, its last row 6 cycles before the first of the next one."""
    tb = Bench(dut)
    await tb.begin()
    if not tb.size.function_table:
        return
    rng = random.Random(13)
    old, new = (Tile(tb.size, rng, "s8", entry_bits=8, bank=bank) for bank in range(2))
    await tb.write_table(old.table)
    running = cocotb.start_soon(tb.run([old, new]))
    await tb.until("take_constants")
    tb.set(constants_here=0)
    await tb.until("post_constants")
    posted = tb.cycle
    await tb.tick(8)
    # The ends of the table are what the old tile's last value and the new one's first value are looked up in.
    ends = [old.level(old.planes - 1, old.rows - 1, old.cols - 1, 0, old.out[1] - 1), new.level(0, 0, 0, 0, 0)]
    last = await tb.write_table(new.table, *(level % LEVEL_ENTRIES // ROW_ENTRIES for level in ends))
    assert last == posted + 8 + LEVEL_ROWS
    await tb.tick()
    tb.set(constants_here=1)
    await running
    assert tb.issues[old.issues - 1] == posted and tb.issues[old.issues] == last + 6
    assert tb.beats == old.beats() + new.beats()


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(per_row=[False, True])
async def a_drain_has_its_documented_cycles(dut, per_row):
    tb = Bench(dut)
    await tb.begin()
    rng = random.Random(6)
    # A residual of one, or a window of two.
    shape = dict(residual=1) if per_row and tb.size.residual else dict(kernel=(1, 2))
    tiles = [Tile(tb.size, rng, "s8", per_row=per_row, bank=bank, **shape) for bank in range(2)]
    await tb.run(tiles)
    begun = tb.source.taken[0] + 2
    for tile in tiles:
        per_run = tile.issues // tile.runs
        expected = [begun + 1 + run * per_run + Drain.SETUP_CYCLES * (run + 1) + i
                    for run in range(tile.runs) for i in range(per_run)]
        assert tb.issues[:len(expected)] == expected
        del tb.issues[:len(expected)]
        end = expected[-1]
        for name in TAKES if "residual" in shape else TAKES[:2]:
            assert tb.pulses[f"take_{name}"].pop(0) == begun
            assert tb.pulses[f"post_{name}"].pop(0) == end
        # The last group of each beat, LATENCY cycles later.
        groups = AXI_BEAT_BITS // (tb.size.digit_bits * tb.size.requantize_lanes) * tile.kernel[1]
        completed = [cycle + drain_latency(tb.size) for cycle in expected[groups - 1::groups]]
        assert tb.beat_cycles[:len(completed)] == completed
        del tb.beat_cycles[:len(completed)]
        begun = end + 1  # the next instruction is at hand, and begins after the last group
    full = tb.size.residual and tb.size.esb_output and tb.size.requantizer == "multiply"
    assert drain_latency(tb.size) == (19 if full else 16) + tb.size.function_table and Drain.SETUP_CYCLES == 2


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def the_next_instruction_at_hand_changes_nothing_of_a_tile_s_last_values(dut):
    """Tiles of other shapes and formats wait while the last pixel of one is walked, and begin right behind it."""
    tb = Bench(dut)
    await tb.begin()
    rng = random.Random(12)
    shapes = [{"form": "u4", "rows": 2, "cols": 16}, {"form": "s8", "rows": 3, "cols": 8},
              {"form": "u8", "rows": 3, "cols": 4, "kernel": (2, 3), "stride": (2, 1), "out": (2, 4)},
              {"form": "s16", "rows": 2, "cols": 1}]
    for pair in ((0, 1), (1, 2), (3, 0)):
        tiles = [Tile(tb.size, rng, **shapes[number], bank=bank) for bank, number in enumerate(pair)]
        tb.beats.clear()
        tb.issues.clear()
        await tb.run(tiles)
        assert tb.beats == [beat for tile in tiles for beat in tile.beats()]
        last = tb.issues[tiles[0].issues - 1]
        assert tb.issues[tiles[0].issues] == last + 2 + Drain.SETUP_CYCLES, "begun right behind it"


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def no_group_is_issued_while_the_writer_has_no_room(dut):
    tb = Bench(dut)
    await tb.begin(room=0.0)
    await tb.tick(2)
    tile = Tile(tb.size, random.Random(7), "u4")
    running = cocotb.start_soon(tb.run([tile]))
    await tb.tick(60)
    assert not tb.issues and not tb.beats
    tb.room = 1.0
    await running
    assert tb.beats == tile.beats()


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(missing=TAKES)
async def a_drain_waits_for_each_of_its_tokens(dut, missing):
    tb = Bench(dut)
    await tb.begin()
    tb.set(**{f"{missing}_here": 0})
    if missing == "residual" and not tb.size.residual:
        return
    tile = Tile(tb.size, random.Random(8), "u4", residual=int(tb.size.residual))
    running = cocotb.start_soon(tb.run([tile]))
    await tb.tick(40)
    assert not tb.issues and tb.get("waiting") and not tb.get("i__ready")
    tb.set(**{f"{missing}_here": 1})
    await running
    assert tb.beats == tile.beats()


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_stamp_writes_the_counters_once_the_pipeline_is_empty(dut):
    tb = Bench(dut)
    await tb.begin()
    counters = [7000 + i for i in range(len(COUNTERS))]
    tb.set(counters=join(counters, 32))
    tile = Tile(tb.size, random.Random(9), "u4")
    tb.tiles[0] = tile
    await tb.source.send([encode("DRAIN", **tile.fields), encode("STAMP", layer=55, region=5, offset=40)])
    before = len(tile.beats())
    await tb.tick(tile.issues + 2 * drain_latency(tb.size) + LOG_BEATS + 10)
    assert tb.beats[:before] == tile.beats() and len(tb.beats) == before + LOG_BEATS
    record = join(tb.beats[before:], AXI_BEAT_BITS)
    words = [record >> 32 * i & 0xFFFFFFFF for i in range(4 * LOG_BEATS)]
    assert words == counters + [0] * (4 * LOG_BEATS - len(counters) - 1) + [55]
    ordered = tb.issues[-1] + 1 + drain_latency(tb.size) + 1
    assert tb.beat_cycles[before:] == [ordered + 2 + i for i in range(LOG_BEATS)]
    assert tb.sink.payloads[-1] == pack(transfer_layout(1), region=5, offset=40, beats=LOG_BEATS, segments=1)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_stamp_s_beats_wait_for_the_writer(dut):
    tb = Bench(dut)
    await tb.begin(room=0.0)
    await tb.tick(2)
    await tb.source.send([encode("STAMP", layer=1, region=5)])
    await tb.tick(drain_latency(tb.size) + 20)
    assert not tb.beats
    tb.room = 1.0
    await tb.tick(10)
    assert len(tb.beats) == LOG_BEATS


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def done_rises_when_everything_is_written(dut):
    tb = Bench(dut)
    await tb.begin()
    tb.set(writer_idle=0)
    tile = Tile(tb.size, random.Random(10), "u4")
    tb.tiles[0] = tile
    await tb.source.send([encode("DRAIN", **tile.fields), encode("END")])
    for _ in range(tile.issues + 2 * drain_latency(tb.size) + 20):
        await tb.tick()
        assert not tb.get("done")
    assert tb.beats == tile.beats()
    tb.set(writer_idle=1)
    await tb.tick(2)
    assert tb.get("done")


WITHOUT_WINDOW = [{"residual": 1, **window} for window in (
    {"kernel_y": 2}, {"kernel_x": 2}, {"stride_y": 2}, {"stride_x": 3}, {"pad_y": 1}, {"pad_x": 1})]
"""A residual is read pixel by pixel, so that it goes with windows of one pixel only."""


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def fields_outside_the_engine_s_limits_stop_it(dut):
    size = config()
    for wrong in ({"acc_rows": 0}, {"acc_cols": 0}, {"out_rows": 0}, {"out_cols": 0}, {"kernel_y": 0},
                  {"kernel_x": 0}, {"planes": 0}, {"planes": size.planes_per_tile + 1},
                  *([{"digits": 0}, {"digits": 9}] if size.digit_bits == DIGIT_BITS else []),
                  {"bits": 0}, {"bits": 33}, {"segment_beats": 0}, *WITHOUT_WINDOW,
                  *([] if size.residual else [{"residual": 1}]), *([] if size.esb_output else [{"esb": 1}]),
                  *([{"table": 1, "digits": 16 // size.digit_bits}] if size.function_table else [])):
        tb = Bench(dut)
        await tb.begin()
        fields = {**Tile(size, random.Random(11), "u4").fields, **wrong}
        await tb.source.send([encode("DRAIN", **fields), encode("END")])
        await tb.tick(10)
        assert tb.get("field_fault") and not tb.issues and not tb.sink.items and not tb.get("done"), wrong
        tb.sink.task.cancel()
