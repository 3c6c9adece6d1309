"""What users do to a driver that they should not: each call gives right outputs or a named error, and the next run works."""

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from esbflow import runtime
from esbflow.registers import REGISTERS
from esbflow.runtime import engine as engine_module
from esbflow.runtime.engine import Engine
from esbflow.runtime.errors import (
    EngineFault,
    EngineInUse,
    EngineMissing,
    EngineReplaced,
    EngineTimeout,
    NoMemory,
    ProgramError,
)

HERE = str(Path(runtime.__file__).parent)


def images(n, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 5, 7), dtype=np.uint8)


def right(driver, n=3, seed=1):
    x = images(n, seed)
    return (driver.run(x).outputs == x.astype(int) - 128).all()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(engine_module, "STILL_SECONDS", 0.05)


@pytest.fixture
def engine(engine):
    """Afterwards the next run must be right."""
    yield engine
    assert right(engine[0], seed=99)


def in_threads(*functions):
    """Runs them side by side; raises what any of them raised."""
    raised = []

    def caught(function):
        try:
            function()
        except BaseException as error:  # handed to the test's own thread
            raised.append(error)
    threads = [threading.Thread(target=caught, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


# -- threads and callbacks ----------------------------------------------------------------------------------------------
def test_threads_get_their_own_outputs(engine, monkeypatch):
    driver, transport = engine
    wait = transport.wait_for_interrupt

    def slowly(seconds):
        time.sleep(0.001)  # lets another thread in
        return wait(seconds)
    monkeypatch.setattr(transport, "wait_for_interrupt", slowly)

    def several(seed):
        for i in range(5):
            assert right(driver, 5, 10 * seed + i)
    in_threads(*(lambda seed=seed: several(seed) for seed in range(4)))


def test_a_load_waits_for_the_run_of_another_thread(engine, make_program, monkeypatch):
    driver, transport = engine
    wait, loading, program = transport.wait_for_interrupt, threading.Event(), make_program()

    def load():
        assert loading.wait(30)
        driver.load(program)

    def slowly(seconds):
        loading.set()
        time.sleep(0.01)
        assert transport.freed == 0, "memory was freed under a run"
        return wait(seconds)

    def run():
        monkeypatch.setattr(transport, "wait_for_interrupt", slowly)
        assert right(driver, 4)
        monkeypatch.undo()
        engine_module.STILL_SECONDS = 0.05
    in_threads(run, load)
    assert transport.freed == 6


@pytest.mark.parametrize("call", ["run", "load", "unload", "recover"])
def test_a_progress_callback_cannot_use_the_engine(engine, make_program, call):
    driver, _ = engine
    arguments = {"run": [images(1)], "load": [make_program()], "unload": [], "recover": []}[call]
    x, refused = images(4), []

    def progress(done):
        with pytest.raises(EngineInUse, match=r"^this thread's run is still under way; a progress callback cannot load"):
            getattr(driver, call)(*arguments)
        refused.append(done)
    assert (driver.run(x, progress).outputs == x.astype(int) - 128).all() and refused == [2, 4]


def test_an_exception_of_a_callback_passes_through(engine):
    def progress(done):
        raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        engine[0].run(images(4), progress)
    assert not engine[1].busy


@pytest.mark.parametrize("between_batches", [False, True])
def test_an_abort_stops_the_whole_run(engine, between_batches):
    driver, transport = engine
    transport.duration = 3000
    wait, waits = transport.wait_for_interrupt, []

    def waiting(seconds):
        waits.append(1)
        if len(waits) == 2 and not between_batches:
            driver.abort()
        return wait(seconds)
    transport.wait_for_interrupt = waiting
    with pytest.raises(EngineFault, match="the host asked to stop") as caught:
        driver.run(images(8), (lambda done: driver.abort()) if between_batches else None)
    assert caught.value.code == "aborted" and transport.starts == (2 if between_batches else 1)
    del transport.wait_for_interrupt
    transport.fault = None


# -- Ctrl-C at any point ------------------------------------------------------------------------------------------------
def interrupted_at(line, function):
    """Calls it with a KeyboardInterrupt before the driver's `line`-th line; False if it was done before."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line":
            count += 1
            if count == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_at_any_line_of_a_run_leaves_the_next_one_right(engine):
    driver, transport = engine
    transport.duration, line = 3000, 0
    while interrupted_at(line := line + 1, lambda: driver.run(images(3))):
        assert right(driver, 3, line), line
        assert transport.allocated - transport.freed == 6
    assert line > 200


def test_ctrl_c_at_any_line_of_a_load_leaves_no_memory_behind(engine, make_program):
    driver, transport = engine
    program, line = make_program(batch=3), 0
    transport.meta = program.meta
    while interrupted_at(line := line + 1, lambda: driver.load(program)):
        driver.load(program)
        assert right(driver, 4, line), line
        transport.next_address = 0x1000 if transport.next_address > 0x80000 else transport.next_address
        # Ctrl-C between an allocation and its name: Python frees what has no name.
        assert transport.allocated - transport.freed - 6 <= line
    assert line > 100


# -- registers, resets, other engines -----------------------------------------------------------------------------------
def test_registers_that_someone_wrote_are_written_again(engine):
    driver, transport = engine
    for name, register in REGISTERS.items():
        if register.access == "read-write" and name != "CONTROL":
            transport.values[name] = 0xDEAD0
    assert right(driver)


def reset(transport):
    transport.busy = transport.done = transport.error = False
    for name, register in REGISTERS.items():
        if register.access == "read-write" or name.startswith("COUNT_"):
            transport.values[name] = 0


def at_the_first_wait(transport, action):
    wait = transport.wait_for_interrupt

    def waiting(seconds):
        transport.wait_for_interrupt = wait
        action()
        return wait(seconds)
    transport.wait_for_interrupt = waiting


def test_a_reset_during_a_run_is_named_at_once(engine):
    driver, transport = engine
    transport.duration = 10**6
    at_the_first_wait(transport, lambda: reset(transport))
    began = time.monotonic()
    with pytest.raises(EngineReplaced, match=r"^the engine was reset during the run, or its overlay was loaded again; run again$"):
        driver.run(images(1))
    assert time.monotonic() - began < 5
    transport.duration = 500


def test_a_reset_between_runs_changes_nothing(engine):
    reset(engine[1])
    assert right(engine[0])


def test_another_program_s_run_is_noticed(engine):
    driver, transport = engine
    other = Engine(transport)
    other.load(type("Program", (), {"meta": transport.meta, "instructions": np.ones((3, 4), np.uint64),
                                    "weights": np.zeros(100, np.uint8), "table": np.zeros((3, 256), np.int64)}))
    transport.duration = 1500
    at_the_first_wait(transport, lambda: other.run(images(2, 5)))
    with pytest.raises(EngineInUse, match=r"^another program started the engine during the run, or wrote its SCRATCH"):
        driver.run(images(2))
    assert right(driver) and other.run(images(2)).outputs.shape == (2, 3, 5, 7)


def test_an_engine_of_another_size_is_named(engine):
    driver, transport = engine
    transport.values["HASH_LO"] ^= 1
    with pytest.raises(EngineReplaced, match=r"^the engine is now another one .* than program copy was loaded for .*; load that"):
        driver.run(images(1))
    transport.values["HASH_LO"] ^= 1


def test_registers_of_another_core_are_named(engine):
    driver, transport = engine
    identity, transport.values["ID"] = transport.values["ID"], 5
    with pytest.raises(EngineMissing, match="this is no engine, or its overlay is not loaded"):
        driver.run(images(1))
    transport.values["ID"] = identity


# -- memory and processes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error", [RuntimeError("Allocate failed"), MemoryError("full"), OSError("no CMA")])
def test_too_little_memory_is_named_and_given_back(engine, make_program, error):
    driver, transport = engine
    allocate, program = transport.allocate, make_program()

    def failing(size):
        if transport.allocated == 8:
            raise error
        return allocate(size)
    transport.allocate = failing
    with pytest.raises(NoMemory, match=rf"^there are no \d+ bytes of contiguous memory for the \w+ region \({error}\); free what"):
        driver.load(program)
    assert transport.freed == transport.allocated
    with pytest.raises(ProgramError, match="no program is loaded"):
        driver.run(images(1))
    transport.allocate = allocate
    driver.load(program)


def test_unloaded_memory_is_not_used_again(engine, make_program):
    driver, _ = engine
    driver.unload()
    driver.unload()
    with pytest.raises(ProgramError, match=r"^no program is loaded; call load\(\) first$"):
        driver.run(images(1))
    driver.load(make_program())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("call", ["run", "load", "unload", "recover", "abort"])
def test_a_forked_process_is_refused(engine, make_program, call):
    driver, _transport = engine
    arguments = {"run": [images(1)], "load": [make_program()]}.get(call, [])
    child = os.fork()
    if child == 0:  # no assertion, no pytest: only an exit status
        status = 1
        try:
            getattr(driver, call)(*arguments)
        except EngineInUse as error:
            status = 0 if "this driver belongs to process" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- the cycle counter --------------------------------------------------------------------------------------------------
def wide_counter(transport, factor):
    """Each cycle of the stand-in is `factor` cycles of the 32-bit counter, which wraps."""
    read, offset = transport.read, REGISTERS["COUNT_CYCLES"].offset

    def scaled(address):
        value = read(address)
        return (value * factor) & 0xFFFFFFFF if address == offset else value
    transport.read = scaled


def test_a_deadline_beyond_the_counter_s_32_bits_is_kept(engine):
    driver, transport = engine
    transport.duration = 10**6
    wide_counter(transport, 1 << 20)
    with pytest.raises(EngineTimeout, match=f"with a deadline of {3 << 32}, and was stopped") as caught:
        driver.run(images(1), deadline_cycles=3 << 32)
    elapsed = int(str(caught.value).split(" after ")[1].split()[0])
    assert 3 << 32 < elapsed < 4 << 32
    transport.duration, transport.fault = 10_000, None
    assert driver.run(images(1), deadline_cycles=3 << 32).cycles == 10_000 << 20, "the result counts on, too"
    del transport.read
