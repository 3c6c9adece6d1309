"""The memory model's timing, stalls, faults and protocol checks, measured cycle by cycle with a bus probe."""

from fractions import Fraction

import numpy as np
import pytest

from esbsim.build import build
from esbsim.probe import READ, READ_PROGRAM, TOP, WRITE, ProbeDriver, probe_rtlil
from esbsim.simulator import IDEAL, MemoryTiming, ProtocolViolation, SimulationError, Simulator

BASE = 1 << 35  # the probe's addresses have bit 35 set: more than a 32-bit register holds


@pytest.fixture(scope="module")
def library():
    return build(probe_rtlil(), TOP)


@pytest.fixture
def memory():
    return np.random.default_rng(1).integers(0, 256, 1 << 16, dtype=np.uint8)


@pytest.fixture
def probe(library, memory):
    def make(timing=IDEAL, **options):
        return ProbeDriver(Simulator(library, memory, BASE, timing, **options))
    return make


@pytest.mark.parametrize("latency", [1, 2, 5, 40])
def test_first_beat_comes_latency_cycles_after_its_address(probe, latency):
    _, times = probe(MemoryTiming(latency=latency)).transfer(READ, 0, beats=3, bursts=1)
    assert times["rvalid"] == [times["ar"][0] + latency + i for i in range(3)]


def test_bursts_follow_one_another_without_a_gap(probe):
    _, times = probe(MemoryTiming(latency=7)).transfer(READ, 0, beats=4, bursts=3)
    assert times["ar"] == [0, 1, 2]
    assert times["rvalid"] == list(range(7, 19))
    assert times["rlast"] == [10, 14, 18]


def test_one_beat_bursts_are_pipelined(probe):
    _, times = probe(MemoryTiming(latency=9)).transfer(READ, 0, beats=1, bursts=20)
    assert times["rvalid"] == [t + 9 for t in times["ar"]] == list(range(9, 29))


@pytest.mark.parametrize("latency", [1, 3, 11])
def test_write_answer_comes_latency_cycles_after_its_last_beat(probe, latency):
    _, times = probe(MemoryTiming(latency=2, write_latency=latency)).transfer(WRITE, 0, beats=4, bursts=3)
    last_beats = times["w"][3::4]
    assert times["aw"] == [0, 1, 2] and times["w"] == list(range(1, 13))
    assert times["bvalid"] == [t + latency for t in last_beats]


def test_what_is_read_and_written_is_the_arrays_content(probe, memory):
    driver = probe()
    expected = int(memory[256:256 + 16 * 24].view(np.uint32)[::4].sum(dtype=np.uint32))
    driver.transfer(READ, 256, beats=8, bursts=3)
    assert driver.simulator.read(0x20) == expected
    driver.transfer(WRITE, 4096, beats=8, bursts=2)
    words = memory[4096:4096 + 256].view(np.uint32).reshape(16, 4)
    assert (words[:, 0] == np.arange(16)).all() and (words[:, 1] == ~np.arange(16, dtype=np.uint32)).all()
    assert driver.simulator.statistics("activations") == {
        "read_bursts": 3, "read_beats": 24, "write_bursts": 2, "write_beats": 16}


def test_data_are_in_memory_with_their_answer_and_not_before(probe, memory):
    memory[:] = 0
    simulator = probe().simulator
    simulator.set_stall("activations", ("b",))
    driver = ProbeDriver(simulator)
    finished, times = driver.transfer(WRITE, 0, beats=2, max_cycles=500)
    assert not finished and len(times["w"]) == 2 and not memory.any()
    simulator.release_stall("activations")
    assert simulator.run_until_interrupt(100) and memory.any()


@pytest.mark.parametrize("rate, gaps", [(Fraction(1, 2), {2}), (Fraction(3, 4), {1, 2}), (Fraction(1, 3), {3})])
def test_bandwidth_of_a_port_is_exact(probe, rate, gaps):
    _, times = probe(MemoryTiming(latency=5, beats_per_cycle=rate)).transfer(READ, 0, beats=16, bursts=15)
    offered = times["rvalid"]
    assert set(np.diff(offered)) == gaps
    assert abs((offered[-1] - offered[0]) * rate - (len(offered) - 1)) <= 1


ALL = READ | WRITE | READ_PROGRAM


def moved(times):
    """The cycle of each beat, of all channels together."""
    return sorted(times["rvalid"] + times["program_rvalid"] + times["w"])


def granted(asks, channels, beats, budget):
    """The documented rule: the cycles of each channel's beats. asks(channel, cycle, n): could it move its beat n?"""
    credit, turn, cycle = 16 + budget, 0, 0
    most = credit - Fraction(1, budget.denominator)
    cycles = [[] for _ in range(channels)]
    while sum(map(len, cycles)) < beats:
        credit = min(credit + budget, most)
        order = [(turn + k) % channels for k in range(channels)]
        asking = [channel for channel in order if asks(channel, cycle, len(cycles[channel]))]
        if not asking:
            turn = 0
        for channel in asking:
            if credit < 16:
                break
            credit -= 16
            cycles[channel].append(cycle)
            turn = (channel + 1) % channels
        cycle += 1
    return cycles


def test_ports_share_the_budget_fairly(probe):
    _, times = probe(MemoryTiming(latency=5), shared_bytes_per_cycle=16).transfer(READ | READ_PROGRAM, 0, 16, 6)
    both = moved(times)
    assert np.diff(both).min() >= 1 and both[-1] - both[0] == 191  # 192 beats, one a cycle
    assert abs(times["rvalid"][-1] - times["program_rvalid"][-1]) <= 2


@pytest.mark.parametrize("budget", [45.5, 40, 20, 16.5, 8.25, 3])
def test_all_channels_together_move_the_whole_budget(probe, budget):
    """Reads of two ports and writes of one, all of them asking: no byte of the budget is lost."""
    _, times = probe(MemoryTiming(latency=5), shared_bytes_per_cycle=budget).transfer(ALL, 0, 16, 4)
    every = [times["rvalid"], times["program_rvalid"], times["w"]]
    first, last = max(beats[0] for beats in every), min(beats[-1] for beats in every)
    for begin in range(first, last, 7):
        for end in range(begin + 1, last + 1):
            beats = sum(begin <= cycle < end for cycle in moved(times))
            assert abs(beats - (end - begin) * budget / 16) < 1 + budget / 16, (begin, end)
    counts = [sum(first <= cycle < last for cycle in beats) for beats in every]
    assert max(counts) - min(counts) <= 1, counts


@pytest.mark.parametrize("budget", [16, 45.5])
@pytest.mark.parametrize("what, event", [(READ, "rvalid"), (WRITE, "w")])
def test_one_channel_alone_moves_a_beat_in_every_cycle(probe, budget, what, event):
    _, times = probe(MemoryTiming(latency=5), shared_bytes_per_cycle=budget).transfer(what, 0, 16, 8)
    assert np.diff(times[event]).tolist() == [1] * 127


@pytest.mark.parametrize("what, event", [(READ, "rvalid"), (WRITE, "w")])
def test_reads_and_writes_are_charged_alike(probe, what, event):
    _, times = probe(MemoryTiming(latency=5), shared_bytes_per_cycle=6).transfer(what, 0, 16, 4)
    assert set(np.diff(times[event]).tolist()) == {2, 3} and times[event][-1] - times[event][0] == 168


def test_a_port_that_has_nothing_to_write_is_charged_nothing(probe):
    """The write channel is ready or not: what reads move beside it is the whole budget."""
    driver = probe(MemoryTiming(latency=5), shared_bytes_per_cycle=24)
    _, times = driver.transfer(READ | READ_PROGRAM, 0, 16, 6)
    assert moved(times)[-1] - moved(times)[0] == 127  # 192 beats, three in two cycles


@pytest.mark.parametrize("seed", range(4))
def test_arbitration_is_the_documented_one_and_the_same_in_every_run(probe, seed):
    budget = Fraction(int(np.random.default_rng(seed).integers(30, 190)), 4)
    timing = MemoryTiming(latency=5 + seed)
    driver = probe(timing, shared_bytes_per_cycle=budget)
    runs = []
    for pause in (0, 1, 2, 5):
        driver.simulator.run(pause)
        _, times = driver.transfer(ALL, 0, 4, 8)
        runs.append([times[event] for event in ("program_rvalid", "rvalid", "w")])
    assert all(run == runs[0] for run in runs)
    def asks(channel, cycle, number):  # of program R and W, activations R and W: 8 bursts of 4, announced from cycle 0 on
        if channel == 1 or number == 32:
            return False
        return cycle >= number // 4 + (1 if channel == 3 else timing.latency)

    program, _, reads, writes = granted(asks, 4, 96, budget)
    assert runs[0] == [program, reads, writes]


def test_ports_are_independent_without_a_budget(probe):
    _, times = probe(MemoryTiming(latency=5)).transfer(READ | READ_PROGRAM, 0, 8, 4)
    assert times["rvalid"] == times["program_rvalid"]


def test_random_stalls_repeat_with_their_seed_and_lose_nothing(probe, memory):
    def run(seed):
        driver = probe(MemoryTiming(latency=3, stall=0.4, jitter=9, seed=seed))
        finished, times = driver.transfer(READ | WRITE, 512, beats=4, bursts=8, quirks=["slow"])
        assert finished and len(times["w"]) == 32 and len(times["bvalid"]) == 8
        return times
    assert run(1) == run(1) != run(2)


def test_offered_beats_wait_for_a_slow_reader(probe, memory):
    driver = probe(MemoryTiming(latency=4))
    driver.transfer(READ, 0, beats=8, bursts=2, quirks=["slow"])
    assert driver.simulator.read(0x20) == int(memory[:256].view(np.uint32)[::4].sum(dtype=np.uint32))


def test_few_outstanding_bursts_hold_ready_low(probe):
    _, times = probe(MemoryTiming(latency=10, outstanding=1)).transfer(READ, 0, beats=2, bursts=2)
    assert times["ar"][1] > times["rlast"][0]


@pytest.mark.parametrize("what, event", [(READ, "rerror"), (WRITE, "berror")])
def test_addresses_outside_the_memory_and_faulty_ones_answer_errors(probe, memory, what, event):
    driver = probe()
    before = memory.copy()
    assert driver.transfer(what, 1 << 20, beats=2)[1][event]
    driver.simulator.set_fault(BASE + 32, BASE + 33, "slverr")
    _, times = driver.transfer(what, 0, beats=4)
    assert len(times[event]) == 1
    assert (memory[32:48] == before[32:48]).all()  # the faulty beat is not written
    driver.simulator.clear_faults()
    assert not driver.transfer(what, 0, beats=4)[1][event]


def test_a_stalled_port_answers_nothing_until_released(probe):
    simulator = probe().simulator
    simulator.set_stall("activations", from_cycle=simulator.cycles + 60)
    driver = ProbeDriver(simulator)
    finished, times = driver.transfer(READ, 0, beats=16, bursts=8, max_cycles=3000)
    assert not finished and 0 < len(times["rvalid"]) < 128
    simulator.release_stall()
    assert simulator.run_until_interrupt(300)


@pytest.mark.parametrize("early, lasts", [(False, 2), (True, 4)])
def test_rlast_can_be_wrong(probe, early, lasts):
    driver = probe()
    driver.simulator.set_wrong_last("activations", bursts_from_now=1, early=early)
    _, times = driver.transfer(READ, 0, beats=4, bursts=3)
    assert len(times["rlast"]) == lasts


@pytest.mark.parametrize("what, quirk, sentence", [
    (READ, "size", r"ARSIZE is 3, not 4 \(16 bytes\)"),
    (WRITE, "fixed", r"AWBURST is 0, not 1 \(INCR\)"),
    (READ, "drop", "ARVALID fell before ARREADY"),
    (WRITE, "change", "AWADDR, LEN, SIZE or BURST changed while AWVALID waited"),
    (WRITE, "no_last", "WLAST is 0 with 1 beats of the burst left"),
    (WRITE, "extra_beat", "a W beat beyond all bursts announced on AW"),
])
def test_a_broken_bus_rule_is_raised_with_a_sentence(probe, what, quirk, sentence):
    driver = probe(MemoryTiming(stall={"ar": 0.5, "aw": 0.5} if quirk in ("drop", "change") else 0.0))
    with pytest.raises(ProtocolViolation, match=rf"^activations port, cycle \d+: {sentence}$"):
        driver.transfer(what, 0, beats=4, bursts=8, quirks=[quirk])


def test_a_burst_across_4_kilobytes_is_refused(probe):
    with pytest.raises(ProtocolViolation, match="the burst of 2 beats at ARADDR 0x800000ff0 crosses a 4 KB boundary"):
        probe().transfer(READ, 4080, beats=2)


def test_register_errors_and_silence_are_exceptions(probe):
    simulator = probe().simulator
    with pytest.raises(SimulationError, match="the register read at 0xffc was answered with error response 3"):
        simulator.read(0xFFC)
    with pytest.raises(SimulationError, match="the register write at 0xffc was answered with error response 2"):
        simulator.write(0xFFC, 1)
    with pytest.raises(SimulationError, match="the register read at 0xff8 was not answered in 10000 cycles"):
        simulator.read(0xFF8)


def test_a_register_access_costs_few_cycles(probe):
    simulator = probe().simulator
    before = simulator.cycles
    simulator.write(24, 0xDEADBEEF)
    assert simulator.read(24) == 0xDEADBEEF and simulator.cycles - before <= 6


@pytest.mark.parametrize("values, sentence", [
    ({"latency": 0}, "latency must be at least 1 cycle, not 0"),
    ({"beats_per_cycle": 2}, "beats_per_cycle must be above 0 and at most 1, not 2"),
    ({"stall": {"x": 0.1}}, "stall: no channel named 'x'; known: ar, r, aw, w, b"),
    ({"stall": 1.0}, "stall: the chance on ar must be at least 0 and below 1, not 1.0"),
])
def test_impossible_timings_are_refused(values, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        MemoryTiming(**values)


def test_unknown_ports_and_wrong_arrays_are_refused(library, memory):
    with pytest.raises(ValueError, match="no memory port named 'weight'; known: program, activations"):
        Simulator(library, memory, BASE, {"weight": MemoryTiming()})
    with pytest.raises(TypeError, match="memory must be a contiguous NumPy array of uint8"):
        Simulator(library, memory.view(np.uint16))
