"""The PYNQ driver on the simulated board, used as it should not be: right outputs or a named error, then right outputs."""

import asyncio
import os
import signal
import threading
import time

import numpy as np
import pytest

pynq = pytest.importorskip("pynq")

from esbflow.engines import ENGINES
from esbflow.registers import REGISTERS, vlnv
from esbflow.runtime import pynq_driver
from esbflow.runtime.errors import EngineInUse, EngineReplaced
from esbsim.ddr import FREED, UseAfterFree


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A shell that starts tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run_until_ctrl_c(run, images, seconds: float = 60.0):
    """Runs again and again, until the interrupt comes; not for ever if it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run(np.tile(images, (100, 1, 1, 1)))


@pytest.fixture
def engine(overlay, network):
    """The driver with the network loaded; afterwards the next run must be right."""
    driver = overlay.esb_engine_0
    driver.load(network[0])
    yield driver
    assert right(driver, network)


def right(driver, network):
    _, images, expected = network
    return (driver.run(images).outputs == expected).all()


def waits(driver, network) -> int:
    """How often the driver waits for the interrupt in a run of three batches."""
    transport, count = driver.engine._transport, []
    wait = transport.wait_for_interrupt
    transport.wait_for_interrupt = lambda seconds: count.append(1) or wait(seconds)
    try:
        assert right(driver, network)
    finally:
        del transport.wait_for_interrupt
    return len(count)


def other_design(bit, folder):
    """An overlay with another core where the engine was."""
    other = folder / "other.bit"
    other.write_bytes(bit.read_bytes())
    text = bit.with_suffix(".hwh").read_text()
    other.with_suffix(".hwh").write_text(text.replace(vlnv(ENGINES["tiny4x4"]), "example.org:user:other:1.0").replace("esb_engine_0", "other_0"))
    return other


# -- Ctrl-C -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.25, 0.4])
def test_ctrl_c_leaves_no_task_and_the_interrupt_still_wakes_the_driver(engine, network, seconds):
    _program, images, _ = network
    normal = waits(engine, network)
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_until_ctrl_c(engine.run, images)
    timer.join()
    assert not asyncio.all_tasks(asyncio.get_event_loop_policy().get_event_loop())
    assert waits(engine, network) <= 2 * normal + 3, "a lost interrupt costs 0.1 s each time"
    assert engine.engine.status()["quiescent"]


def test_memory_freed_after_ctrl_c_is_written_by_nobody(overlay, board, network):
    program, images, _ = network
    driver = overlay.esb_engine_0
    driver.load(program)
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_until_ctrl_c(driver.run, images)
    driver.unload()
    board.simulator.run(20_000)
    everything = pynq.allocate((board.ddr.free_bytes // 64,), np.uint8)  # first fit: where the program was
    everything.freebuffer()


# -- threads ------------------------------------------------------------------------------------------------------------
def test_two_threads_get_their_own_outputs(engine, network):
    _, images, expected = network
    failures = []

    def several(order):
        for _ in range(3):
            try:
                if not (engine.run(images[order]).outputs == expected[order]).all():
                    failures.append("another thread's outputs")
            except Exception as error:
                failures.append(error)
    threads = [threading.Thread(target=several, args=(order,)) for order in ([0, 1, 2, 3, 4], [4, 2, 0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_driver_made_in_a_thread_works_there_and_elsewhere(bit, board, network):
    drivers = []

    def make():
        driver = pynq.Overlay(str(bit)).esb_engine_0
        driver.load(network[0])
        assert right(driver, network)
        drivers.append(driver)
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert right(drivers[0], network)


# -- event loops --------------------------------------------------------------------------------------------------------
def test_event_loops_may_come_and_go(engine, network):
    async def cell():
        return right(engine, network)

    assert asyncio.run(cell()) and right(engine, network)
    engine.engine._transport._line._loop.close()
    assert right(engine, network) and asyncio.run(cell())


def test_interrupts_that_never_arrive_end_in_polling(engine, network, board, monkeypatch):
    from pynq.interrupt import _InterruptController

    for device in _InterruptController._uio_devices.values():
        monkeypatch.setattr(device, "add_event", lambda event, number: None)
    monkeypatch.setattr(board, "access_cycles", 2000)  # time passes only with register accesses then
    assert right(engine, network) and waits(engine, network) < 100


# -- overlays -----------------------------------------------------------------------------------------------------------
def test_the_same_driver_works_after_a_download(engine, overlay, network):
    assert right(engine, network)
    overlay.download()
    assert right(engine, network)
    overlay.free()
    assert right(engine, network)


def test_two_overlays_of_one_engine_take_turns(engine, bit, network):
    second = pynq.Overlay(str(bit)).esb_engine_0
    assert second is not engine
    second.load(network[0])
    for _ in range(2):
        assert right(engine, network) and right(second, network)

    def progress(done):
        with pytest.raises(EngineInUse):
            second.run(network[1])
    assert (engine.run(network[1], progress).outputs == network[2]).all()


def test_another_design_in_the_engine_s_place_is_named(engine, overlay, bit, tmp_path, network):
    pynq.Overlay(str(other_design(bit, tmp_path)))
    sentence = r"^another overlay is loaded now \(.*other.bit\), and it has no engine esb_engine_0 at 0xa0000000; load the"
    for call in (lambda: engine.run(network[1]), lambda: engine.load(network[0]), engine.counters, engine.abort, engine.recover):
        with pytest.raises(EngineReplaced, match=sentence):
            call()
    engine.unload()  # the memory of an engine that is gone
    pynq.Overlay(str(bit))
    engine.load(network[0])


def test_a_download_during_a_run_is_named(engine, overlay, network):
    program, images, _ = network

    timers = []

    def progress(done):
        if done == program.meta["batch"]:
            timers.append(threading.Timer(0.05, overlay.download))
            timers[-1].start()
    with pytest.raises(EngineReplaced, match=r"the engine was reset during the run, or its overlay was loaded again; run again$"):
        while True:  # a download between two batches does no harm
            engine.run(np.tile(images, (20, 1, 1, 1)), progress)
    for timer in timers:
        timer.join()


def test_registers_that_someone_wrote_are_written_again(engine, network):
    for name in ("INPUT_LO", "OUTPUT_HI", "WEIGHTS_BYTES", "PROGRAM_LENGTH", "WATCHDOG", "IRQ_ENABLE", "SCRATCH"):
        engine.write(REGISTERS[name].offset, 3)
    assert right(engine, network)


# -- the board's memory -------------------------------------------------------------------------------------------------
def test_a_freed_buffer_is_poisoned_and_cannot_be_used(overlay, board):
    buffer = pynq.allocate((5000,), np.uint8)
    buffer[:] = 1
    buffer.flush()
    offset = buffer.device_address - board.ddr.base
    buffer.freebuffer()
    assert (buffer == FREED).all() and (board.ddr.memory[offset:offset + 5000] == FREED).all()
    again = pynq.allocate((5000,), np.uint8)
    assert again.device_address == buffer.device_address
    for call in (buffer.flush, buffer.invalidate):
        with pytest.raises(UseAfterFree, match=f"^the buffer at bus address 0x{buffer.device_address:x} was freed"):
            call()


def test_a_write_to_freed_memory_is_found_when_it_is_allocated_again(overlay, board):
    buffer = pynq.allocate((5000,), np.uint8)
    address = buffer.device_address
    buffer.freebuffer()
    board.ddr.memory[address - board.ddr.base + 4097] = 5
    with pytest.raises(UseAfterFree, match=f"^bus address 0x{address + 4097:x} was written after it was freed$"):
        pynq.allocate((5000,), np.uint8)


assert pynq_driver  # imported so that PYNQ binds it
