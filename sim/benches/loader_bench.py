"""Loader: transfers into the right places, tokens taken before and posted with the last write, timing."""

import random

import cocotb

from esbflow.engine_facts import SPLIT_CYCLES
from esbflow.instructions import encode
from esbflow.registers import REGIONS
from esbhw.engine.loader import Loader
from esbhw.engine.transfer import REGION_LAYOUT
from sim.benches.axi_memory import IdealReadMemory, ReadMemory
from sim.benches.testbench import Source, Testbench, config
from sim.benches.toplevels import AxiTop

SIZE = 1024  # beats of each region
MEMORY = random.Random(1).randbytes(16 * SIZE * len(REGIONS))
LATENCY = 8


class Bench(Testbench):
    """Collects writes as (destination, address, data), and the tokens that were taken and posted."""

    def __init__(self, dut):
        super().__init__(dut, AxiTop(Loader(config(), "LOAD")).signature)
        self.writes, self.write_cycles, self.bus_cycles, self.posts, self.taken = [], [], [], [], []

    async def begin(self, stall: float | None = None, free: int = 3, stores: int = 1000):
        if stall is None:
            IdealReadMemory(self.dut, "axi_", MEMORY, LATENCY)
        else:
            self.memory = ReadMemory(self.dut, "axi_", bytearray(MEMORY))
            self.memory.pause(stall, seed=9)
        await self.reset()
        regions = [{"base": 16 * SIZE * i, "beats": SIZE} for i in range(len(REGIONS))]
        self.set(run=1, regions=REGION_LAYOUT.const(regions).as_bits(), free=free, stores_count=stores,
                 axi__arready=1)
        self.source = Source(self, "i", seed=1)
        cocotb.start_soon(self._watch())

    async def _watch(self):
        while True:
            await self.tick()
            if self.get("axi__rvalid"):
                self.bus_cycles.append(self.cycle)
            if self.get("write_valid"):
                self.write_cycles.append(self.cycle)
                self.writes.append(tuple(self.get(f"write_{name}") for name in ("destination", "address", "data")))
            if self.get("post"):
                self.posts.append((len(self.writes), self.get("post")))
            if self.get("take_free") or self.get("take_stores"):
                assert self.get("i__valid") and self.get("i__ready")
                self.taken.append((self.get("take_free"), self.get("take_stores") and self.get("stores_amount")))

    async def wait(self, count: int, within: int = 4000):
        for _ in range(within):
            if len(self.writes) >= count:
                return await self.tick(2)
            await self.tick()
        raise AssertionError(f"{len(self.writes)} of {count} beats within {within} cycles")


def random_load(rng) -> dict:
    beats, segments = rng.choice((1, 3, 16, 17, 40)), rng.choice((1, 1, 2, 4))
    stride = beats + rng.randrange(5)
    return {"region": rng.randrange(len(REGIONS)), "offset": rng.randrange(SIZE - segments * stride), "beats": beats,
            "segments": segments, "stride": stride, "destination": rng.choice((0, 1, 2, 3, 6, 7)),
            "address": rng.randrange(500), "wait_free": rng.randrange(2), "post_full": rng.randrange(2),
            "wait_stores": rng.choice((0, 0, 1, 9)), "layer": rng.randrange(4096)}


def kind_of(load: dict) -> int:
    return 2 if load["destination"] >= 2 else 1


def writes_of(load: dict) -> list:
    result = []
    for segment in range(load["segments"]):
        for beat in range(load["beats"]):
            place = 16 * (SIZE * load["region"] + load["offset"] + segment * load["stride"] + beat)
            result.append((load["destination"], load["address"] + len(result),
                           int.from_bytes(MEMORY[place:place + 16], "little")))
    return result


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def random_transfers_arrive_whole_and_post_with_their_last_beat(dut, stall):
    tb = Bench(dut)
    await tb.begin(stall)
    rng = random.Random(12)
    loads = [random_load(rng) for _ in range(15)]
    await tb.source.send([encode("LOAD", **load) for load in loads])
    writes = [write for load in loads for write in writes_of(load)]
    await tb.wait(len(writes))
    assert tb.writes == writes
    total, posts = 0, []
    for load in loads:
        total += len(writes_of(load))
        if load["post_full"]:
            posts.append((total, kind_of(load)))
    assert tb.posts == posts
    assert tb.taken == [(load["wait_free"] and kind_of(load), load["wait_stores"]) for load in loads
                        if load["wait_free"] or load["wait_stores"]]
    assert tb.get("layer") == loads[-1]["layer"]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_beat_is_written_in_the_cycle_after_the_bus_offered_it(dut):
    tb = Bench(dut)
    await tb.begin()
    await tb.source.send([encode("LOAD", beats=40, segments=1, stride=40)])
    await tb.wait(40)
    assert tb.write_cycles == [cycle + 1 for cycle in tb.bus_cycles]
    accepted = tb.source.taken[0]
    # Splitter, then one cycle to the bus, then the memory.
    assert tb.bus_cycles[0] == accepted + SPLIT_CYCLES + 1 + LATENCY
    assert tb.bus_cycles == list(range(tb.bus_cycles[0], tb.bus_cycles[0] + 40)), "no gap between bursts"


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def the_next_transfer_is_asked_for_while_data_is_on_its_way(dut):
    tb = Bench(dut)
    await tb.begin()
    await tb.source.send([encode("LOAD", beats=16, segments=1), encode("LOAD", offset=64, beats=16, segments=1)])
    assert tb.source.taken[1] == tb.source.taken[0] + SPLIT_CYCLES + 1
    await tb.wait(32)
    assert tb.bus_cycles == list(range(tb.bus_cycles[0], tb.bus_cycles[0] + 32))


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(kind=["free", "stores"])
async def an_instruction_waits_for_its_tokens(dut, kind):
    tb = Bench(dut)
    await tb.begin(free=0, stores=4)
    wait = {"wait_free": 1} if kind == "free" else {"wait_stores": 5}
    sending = cocotb.start_soon(tb.source.send([encode("LOAD", beats=1, segments=1, **wait)]))
    for _ in range(30):
        await tb.tick()
        assert not tb.get("i__ready") and not tb.get("axi__arvalid")
    assert tb.get("waiting")
    tb.set(**({"free": 1} if kind == "free" else {"stores_count": 5}))
    await sending
    await tb.wait(1)
    assert tb.taken == ([(1, 0)] if kind == "free" else [(0, 5)])


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def faults_come_from_the_splitter_and_the_port(dut):
    for wrong, fault in (({"beats": 0}, "field_fault"), ({"offset": SIZE, "region": 2}, "range_fault")):
        tb = Bench(dut)
        await tb.begin()
        await tb.source.send([encode("LOAD", **{"beats": 4, "segments": 1, **wrong})])
        await tb.tick(8)
        assert tb.get(fault) and not tb.get("axi__arvalid")
        assert fault == "field_fault" or tb.get("fault_address") == 16 * SIZE * 3
