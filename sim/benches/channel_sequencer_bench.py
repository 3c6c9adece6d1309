"""Sequencer of an engine with a channel unit: the columns, outputs, taps and cycles of CHANNELs, among PASSes."""

import itertools
import random

import cocotb

from esbflow.instructions import encode
from esbhw.engine.accumulators import control_layout
from esbhw.engine.sequencer import Sequencer
from sim.benches.sequencer_bench import HAZARD, complete, pixels_of, random_pass, rows_of
from sim.benches.testbench import Source, Testbench, config, cut, signed


class Bench(Testbench):
    """Logs a dictionary for each word that a column reads, the controls of outputs, and pulses."""

    def __init__(self, dut):
        self.size = config()
        self.layout = control_layout(self.size)
        self.columns, self.outputs, self.issued = [], [], []
        self.log = {name: [] for name in ("swap", "channel_swap", "load_en", "channel_load_en", "post_weights")}
        self.slots = {}
        super().__init__(dut, Sequencer(self.size).signature)

    async def begin(self, rate: float = 1.0):
        await self.reset()
        self.set(weights_here=1, activations_here=1, bank_free=1)
        self.source = Source(self, "i", rate, seed=1)
        cocotb.start_soon(self._watch())

    async def _watch(self):
        while True:
            await self.tick()
            self.slots[self.cycle] = self.get("slot_address")
            for name, cycles in self.log.items():
                if self.get(name):
                    cycles.append(self.cycle)
            control = self.layout.from_bits(self.get("control"))
            if self.get("issue"):
                self.issued.append(self.cycle)
                more = zip(*(cut(self.get(f"more_{name}"), width, 2) for name, width in
                             (("address", 20), ("inside", 1), ("signed", 1))))
                self.columns.append([(signed(self.get("read_address"), 20), self.get("inside"), self.get("signed")),
                                     *((signed(address, 20), inside, sign) for address, inside, sign in more)])
            if control.valid:
                self.outputs.append({name: control[name] for name in ("first", "bank", "index", "shift", "post", "channel")}
                                    | {name: control.window[name] for name in ("part", "tap_cols", "maximum")})

    async def run(self, instructions: list) -> list:
        columns = len(self.columns) + sum(len(rows_of(fields)) * fields["cols"] for _, fields in instructions)
        start = len(self.source.taken)
        await self.source.send([encode(opcode, **complete(self.size, fields)) for opcode, fields in instructions])
        for _ in range(4000):
            if len(self.columns) >= columns:
                await self.tick(4)
                return self.source.taken[start:]
            await self.tick()
        raise AssertionError(f"{len(self.columns)} of {columns} columns")


def random_channel(rng, size) -> dict:
    fields = random_pass(rng, size)
    for name in ("book", "load_book", "codebook"):
        del fields[name]
    taps, gap, outputs = rng.randrange(1, 4), rng.randrange(4), rng.choice((1, 1, 2, 3))
    rows, images = rng.choice((1, 1, 2, 4)), min(fields.get("images", 1), 5)
    images = min(images, size.accumulator_depth // (rows * outputs))
    step = rng.randrange(1, size.accumulator_depth // (images * rows * outputs) + 1)
    if size.batch_tiles:
        fields["images"] = images
    return fields | dict(rows=rows, acc_gap=step - 1, acc_first=rng.randrange(step),
                         cols=(outputs - 1) * (gap + 1) + taps, tap_cols=taps, gap=gap,
                         tap_rows=rng.randrange(1, 4), tap_step_y=rng.randrange(4), tap_step=rng.randrange(40),
                         maximum=rng.randrange(2), part=rng.randrange(size.channel_blocks))


def expected_of(opcode: str, fields: dict) -> tuple:
    """(words of the columns, controls of the outputs)."""
    if opcode == "PASS":
        pixels = pixels_of(fields)
        return ([[(p["address"], p["inside"], p["signed"])] for p in pixels],
                [{name: p[name] for name in ("first", "bank", "index", "shift", "post")} | {"channel": 0} for p in pixels])
    columns, outputs = [], []
    for row, number in rows_of(fields):
        for col in range(fields["cols"]):
            words = []
            for k in range(3):
                y = fields["y"] + row * fields["stride_y"] + k * fields["tap_step_y"]
                x = fields["x"] + col * fields["stride_x"]
                inside = k < fields["tap_rows"] and 0 <= y < fields["in_rows"] and 0 <= x < fields["in_cols"]
                words.append((fields["address"] + number * fields["row_step"] + col * fields["stride_x"]
                              + k * fields["tap_step"], int(inside),
                              int(fields["signed"] and not (fields["maximum"] and not inside))))
            columns.append(words)
            if col >= fields["tap_cols"] - 1 and (col - fields["tap_cols"] + 1) % (fields["gap"] + 1) == 0:
                outputs.append({name: fields[name] for name in ("first", "bank", "shift", "part", "tap_cols", "maximum")}
                               | {"channel": 1, "post": 0,
                                  "index": fields["acc_first"] + len(outputs) * (fields["acc_gap"] + 1)})
    outputs[-1]["post"] = fields["post_accumulators"]
    return columns, outputs


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(rate=[1.0, 0.1])
async def columns_and_outputs_of_both_kinds_of_pass_come_in_order(dut, rate):
    tb = Bench(dut)
    await tb.begin(rate)
    rng = random.Random(23)
    instructions = [("CHANNEL", random_channel(rng, tb.size)) if rng.random() < 0.6 else ("PASS", random_pass(rng, tb.size))
                    for _ in range(60)]
    await tb.run(instructions)
    found = [expected_of(*instruction) for instruction in instructions]
    columns, outputs = ([one for pair in found for one in pair[k]] for k in (0, 1))
    assert len(tb.columns) == len(columns) and len(tb.outputs) == len(outputs)
    for seen, wanted in zip(tb.columns, columns):
        assert seen[:len(wanted)] == wanted
    for seen, wanted in zip(tb.outputs, outputs):
        assert {name: seen[name] for name in wanted} == wanted
    for opcode, name in (("PASS", "swap"), ("CHANNEL", "channel_swap")):
        assert len(tb.log[name]) == sum(kind == opcode and not fields["keep"] for kind, fields in instructions), name
    assert not tb.get("field_fault")


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(keep=[0, 1])
async def a_lone_channel_has_its_documented_cycles(dut, keep):
    tb = Bench(dut)
    await tb.begin()
    fields = random_channel(random.Random(3), tb.size) | complete(tb.size, {}) | dict(
        rows=2, cols=5, tap_cols=3, gap=1, keep=keep, slot=2, post_weights=1)
    [p] = await tb.run([("CHANNEL", fields)])
    load = tb.size.tap_load_cycles
    taken = p + 2 if keep else p + load + 2
    assert tb.issued == list(range(taken + 1, taken + 11)) and len(tb.outputs) == 4
    assert tb.log["channel_swap"] == ([] if keep else [taken + 2]) and not tb.log["swap"] and not tb.log["load_en"]
    assert tb.log["channel_load_en"] == ([] if keep else [p + 2 + i for i in range(load)])
    assert [tb.slots[cycle - 1] for cycle in tb.log["channel_load_en"]] == (
        [] if keep else [2 * tb.size.tile_rows + i for i in range(load)])
    assert tb.log["post_weights"] == ([] if keep else [p + load])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def few_outputs_are_followed_by_bubbles(dut):
    """The next pass's columns begin after max(0, hazard - outputs) bubbles, however many columns there were."""
    tb = Bench(dut)
    await tb.begin()
    for outputs, taps in ((1, 1), (1, 3), (2, 1), (2, 3), (3, 2)):
        tb.issued.clear()
        fields = dict(rows=1, cols=outputs - 1 + taps, tap_cols=taps, tap_rows=1, keep=1)
        await tb.run([("CHANNEL", fields)] * 3)
        first = tb.issued[::fields["cols"]]
        # With one output and one column the next pass is not there earlier either.
        assert [b - a for a, b in itertools.pairwise(first)] == [max(fields["cols"] + max(0, HAZARD - outputs), 2)] * 2


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def fields_that_the_unit_has_not_stop_it(dut):
    good = dict(rows=1, cols=4, tap_rows=1, tap_cols=1, layer=5)
    for wrong in ({"tap_rows": 0}, {"tap_cols": 0}, {"part": config().channel_blocks}, {"gap": 1}):
        tb = Bench(dut)
        await tb.begin()
        await tb.source.send([encode("CHANNEL", **complete(tb.size, {**good, **wrong}))])
        await tb.tick(30)
        assert tb.get("field_fault") and tb.get("fault_layer") == 5, wrong
