"""ReadPort: order and tags under back-pressure, its two latencies, an abort in mid-burst, and error responses."""

import random

import cocotb

from esbhw.engine.axi import OUTSTANDING_READS, ReadPort, burst_layout
from sim.benches.axi_memory import ReadMemory
from sim.benches.testbench import Source, Testbench, pack

TAG_BITS = 6
BURST = burst_layout(TAG_BITS)
MEMORY = random.Random(0).randbytes(1 << 16)


class Bench(Testbench):
    """Collects beats as (data, tag, first, last) and watches that an address, once offered, stays."""

    def __init__(self, dut):
        super().__init__(dut, ReadPort(TAG_BITS).signature)
        self.beats, self.faults = [], []

    async def begin(self):
        await self.reset()
        self.set(run=1)
        self.source = Source(self, "bursts", rate=0.8, seed=1)
        cocotb.start_soon(self._watch())

    async def _watch(self):
        offered = None
        while True:
            await self.tick()
            if self.get("beat_valid"):
                self.beats.append(tuple(self.get(f"beat_{name}") for name in ("data", "tag", "first", "last")))
            for kind in ("fault", "protocol"):
                if self.get(kind):
                    self.faults.append((kind, self.get("address")))
            now = (self.get("axi__araddr"), self.get("axi__arlen")) if self.get("axi__arvalid") else None
            assert offered is None or now == offered, "an address was taken back"
            offered = None if self.get("axi__arready") else now

    async def quiet(self, within=2000):
        for _ in range(within):
            await self.tick()
            if self.get("quiescent"):
                await self.tick(2)  # the last beat is still on its way to `beat`
                return
        raise AssertionError("the port never became quiescent")


def random_bursts(rng, count):
    for _ in range(count):
        length = rng.choice((1, 2, 16, 64, rng.randrange(1, 65)))
        address = 4096 * rng.randrange(15) + 16 * rng.randrange(256 - length + 1)
        yield {"address": address, "length": length, "tag": rng.randrange(1 << TAG_BITS)}


def beats_of(bursts):
    return [(int.from_bytes(MEMORY[address:address + 16], "little"), burst["tag"], int(i == 0),
             int(i == burst["length"] - 1))
            for burst in bursts for i in range(burst["length"])
            for address in [burst["address"] + 16 * i]]


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def beats_come_in_order_with_their_tags(dut, stall):
    tb = Bench(dut)
    memory = ReadMemory(dut, "axi_", bytearray(MEMORY))
    memory.pause(stall, seed=3)
    await tb.begin()
    bursts = list(random_bursts(random.Random(2), 25))
    await tb.source.send([pack(BURST, **burst) for burst in bursts])
    await tb.quiet()
    assert tb.beats == beats_of(bursts) and not tb.faults


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_burst_and_a_beat_take_one_cycle_each(dut):
    tb = Bench(dut)
    await tb.begin()
    tb.set(axi__arready=1, bursts__valid=1, bursts__payload=pack(BURST, address=64, length=1, tag=5))
    await tb.tick()
    assert tb.get("bursts__ready") and not tb.get("axi__arvalid")
    tb.set(bursts__valid=0)
    await tb.tick()
    assert tb.get("axi__arvalid") and tb.get("axi__araddr") == 64 and tb.get("axi__arlen") == 0
    assert [tb.get(f"axi__{name}") for name in ("arsize", "arburst", "rready")] == [4, 1, 1]
    tb.set(axi__rvalid=0)
    await tb.tick()
    tb.set(axi__rvalid=1, axi__rdata=77, axi__rlast=1)
    await tb.tick()
    assert not tb.get("axi__arvalid") and not tb.get("beat_valid")
    tb.set(axi__rvalid=0)
    await tb.tick()
    assert [tb.get(f"beat_{name}") for name in ("valid", "data", "tag", "first", "last")] == [1, 77, 5, 1, 1]
    assert ReadPort.LATENCY == 2


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def so_many_bursts_are_in_flight_and_no_more(dut):
    tb = Bench(dut)
    await tb.begin()
    tb.set(axi__arready=1, bursts__valid=1, bursts__payload=pack(BURST, address=0, length=2))
    taken = 0
    for _ in range(2 * OUTSTANDING_READS + 10):
        await tb.tick()
        taken += tb.get("bursts__ready")
    assert taken == OUTSTANDING_READS, "one in two cycles until the limit"


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(after=[1, 5, 23, 60])
async def an_abort_lets_the_bus_finish_and_hides_what_comes(dut, after):
    tb = Bench(dut)
    memory = ReadMemory(dut, "axi_", bytearray(MEMORY))
    memory.pause(0.4, seed=after)
    await tb.begin()
    bursts = [{"address": 1024 * i, "length": 30, "tag": i} for i in range(8)]
    sending = cocotb.start_soon(tb.source.send([pack(BURST, **burst) for burst in bursts]))
    await tb.tick(after)
    tb.set(run=0)
    sending.cancel()
    await tb.tick()
    tb.set(bursts__valid=1)
    seen = len(tb.beats)
    for _ in range(20):
        await tb.tick()
        assert not tb.get("bursts__ready")
    tb.set(bursts__valid=0)
    await tb.quiet()
    assert len(tb.beats) <= seen + 1, "a beat taken before the abort may still appear, none after it"
    tb.beats.clear()
    tb.set(run=1)
    again = list(random_bursts(random.Random(after), 4))
    await tb.source.send([pack(BURST, **burst) for burst in again])
    await tb.quiet()
    assert tb.beats == beats_of(again) and not tb.faults


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_error_response_names_its_burst_and_the_burst_is_finished(dut):
    tb = Bench(dut)
    memory = ReadMemory(dut, "axi_", bytearray(MEMORY))
    memory.failing = {0x1000 + 3 * 16}
    await tb.begin()
    bursts = [{"address": 0, "length": 4, "tag": 1}, {"address": 0x1000, "length": 8, "tag": 2},
              {"address": 0x2000, "length": 2, "tag": 3}]
    await tb.source.send([pack(BURST, **burst) for burst in bursts])
    await tb.quiet()
    assert set(tb.faults) == {("fault", 0x1000)}
    assert [beat[1] for beat in tb.beats] == [1] * 4 + [2] * 8 + [3] * 2


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(early=[True, False])
async def a_last_flag_at_the_wrong_beat_is_noticed(dut, early):
    tb = Bench(dut)
    await tb.begin()
    tb.set(axi__arready=1)
    await tb.source.send([pack(BURST, address=0x3000, length=2)])
    await tb.tick(2)
    for last in ((1, 1) if early else (0, 0)):
        tb.set(axi__rvalid=1, axi__rlast=last)
        await tb.tick()
    tb.set(axi__rvalid=0)
    await tb.tick(3)
    assert set(tb.faults) == {("protocol", 0x3000)}
