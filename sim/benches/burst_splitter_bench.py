"""BurstSplitter: the 4 KB rule, segments, local addresses, faults, and a burst every SPLIT_CYCLES."""

import random

import cocotb

from esbflow.engine_facts import BEATS_PER_4K, SPLIT_CYCLES
from esbflow.registers import REGIONS
from esbhw.engine.transfer import REGION_LAYOUT, BurstSplitter, piece_layout, transfer_layout
from sim.benches.testbench import Sink, Source, Testbench, pack, parameters

TAG_BITS = 4
TRANSFER = transfer_layout(TAG_BITS)
BASES = [0x1000 * (3 + 17 * i) for i in range(len(REGIONS))]
SIZE = 3000


def expected(transfer: dict, max_burst: int) -> list:
    """The bursts of a transfer, as dictionaries of piece_layout's fields."""
    pieces, local = [], transfer["address"]
    for segment in range(transfer["segments"]):
        address = BASES[transfer["region"]] // 16 + transfer["offset"] + segment * transfer["stride"]
        left = transfer["beats"]
        while left:
            length = min(left, max_burst, BEATS_PER_4K - address % BEATS_PER_4K)
            pieces.append({"address": 16 * address, "length": length, "local": local, "last": 0,
                           "tag": transfer["tag"]})
            address, left, local = address + length, left - length, local + length
    pieces[-1]["last"] = 1
    return pieces


def random_transfer(rng: random.Random) -> dict:
    beats, segments = rng.choice((1, 2, 15, 16, 17, 33, 300)), rng.choice((1, 1, 2, 5))
    stride = rng.randrange(beats, beats + 50)
    return {"region": rng.randrange(len(REGIONS)), "offset": rng.randrange(SIZE - segments * stride),
            "beats": beats, "segments": segments, "stride": stride, "address": rng.randrange(1000),
            "tag": rng.randrange(1 << TAG_BITS)}


async def start(dut):
    tb = Testbench(dut, BurstSplitter(parameters()["max_burst"], TAG_BITS).signature)
    await tb.reset()
    tb.set(regions=REGION_LAYOUT.const([{"base": base, "beats": SIZE} for base in BASES]).as_bits())
    return tb


def fields(payload: int) -> dict:
    view = piece_layout(TAG_BITS, parameters()["max_burst"]).from_bits(payload)
    return {name: view[name] for name in ("address", "length", "local", "last", "tag")}


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(seed=[1, 2])
async def cuts_random_transfers_whatever_the_stalls(dut, seed):
    tb = await start(dut)
    rng = random.Random(seed)
    transfers = [random_transfer(rng) for _ in range(25)]
    wanted = [piece for transfer in transfers for piece in expected(transfer, parameters()["max_burst"])]
    sink = Sink(tb, "o", rate=0.6, seed=seed)
    source = Source(tb, "i", rate=0.7, seed=seed)
    await source.send([pack(TRANSFER, **transfer) for transfer in transfers])
    await sink.wait_for(len(wanted))
    assert [fields(payload) for payload in sink.payloads] == wanted
    assert not tb.get("range_fault") and not tb.get("field_fault")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def gives_a_burst_every_few_cycles(dut):
    tb = await start(dut)
    sink, source = Sink(tb, "o"), Source(tb, "i")
    transfer = {"beats": 40, "segments": 2, "stride": 40, "region": 3, "offset": 100}
    count = len(expected({"address": 0, "tag": 0, **transfer}, parameters()["max_burst"]))
    await source.send([pack(TRANSFER, **transfer)] * 2)
    await sink.wait_for(2 * count)
    cycles = [cycle for cycle, _ in sink.items]
    step = SPLIT_CYCLES
    first = [source.taken[0] + step * (k + 1) for k in range(count)]
    assert source.taken[1] == first[-1] + 1, "the next transfer is taken right after the last burst"
    assert cycles == first + [source.taken[1] + step * (k + 1) for k in range(count)]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(beyond=[0, 1])
async def stops_at_the_end_of_a_region(dut, beyond):
    """A run may end with the region; one beat more is a fault with the run's address, and nothing is issued."""
    tb = await start(dut)
    sink, source = Sink(tb, "o"), Source(tb, "i")
    offset = SIZE - 32 - 8 + beyond
    await source.send([pack(TRANSFER, region=1, offset=offset, beats=8, segments=2, stride=32)])
    await tb.tick(20)
    bursts = expected({"region": 1, "offset": offset, "beats": 8, "segments": 2 - beyond, "stride": 32,
                       "address": 0, "tag": 0}, parameters()["max_burst"])
    assert len(sink.items) == len(bursts)
    assert tb.get("range_fault") == beyond
    assert not beyond or tb.get("fault_address") == BASES[1] + 16 * (offset + 32)
    assert tb.get("i__ready") == 1 - beyond


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def refuses_empty_transfers_and_unknown_regions(dut):
    for wrong in ({"beats": 0}, {"segments": 0}, {"region": 6}, {"region": 7}):
        tb = await start(dut)
        sink = Sink(tb, "o")
        await Source(tb, "i").send([pack(TRANSFER, **{"beats": 4, "segments": 1, "region": 0, **wrong})])
        await tb.tick(5)
        assert tb.get("field_fault") and not tb.get("i__ready") and not sink.items
        sink.task.cancel()
