"""The driver's core against a register-level stand-in: runs, padding, and everything that can go wrong."""

import re

import numpy as np
import pytest

from esbflow.engine_config import INTERFACE_VERSION
from esbflow.registers import COUNTERS
from esbflow.runtime import engine as engine_module
from esbflow.runtime.engine import Engine
from esbflow.runtime.errors import (
    EngineBusy,
    EngineError,
    EngineFault,
    EngineMissing,
    EngineTimeout,
    InputError,
    ProgramError,
)


def images(n, shape=(3, 5, 7), seed=1):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(engine_module, "STILL_SECONDS", 0.05)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_any_number_of_images_comes_back_in_order(engine, n):
    driver, transport = engine
    x, done = images(n), []
    result = driver.run(x, progress=done.append)
    assert (result.outputs == x.astype(int) - 128).all() and result.outputs.shape == x.shape
    assert result.runs == transport.starts == -(-n // 2) and result.cycles == 500 * transport.starts
    assert done[-1] == n and len(done) == result.runs and result.scale == 0.5


def test_the_host_makes_the_next_batch_ready_while_the_engine_works(engine, monkeypatch):
    driver, transport = engine
    busy, folded = [], engine_module.folded_input
    monkeypatch.setattr(engine_module, "folded_input", lambda *given: busy.append(transport.busy) or folded(*given))
    assert (driver.run(images(5)).outputs == images(5).astype(int) - 128).all()
    assert busy == [False, True, True]


def test_layer_counters_are_differences_of_records(engine):
    result = engine[0].run(images(4))
    assert [[layer["name"] for layer in run] for run in result.layers] == [["first", "second"]] * 2
    for run in result.layers:
        for layer in run:
            assert [layer[name] for name, _ in COUNTERS] == [10 * (i + 1) for i in range(len(COUNTERS))]


def test_counters_that_wrap_still_give_differences(engine):
    driver, transport = engine
    compute = transport._compute

    def wrapping():
        compute()
        log = transport._region("LOG").view("<u4").reshape(-1, 16)
        log[:, 0] = 0xFFFFFFF0, 5
    transport._compute = wrapping
    assert driver.run(images(1)).layers[0][1]["cycles"] == 21


@pytest.mark.parametrize("bad, sentence", [
    (images(2).astype(np.float32), "images must be uint8, not float32; the program's table does the normalisation"),
    (images(2)[0], r"images must have shape \(n, 3, 5, 7\), not \(3, 5, 7\)"),
    (images(2, (3, 7, 5)), r"images must have shape \(n, 3, 5, 7\), not \(2, 3, 7, 5\)"),
    (images(0), "there are no images to run: the batch is empty"),
])
def test_wrong_images_are_refused_with_a_sentence(engine, bad, sentence):
    with pytest.raises(InputError, match=f"^{sentence}$"):
        engine[0].run(bad)
    assert engine[1].starts == 0


def test_running_without_a_program_is_refused(fake):
    with pytest.raises(ProgramError, match=r"^no program is loaded; call load\(\) first$"):
        Engine(fake()).run(images(1))


@pytest.mark.parametrize("register, sentence", [
    ("ID", "expected 0x45534246 in the ID register, found 0x00000007: this is no engine, or its overlay is not loaded"),
    ("VERSION", f"the engine has interface version 7 and this driver speaks {INTERFACE_VERSION}; install the matching esbflow"),
])
def test_other_hardware_is_refused(fake, register, sentence):
    transport = fake()
    transport.values[register] = 7
    with pytest.raises(EngineMissing, match=f"^{sentence}$"):
        Engine(transport)


def test_a_program_for_another_engine_is_refused(fake, make_program):
    transport = fake()
    transport.values["HASH_HI"] ^= 1
    with pytest.raises(ProgramError, match=r"^program copy was compiled for engine small8x16 .*8x16.*; compile it for this"):
        Engine(transport).load(make_program())


@pytest.mark.parametrize("fault, sentence", [
    ((1, 3, 1, 0x8_1234_5670), r"layer 1 \(second\), unit weights: a read was answered .* at bus address 0x812345670"),
    ((8, 0, 0, 0), r"layer 0 \(first\), unit none: nothing moved for as many cycles"),
    ((77, 9, 9, 0), r"layer 9 \(no such layer\), unit unit 9: an unknown error"),
])
def test_hardware_errors_name_layer_unit_and_cause_and_the_next_run_works(engine, fault, sentence):
    driver, transport = engine
    transport.fault = fault
    with pytest.raises(EngineFault, match=f"^the engine stopped in {sentence}"):
        driver.run(images(2))
    transport.fault, transport.quiet_after = None, 5
    assert driver.run(images(2)).outputs.shape == (2, 3, 5, 7)


def test_the_deadline_counts_engine_cycles_and_the_next_run_works(engine):
    driver, transport = engine
    transport.duration = 50_000

    def stopped(deadline):
        wanted = rf"not done after (\d+) cycles, with a deadline of {deadline}, and was stopped in layer first"
        with pytest.raises(EngineTimeout, match=wanted) as caught:
            driver.run(images(1), deadline_cycles=deadline)
        return int(re.search(wanted, str(caught.value))[1])

    seen = stopped(20_000)
    assert 20_000 < seen < 22_000, "a look at the counter takes about 1,000 cycles of the stand-in"
    assert stopped(seen) > seen, "as many cycles as the deadline are not too many"
    assert driver.run(images(1), deadline_cycles=60_000).cycles == 50_000


def test_a_dead_clock_is_noticed_by_wall_time(engine):
    driver, transport = engine
    transport.clock = False
    with pytest.raises(EngineTimeout, match=r"the engine's cycle counter has stood at 0 for 0.05 s while it is busy"):
        driver.run(images(1))


def test_an_ignored_start_is_an_error_and_no_hang(engine):
    driver, transport = engine
    transport.deaf = True
    with pytest.raises(EngineTimeout, match="while it is idle: its clock has stopped, or the overlay was replaced"):
        driver.run(images(1))


def test_memory_that_never_answers_is_an_error_until_it_does(engine):
    driver, transport = engine
    transport.quiet_after = 10**9
    with pytest.raises(EngineBusy, match=r"waiting for memory to answer after 0.01 s; .* or load the overlay again$"):
        driver.recover(seconds=0.01)
    transport.quiet_after = 0
    assert driver.run(images(1)).cycles == 500


def test_a_run_left_behind_is_stopped_before_the_next(engine, monkeypatch):
    driver, transport = engine

    def interrupted(seconds):
        raise KeyboardInterrupt
    transport.duration = 10**7
    monkeypatch.setattr(transport, "wait_for_interrupt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver.run(images(1))
    monkeypatch.undo()
    transport.duration = 500
    assert driver.run(images(1)).cycles == 500 and transport.starts == 2


def test_addresses_above_4_gigabytes_use_both_registers(fake, make_program):
    transport = fake()
    original, buffers = transport.allocate, []

    def allocate(size):
        buffer = original(size)
        buffer.flush = lambda: None
        buffer.address += 0x8_4000_0000
        buffers.append(buffer)
        return buffer
    transport.allocate = allocate
    driver, transport.duration, transport.deaf = Engine(transport), 1, True
    driver.load(make_program())
    with pytest.raises(EngineTimeout):
        driver.run(images(1))  # the registers are written at each start
    assert transport.values["PROGRAM_HI"] == 8 and transport.values["PROGRAM_LO"] == buffers[0].address & 0xFFFFFFFF
    assert transport.values["WORKSPACE_BYTES"] == 0 and transport.values["WEIGHTS_BYTES"] == 112


def test_a_failed_load_gives_its_memory_back(fake, make_program):
    transport = fake()
    original, calls = transport.allocate, []

    def allocate(size):
        calls.append(size)
        if len(calls) == 4:
            raise EngineError("out of memory")
        return original(size)
    transport.allocate = allocate
    with pytest.raises(EngineError, match="out of memory"):
        Engine(transport).load(make_program())
    assert transport.freed == 3


def test_loading_again_frees_the_old_program(engine, make_program):
    driver, transport = engine
    driver.load(make_program())
    assert transport.freed == 6
    driver.unload()
    assert transport.freed == 12
