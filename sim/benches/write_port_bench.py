"""WritePort: bursts only when their data is here, no gaps, an abort that leaves nothing behind, error responses."""

import random

import cocotb

from esbhw.engine.axi import OUTSTANDING_WRITES, WritePort, burst_layout
from sim.benches.axi_memory import WriteMemory
from sim.benches.testbench import Source, Testbench, pack, parameters

BURST = burst_layout(1)


class Bench(Testbench):
    """Collects responses as (tag,), and the cycles of addresses and data on the bus."""

    def __init__(self, dut):
        self.depth = parameters()["depth"]
        super().__init__(dut, WritePort(self.depth).signature)
        self.done, self.faults, self.addresses, self.data = [], [], [], []

    async def begin(self):
        await self.reset()
        self.set(run=1)
        self.beats = Source(self, "beats", rate=parameters().get("rate", 0.9), seed=4)
        self.bursts = Source(self, "bursts", seed=5)
        cocotb.start_soon(self._watch())

    async def _watch(self):
        offered = {"aw": None, "w": None}
        while True:
            await self.tick()
            if self.get("done_valid"):
                self.done.append(self.get("done_tag"))
            if self.get("fault"):
                self.faults.append(self.get("address"))
            for channel, names, log in (("aw", ("awaddr", "awlen"), self.addresses),
                                        ("w", ("wdata", "wlast"), self.data)):
                valid, ready = self.get(f"axi__{channel}valid"), self.get(f"axi__{channel}ready")
                now = tuple(self.get(f"axi__{name}") for name in names) if valid else None
                assert offered[channel] in (None, now), f"{channel} was taken back"
                offered[channel] = None if ready else now
                if valid and ready:
                    log.append((self.cycle, *now))
            assert self.get("beat_taken") == (self.get("axi__wvalid") & self.get("axi__wready"))

    async def quiet(self, within=3000):
        await self.tick(3)
        for _ in range(within):
            await self.tick()
            if self.get("quiescent"):
                await self.tick(2)
                return
        raise AssertionError("the port never became quiescent")


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.5])
async def memory_holds_what_was_sent_and_tags_come_back_in_order(dut, stall):
    tb = Bench(dut)
    content = bytearray(1 << 16)
    memory = WriteMemory(dut, "axi_", content)
    memory.pause(stall, seed=6)
    await tb.begin()
    rng = random.Random(7)
    lengths = [rng.choice((1, 2, 16, 3)) for _ in range(25)]
    places = rng.sample(range(200), len(lengths))
    tags = [rng.randrange(2) for _ in lengths]
    beats = [rng.getrandbits(128) for _ in range(sum(lengths))]
    sending = cocotb.start_soon(tb.beats.send(beats))
    await tb.bursts.send([pack(BURST, address=256 * place, length=length, tag=tag)
                          for place, length, tag in zip(places, lengths, tags)])
    await sending
    await tb.quiet()
    expected, rest = bytearray(1 << 16), iter(beats)
    for place, length in zip(places, lengths):
        for i in range(length):
            expected[256 * place + 16 * i:256 * place + 16 * i + 16] = next(rest).to_bytes(16, "little")
    assert content == expected
    assert tb.done == tags and not tb.faults


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def a_burst_waits_for_its_beats_and_for_those_promised_to_others(dut):
    tb = Bench(dut)
    await tb.begin()
    tb.set(bursts__valid=1, bursts__payload=pack(BURST, address=0, length=4))
    cocotb.start_soon(tb.beats.send(range(3)))
    for _ in range(15):
        await tb.tick()
        assert not tb.get("bursts__ready")
    await tb.beats.send([3, 4, 5])  # six beats: enough for one burst of four, not for two
    taken = 0
    for _ in range(15):
        await tb.tick()
        taken += tb.get("bursts__ready") and tb.get("bursts__valid")
    assert taken <= 1 and tb.get("bursts__valid")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def bursts_follow_each_other_without_a_gap(dut):
    tb = Bench(dut)
    await tb.begin()
    await tb.beats.send(range(24))
    await tb.tick(4)
    tb.set(axi__awready=1, axi__wready=1)
    await tb.bursts.send([pack(BURST, address=256 * i, length=8) for i in range(3)])
    await tb.tick(30)
    first = tb.bursts.taken[0]
    assert tb.bursts.taken == [first, first + 2, first + 4]
    assert [cycle for cycle, *_ in tb.addresses] == [first + 1, first + 3, first + 5]
    assert [(cycle, data) for cycle, data, _ in tb.data] == [(first + 2 + i, i) for i in range(24)]
    assert [last for *_, last in tb.data] == [0, 0, 0, 0, 0, 0, 0, 1] * 3
    assert [tb.get(f"axi__{name}") for name in ("awsize", "awburst", "wstrb", "bready")] == [4, 1, 0xFFFF, 1]


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def so_many_responses_are_awaited_and_no_more(dut):
    tb = Bench(dut)
    await tb.begin()
    tb.set(axi__awready=1, axi__wready=1, beats__valid=1, bursts__valid=1,
           bursts__payload=pack(BURST, address=0, length=1))
    taken = 0
    for _ in range(2 * OUTSTANDING_WRITES + 40):
        await tb.tick()
        taken += tb.get("bursts__ready")
    assert taken == OUTSTANDING_WRITES
    assert not tb.get("quiescent")


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def room_ends_when_three_quarters_are_full(dut):
    tb = Bench(dut)
    await tb.begin()
    tb.set(beats__valid=1)
    for level in range(tb.depth):
        await tb.tick()
        assert tb.get("beats__ready") and tb.get("room") == (level <= tb.depth * 3 // 4), level


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(after=[3, 12, 30, 50])
async def an_abort_finishes_the_bus_and_forgets_the_rest(dut, after):
    tb = Bench(dut)
    content = bytearray(1 << 14)
    memory = WriteMemory(dut, "axi_", content)
    memory.pause(0.6, seed=after)
    await tb.begin()
    sending = [cocotb.start_soon(tb.beats.send(range(100))),
               cocotb.start_soon(tb.bursts.send([pack(BURST, address=256 * i, length=7) for i in range(14)]))]
    await tb.tick(after)
    tb.set(run=0)
    for task in sending:
        task.cancel()
    await tb.tick()
    done = len(tb.done)
    tb.set(beats__valid=1, bursts__valid=1)
    for _ in range(20):
        await tb.tick()
        assert not tb.get("beats__ready") and not tb.get("bursts__ready")
    tb.set(beats__valid=0, bursts__valid=0)
    await tb.quiet()
    assert len(tb.addresses) == len([1 for *_, last in tb.data if last]), "every burst on the bus got its data"
    assert len(tb.done) <= done + 1
    tb.done.clear()
    tb.set(run=1, bursts__valid=1, bursts__payload=pack(BURST, address=0, length=1))
    for _ in range(5):
        await tb.tick()
        assert not tb.get("bursts__ready"), "no beat of the run before is promised to this one"
    tb.set(bursts__valid=0)
    await tb.beats.send([1000 + i for i in range(5)])
    await tb.bursts.send([pack(BURST, address=0x3000, length=5, tag=1)])
    await tb.quiet()
    assert [content[0x3000 + 16 * i:0x3010 + 16 * i] for i in range(5)] == [
        (1000 + i).to_bytes(16, "little") for i in range(5)]
    assert tb.done == [1] and not tb.faults


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def an_error_response_names_its_burst(dut):
    tb = Bench(dut)
    memory = WriteMemory(dut, "axi_", bytearray(1 << 14))
    memory.failing = {0x1010}
    await tb.begin()
    await tb.beats.send(range(6))
    await tb.bursts.send([pack(BURST, address=0x1000 * i, length=2, tag=1) for i in range(3)])
    await tb.quiet()
    assert set(tb.faults) == {0x1000}
