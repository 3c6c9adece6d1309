"""What only engines with stripes of an image have: bounds of rows for each slice, and transfers with a stride of their own."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from esbhw.engine.spread import STRIDE_BITS, Spread
from esbhw.engine.stripe_rows import BOUND_BITS, StripeRows


def run(block, bench):
    simulator = Simulator(block)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("slices", [2, 4, 16])
def test_bounds_of_rows_are_there_two_cycles_after_the_pass_was_accepted(slices):
    block, random = StripeRows(slices), np.random.default_rng(1)

    async def bench(context):
        for stripe, rows in [(0, 1), (1023, 1023), *random.integers(0, 1024, (20, 2)).tolist()]:
            context.set(block.stripe, stripe)
            context.set(block.accept, 1)
            await context.tick()
            context.set(block.stripe, 5)  # the next pass's
            context.set(block.accept, 0)
            context.set(block.rows, rows)
            await context.tick()
            context.set(block.take, 1)
            await context.tick()
            context.set(block.take, 0)
            for k in range(slices):
                low, high = (context.get(part.word_select(k, BOUND_BITS).as_signed()) for part in (block.low, block.high))
                assert (low, high) == (-k * stripe, rows - k * stripe)

    run(block, bench)


@pytest.mark.parametrize("slices, ports", [(2, 2), (4, 2), (8, 8), (16, 8), (4, 1)])
def test_each_slice_gets_each_burst_from_where_its_transfer_says(slices, ports):
    block, random = Spread(slices, ports, 3, stripes=True), np.random.default_rng(2)

    async def bench(context):
        stride = int(random.integers(1 << STRIDE_BITS))
        context.set(block.stride, stride)
        context.set(block.ready, (1 << ports) - 1)
        for apart in [0, (1 << 16) - 1, *random.integers(1 << 16, size=4).tolist()]:
            address = int(random.integers(1 << 20)) << 12 | 0x340
            payload = block.i.payload
            context.set(payload.address, address)
            context.set(payload.tag, apart << 3 | 5)
            for _ in range(2):
                await context.tick()
            for _ in range(2):  # bursts of the transfer
                context.set(block.i.valid, 1)
                await context.tick()
                # The next transfer comes as soon as this burst is taken.
                context.set(block.i.valid, 0)
                context.set(payload.tag, 7)
                seen = []
                while not context.get(block.idle):
                    if context.get(block.valid):
                        assert context.get(block.tag) == 5
                        seen += [context.get(block.address.word_select(k, 40)) for k in range(ports)]
                    await context.tick()
                assert seen == [(address + k * (stride + apart) * 4096) % (1 << 40) for k in range(slices)]
                context.set(payload.tag, apart << 3 | 5)
                for _ in range(2):
                    await context.tick()

    run(block, bench)
