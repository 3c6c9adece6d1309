"""Sequencer: the pixels of random passes, its documented cycles, hazards, tokens, faults."""

import itertools
import random

import cocotb

from esbflow import engine_facts as facts
from esbflow.instructions import encode
from esbhw.engine.accumulators import control_layout
from esbhw.engine.sequencer import Sequencer
from sim.benches.testbench import Source, Testbench, config, signed

STALLS = ("stall_instruction", "stall_weights", "stall_activations", "stall_accumulators", "stall_hazard")
PULSES = ("take_weights", "post_weights", "take_activations", "post_activations", "take_accumulators", "pass_done",
          "swap", "load_en", *STALLS)
HAZARD = facts.HAZARD_CYCLES


class Bench(Testbench):
    """Logs pixels as dictionaries and every pulse's cycles."""

    def __init__(self, dut):
        self.size = config()
        self.layout = control_layout(self.size)
        self.pixels, self.issued, self.loads, self.books = [], [], {}, {}
        self.log = {name: [] for name in PULSES}
        super().__init__(dut, Sequencer(self.size).signature)

    async def begin(self, tokens: int = 1, rate: float = 1.0):
        await self.reset()
        self.set(weights_here=tokens, activations_here=tokens, bank_free=tokens)
        self.source = Source(self, "i", rate, seed=1)
        cocotb.start_soon(self._watch())

    async def _watch(self):
        while True:
            await self.tick()
            for name in PULSES:
                if self.get(name):
                    self.log[name].append(self.cycle)
            self.loads[self.cycle] = (self.get("slot_address"), self.get("load_index"), self.get("book"))
            if self.get("book_en"):
                self.books[self.cycle] = (self.get("book_address"), self.get("book_data"))
            control = self.layout.from_bits(self.get("control"))
            assert control.valid == self.get("issue")
            stalls = sum(self.get(name) for name in STALLS)
            assert stalls + self.get("issue") <= 1, "a cycle is issue or one kind of stall"
            if self.get("issue"):
                self.issued.append(self.cycle)
                self.pixels.append({
                    "half": self.get("read_half"), "address": signed(self.get("read_address"), 20),
                    "inside": self.get("inside"), "signed": self.get("signed"),
                    **{name: control[name] for name in ("first", "bank", "index", "shift", "post")}})

    async def run(self, passes: list, within: int = 4000) -> list:
        """Send passes and wait until all their pixels are out; returns the cycle each was taken off the queue."""
        start = len(self.source.taken)
        sending = cocotb.start_soon(self.source.send([encode("PASS", **complete(self.size, fields)) for fields in passes]))
        count = len(self.pixels) + sum(fields.get("images", 1) * fields["rows"] * fields["cols"] for fields in passes)
        for _ in range(within):
            if len(self.pixels) >= count and sending.done():
                await self.tick(4)
                return self.source.taken[start:]
            await self.tick()
        raise AssertionError(f"{len(self.pixels)} of {count} pixels within {within} cycles")


def complete(size, fields: dict) -> dict:
    """One image, where the engine has to be told."""
    return {"images": 1, **fields} if size.batch_tiles else fields


def rows_of(fields: dict) -> list:
    """(row of the image, row of all images) of a pass."""
    return [(number % fields["rows"], number) for number in range(fields["rows"] * fields.get("images", 1))]


def pixels_of(fields: dict) -> list:
    def get(name):
        return fields.get(name, 0)

    result, rows = [], rows_of(fields)
    for row, number in rows:
        for col in range(fields["cols"]):
            y, x = get("y") + row * get("stride_y"), get("x") + col * get("stride_x")
            last = number == len(rows) - 1 and col == fields["cols"] - 1
            result.append({
                "half": get("half"), "address": get("address") + number * get("row_step") + col * get("stride_x"),
                "inside": int(0 <= y < get("in_rows") and 0 <= x < get("in_cols")), "signed": get("signed"),
                "first": get("first"), "bank": get("bank"), "shift": get("shift"),
                "index": get("acc_first") + len(result) * (get("acc_gap") + 1),
                "post": int(last and get("post_accumulators"))})
    return result


def random_pass(rng, size) -> dict:
    rows, cols = rng.choice([(1, 1), (1, 2), (2, 1), (1, 3), (3, 5), (4, 4), (1, 16), (2, 7)])
    flags = ("half", "bank", "signed", "first", "keep", "wait_weights", "wait_activations", "wait_accumulators",
             "post_weights", "post_activations", "post_accumulators")
    images = rng.choice((1, 1, 2, 3, size.accumulator_depth // (rows * cols))) if size.batch_tiles else 1
    images = min(images, size.accumulator_depth // (rows * cols))
    gap = rng.randrange(min(16, size.accumulator_depth // (images * rows * cols)))
    return {**({"images": images} if size.batch_tiles else {}), "acc_gap": gap, "acc_first": rng.randrange(gap + 1),
            "rows": rows, "cols": cols, "in_rows": rng.randrange(1, 6), "in_cols": rng.randrange(1, 6),
            "stride_y": rng.randrange(1, 4), "stride_x": rng.randrange(1, 4), "y": rng.randrange(-4, 3),
            "x": rng.randrange(-4, 3), "address": rng.randrange(-50, 500), "row_step": rng.randrange(200),
            "slot": rng.randrange(size.weight_slots), "shift": rng.randrange(4), "layer": rng.randrange(4096),
            "codebook": rng.getrandbits(80),
            "book": rng.randrange(2), "load_book": rng.randrange(2), **{name: rng.randrange(2) for name in flags}}


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(rate=[1.0, 0.1])
async def pixels_of_random_passes_come_in_order(dut, rate):
    tb = Bench(dut)
    await tb.begin(rate=rate)
    rng = random.Random(13)
    passes = [random_pass(rng, tb.size) for _ in range(60)]
    await tb.run(passes)
    assert tb.pixels == [pixel for fields in passes for pixel in pixels_of(fields)]
    for name in ("take_weights", "post_weights", "take_activations", "take_accumulators", "post_activations"):
        action, what = name.split("_")
        wanted = sum(fields[f"{'wait' if action == 'take' else 'post'}_{what}"]
                     and not (name == "post_weights" and fields["keep"]) for fields in passes)
        assert len(tb.log[name]) == wanted, name
    assert len(tb.log["pass_done"]) == len(passes) and not tb.get("field_fault")


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(keep=[0, 1], load_book=[0, 1])
async def a_lone_pass_has_its_documented_cycles(dut, keep, load_book):
    tb = Bench(dut)
    await tb.begin()
    codebook = random.Random(5).getrandbits(80)
    fields = {"rows": 2, "cols": 5, "slot": 3, "codebook": codebook, "book": 1, "load_book": load_book, "keep": keep,
              "wait_weights": 1, "post_weights": 1,
              "wait_activations": 1, "wait_accumulators": 1, "post_activations": 1, "layer": 7}
    [p] = await tb.run([fields])
    load, tail = tb.size.tile_load_cycles, facts.load_tail(tb.size)
    book = facts.BOOK_CYCLES if load_book else 0
    taken = p + 2 if keep else p + book + load + tail + 2
    assert tb.issued == list(range(taken + 1, taken + 11))
    assert tb.log["take_weights"] == [p]
    assert tb.log["take_activations"] == tb.log["take_accumulators"] == [taken]
    assert tb.log["post_activations"] == [taken + 10] and tb.log["pass_done"] == [taken + 10 + tb.size.batch_tiles]
    assert tb.log["post_weights"] == ([] if keep else [p + book + load])
    assert tb.log["swap"] == ([] if keep else [taken + 2])
    # The tile's address, and its data's destination one cycle later.
    sets, rows = tb.size.table_sets, tb.size.tile_rows // tb.size.table_sets
    reads = [p + book + 2 + k * tb.size.set_cycles + i for k in range(sets) for i in range(rows)]
    assert tb.log["load_en"] == ([] if keep else reads)
    width = facts.weight_bits(tb.size)
    assert tb.books == ({} if keep or not load_book else {
        p + 1 + i: (i | 1 << 4, codebook >> facts.BOOK_ENTRY_BITS * i & ((1 << width) - 1)) for i in range(16)})
    assert tb.get("layer") == 7


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_tile_s_rows_are_asked_for_and_written_in_order(dut):
    tb = Bench(dut)
    await tb.begin()
    rows = tb.size.tile_rows
    for slot in range(tb.size.weight_slots):
        tb.log["load_en"].clear()
        await tb.run([{"rows": 1, "cols": 4, "slot": slot, "book": slot & 1}])
        read = tb.log["load_en"]
        assert [tb.loads[cycle - 1][0] for cycle in read] == [slot * rows + i for i in range(rows)]
        assert [tb.loads[cycle][1:] for cycle in read] == [(i, slot & 1) for i in range(rows)]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def passes_follow_at_the_documented_distance(dut):
    """Distance from take to take: pixels or the hazard, unless the next tile is not in yet."""
    tb = Bench(dut)
    await tb.begin()
    load = tb.size.tile_load_cycles + facts.load_tail(tb.size)
    for pixels in (1, 2, 3, load, load + 1, load + 2, load + 3, load + 4, 12):
        for keep in (0, 1):
            tb.issued.clear()
            p = await tb.run([{"rows": 1, "cols": pixels, "keep": keep}] * 4)
            taken = [tb.issued[i * pixels] - 1 for i in range(4)]
            assert p[1:] == [cycle + 1 for cycle in taken[:-1]], "preload takes the next pass in a + 1"
            expected = max(pixels, HAZARD, 1 + (2 if keep else load + 2))
            assert [b - a for a, b in itertools.pairwise(taken)] == [expected] * 3, (pixels, keep)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def short_passes_are_followed_by_counted_bubbles(dut):
    tb = Bench(dut)
    await tb.begin()
    for pixels, bubbles in ((1, 2), (2, 1), (3, 0)):
        tb.log["stall_hazard"].clear()
        await tb.run([{"rows": 1, "cols": pixels, "keep": 1}] * 5)
        assert len(tb.log["stall_hazard"]) == 5 * bubbles
        assert HAZARD - pixels == bubbles


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(reason=["weights", "activations", "accumulators"])
async def a_pass_waits_for_each_token_and_names_the_reason(dut, reason):
    tb = Bench(dut)
    await tb.begin()
    wire = {"weights": "weights_here", "activations": "activations_here", "accumulators": "bank_free"}[reason]
    tb.set(**{wire: 0})
    running = cocotb.start_soon(tb.run([{"rows": 1, "cols": 4, f"wait_{reason}": 1}]))
    await tb.tick(40)
    assert not tb.issued and not tb.log[f"take_{reason}"]
    assert len(tb.log[f"stall_{reason}"]) >= 30
    tb.set(**{wire: 1})
    await running
    assert len(tb.log[f"take_{reason}"]) == 1 and tb.pixels == pixels_of({"rows": 1, "cols": 4})


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def fields_outside_the_engine_s_limits_stop_it(dut):
    good = {"rows": 1, "cols": 4, "layer": 5}
    for wrong in ({"rows": 0}, {"cols": 0}, {"shift": 4}, {"slot": config().weight_slots}, {"images": 0}):
        tb = Bench(dut)
        if not tb.size.batch_tiles and "images" in wrong:
            continue
        await tb.begin()
        await tb.source.send([encode("PASS", **{**complete(tb.size, good), **wrong})])
        await tb.tick(10)
        assert tb.get("field_fault") and tb.get("fault_layer") == 5 and not tb.issued, wrong
        assert not tb.get("i__ready")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_pass_may_fill_a_bank_but_not_overfill_it(dut):
    depth = config().accumulator_depth
    tb = Bench(dut)
    await tb.begin()
    images = 2 if tb.size.batch_tiles else 1
    await tb.run([{"rows": 2, "cols": depth // 2}])
    await tb.run([complete(tb.size, {"rows": 2, "cols": depth // 2 // images}) | ({"images": images} if images > 1 else {})])
    assert tb.pixels[-1]["index"] == depth - 1 and not tb.get("field_fault")
    # One pixel too many: of a map, or the first one of the last image.
    fields = {"rows": depth // 2, "cols": 1, "images": 3} if tb.size.batch_tiles else {"rows": depth + 1, "cols": 1}
    await tb.source.send([encode("PASS", **fields, layer=9)])
    await tb.tick(depth + 20)
    assert tb.get("field_fault") and tb.get("fault_layer") == 9


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def accumulators_apart_may_reach_the_end_of_a_bank_but_not_beyond(dut):
    depth = config().accumulator_depth
    tb = Bench(dut)
    await tb.begin()
    for gap in (1, 3, 15):
        fields = {"rows": depth // (gap + 1), "cols": 1, "acc_gap": gap, "layer": 9}
        await tb.run([{**fields, "acc_first": gap}])
        assert tb.pixels[-1]["index"] == depth - 1 and not tb.get("field_fault")
    await tb.source.send([encode("PASS", **complete(tb.size, {**fields, "rows": fields["rows"] + 1}))])
    await tb.tick(depth + 20)
    assert tb.get("field_fault") and tb.get("fault_layer") == 9
