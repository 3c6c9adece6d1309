"""ResidualBuffer: all digits of any pixel's word, one cycle after its address; banks and planes apart."""

import random

import cocotb

from esbflow.engine_config import AXI_BEAT_BITS
from esbflow.engine_facts import RESIDUAL_PLANE, residual_planes
from esbhw.engine.residual_buffer import ResidualBuffer
from sim.benches.testbench import Testbench, config, cut, join


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def gives_all_digits_of_a_word_one_cycle_after_its_address(dut):
    size = config()
    tb = Testbench(dut, ResidualBuffer(size).signature)
    await tb.reset()
    rng = random.Random(10)
    stored = {(b, p): [rng.getrandbits(AXI_BEAT_BITS) for _ in range(size.residual_beats)]
              for b in range(2) for p in range(residual_planes(size))}
    for (bank, plane), beats in stored.items():
        for address, data in enumerate(beats):
            tb.set(write_valid=1, write_bank=bank, write_plane=plane & 1,
                   write_address=address + RESIDUAL_PLANE * (plane >> 1), write_data=data)
            await tb.tick()
    assert not tb.get("address_fault")
    tb.set(write_valid=1, write_bank=0, write_plane=0, write_address=size.residual_beats, write_data=0)
    await tb.tick()
    tb.set(write_valid=0)
    planes = {key: join(beats, AXI_BEAT_BITS) for key, beats in stored.items()}
    mask = (1 << size.word_bits) - 1
    words = size.residual_beats * size.words_per_beat // size.beats_per_word
    previous = None
    for _ in range(200):
        bank, address = rng.randrange(2), rng.randrange(words)
        tb.set(read_bank=bank, read_address=address)
        await tb.tick()
        if previous is not None:
            assert (tb.get("low"), tb.get("high")) == previous
        digits = [cut(planes[bank, plane] >> (address * size.word_bits) & mask, size.digit_bits, size.rows)
                  for plane in range(residual_planes(size))]
        values = [join(channel, size.digit_bits) for channel in zip(*digits)]
        previous = tuple(join([value >> 4 * half & 15 for value in values], 4) for half in range(2))
    assert tb.get("address_fault")
