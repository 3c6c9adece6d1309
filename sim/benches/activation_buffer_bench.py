"""ActivationBuffer: every word of both halves, two cycles after its address, in offset binary, or zeros."""

import random

import cocotb

from esbflow.engine_config import AXI_BEAT_BITS
from esbflow.engine_facts import ACTIVATION_LATENCY
from esbhw.engine.activation_buffer import ActivationBuffer
from sim.benches.testbench import Testbench, config, cut, join, signed


class Model:
    """Memory beats of two halves, read as words of one pixel."""

    def __init__(self):
        self.config = config()
        self.halves = [[0] * self.config.activation_beats for _ in range(2)]

    def digits(self, half: int, address: int, inside: bool, as_signed: bool) -> list:
        if not inside:
            return [self.config.sign_offset if as_signed else 0] * self.config.rows
        beat = join(self.halves[half], AXI_BEAT_BITS)
        bits = self.config.digit_bits
        digits = cut(beat >> (address * self.config.word_bits), bits, self.config.rows)
        return [signed(digit, bits) + self.config.sign_offset if as_signed else digit for digit in digits]


async def start(dut):
    tb = Testbench(dut, ActivationBuffer(config()).signature)
    await tb.reset()
    return tb, Model()


async def fill(tb, model, rng):
    for half in range(2):
        for address in range(model.config.activation_beats):
            model.halves[half][address] = data = rng.getrandbits(AXI_BEAT_BITS)
            tb.set(write_valid=1, write_half=half, write_address=address, write_data=data)
            await tb.tick()
    tb.set(write_valid=0)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def gives_any_word_a_cycle_with_the_documented_latency(dut):
    tb, model = await start(dut)
    rng = random.Random(4)
    await fill(tb, model, rng)
    words = model.config.activation_words
    asked = [(half, address, 1, half) for half in range(2) for address in range(words)]
    asked += [(rng.randrange(2), rng.randrange(-words, 3 * words), 0, 1) for _ in range(20)]
    asked += [(rng.randrange(2), rng.randrange(words), rng.randrange(2), rng.randrange(2)) for _ in range(60)]
    latency = ACTIVATION_LATENCY
    for number in range(len(asked) + latency):
        if number < len(asked):
            half, address, inside, as_signed = asked[number]
            tb.set(read_half=half, read_address=address, inside=inside, signed=as_signed)
        await tb.tick()
        if number >= latency:
            assert cut(tb.get("digits"), model.config.digit_bits, model.config.rows) == model.digits(
                *asked[number - latency]), asked[number - latency]
    assert not tb.get("address_fault")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def writes_and_reads_do_not_disturb_each_other(dut):
    """One half is read while the other is written, as the loader and the sequencer do."""
    tb, model = await start(dut)
    rng = random.Random(5)
    await fill(tb, model, rng)
    pending = []
    for _ in range(100):
        half = rng.randrange(2)
        word, beat = rng.randrange(model.config.activation_words), rng.randrange(model.config.activation_beats)
        data = rng.getrandbits(AXI_BEAT_BITS)
        tb.set(read_half=half, read_address=word, inside=1, signed=0,
               write_valid=1, write_half=1 - half, write_address=beat, write_data=data)
        pending.append(model.digits(half, word, True, False))
        model.halves[1 - half][beat] = data
        await tb.tick()
        if len(pending) > ACTIVATION_LATENCY:
            assert cut(tb.get("digits"), model.config.digit_bits, model.config.rows) == pending.pop(0)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def refuses_a_write_behind_the_end(dut):
    tb, model = await start(dut)
    await fill(tb, model, random.Random(6))
    tb.set(write_valid=1, write_half=0, write_address=model.config.activation_beats, write_data=0)
    await tb.tick()
    tb.set(write_valid=0, read_half=0, read_address=0, inside=1)
    await tb.tick(ACTIVATION_LATENCY + 1)
    assert tb.get("address_fault")
    assert cut(tb.get("digits"), model.config.digit_bits, model.config.rows) == model.digits(0, 0, True, False)
