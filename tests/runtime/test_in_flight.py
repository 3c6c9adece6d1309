"""Several runs and programs in flight on one engine: order, errors of their own, cancelling, event loops, the process's end."""

import asyncio
import gc
import os
import re
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError, wait
from pathlib import Path

import numpy as np
import pytest

from esbflow.runtime.engine import Engine
from esbflow.runtime.errors import EngineFault, EngineInUse, EngineTimeout, InputError, ProgramError


def images(n, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 5, 7), dtype=np.uint8)


def right(result, x):
    return (result.outputs == x.astype(int) - 128).all()


class Gate:
    """Holds a run up in its progress callback, until it is opened."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, done):
        self.reached.set()
        assert self.opened.wait(10)


@pytest.fixture
def engine(engine):
    """Afterwards the next submitted run must be right."""
    yield engine
    assert right(engine[0].submit(images(3, 99)).result(10), images(3, 99))


def test_runs_are_done_in_the_order_of_their_submission(engine):
    driver, _ = engine
    gate, order = Gate(), []
    runs = [driver.submit(images(1), gate)]
    assert gate.reached.wait(10)
    for seed in range(5):
        runs.append(driver.submit(images(1 + seed, seed), lambda done, seed=seed: order.append((seed, done))))
    assert not any(run.done() for run in runs)
    gate.opened.set()
    for seed, run in enumerate(runs[1:]):
        assert right(run.result(10), images(1 + seed, seed))
    assert [seed for seed, _ in order] == sorted(seed for seed, _ in order) and order[-1] == (4, 5)


def test_two_programs_are_loaded_side_by_side(engine, fake, make_program):
    driver, transport = engine
    other, program = driver.another(), make_program(batch=1, name="small")
    other.load(program)

    for _ in range(3):
        transport.meta = program.meta  # the stand-in computes what it is told
        assert right(other.submit(images(2, 5)).result(10), images(2, 5))
        transport.meta = driver._loaded.meta
        assert right(driver.submit(images(3, 6)).result(10), images(3, 6))
    other.unload()
    with pytest.raises(ProgramError, match="no program is loaded"):
        other.submit(images(1))


def test_an_error_belongs_to_its_run(engine):
    driver, transport = engine
    good = driver.submit(images(2, 1))
    wrong = driver.submit(images(2).astype(np.int16))
    late = driver.submit(images(2), deadline_cycles=1)
    last = driver.submit(images(2, 2))
    with pytest.raises(InputError, match="images must be uint8, not int16"):
        wrong.result(10)
    with pytest.raises(EngineTimeout, match="with a deadline of 1"):
        late.result(10)
    assert right(good.result(10), images(2, 1)) and right(last.result(10), images(2, 2))
    transport.fault = (1, 1, 0, 0x40)
    broken = driver.submit(images(1))
    assert isinstance(broken.exception(10), EngineFault)
    transport.fault = None


def test_a_cancelled_run_is_not_begun_and_one_under_way_is_finished(engine):
    driver, transport = engine
    gate = Gate()
    under_way = driver.submit(images(1), gate)
    waiting, last = driver.submit(images(2)), driver.submit(images(2, 3))
    assert gate.reached.wait(10)
    starts = transport.starts
    assert waiting.cancel() and not under_way.cancel()
    gate.opened.set()
    assert right(under_way.result(10), images(1)) and right(last.result(10), images(2, 3)) and transport.starts == starts + 1
    with pytest.raises(CancelledError):
        waiting.result()


def test_abort_stops_the_run_under_way_of_any_driver_and_no_other(engine, make_program):
    """Between two batches, where the engine itself has nothing to abort."""
    driver, transport = engine
    other = driver.another()
    other.load(make_program())
    gate = Gate()
    under_way, waiting = other.submit(images(4), gate), driver.submit(images(2, 6))
    assert gate.reached.wait(10) and not transport.busy
    driver.abort()
    gate.opened.set()
    with pytest.raises(EngineFault, match=r"aborted|host"):
        under_way.result(10)
    assert under_way.exception().code == "aborted" and right(waiting.result(10), images(2, 6))


def test_a_run_of_a_program_that_is_gone_is_an_error_of_that_run(engine, make_program):
    driver, _ = engine
    gate = Gate()
    first = driver.submit(images(1), gate)
    assert gate.reached.wait(10)
    second = driver.submit(images(1))
    loading = threading.Thread(target=driver.load, args=(make_program(),))  # waits for its turn, as the second run does
    loading.start()
    gate.opened.set()
    loading.join(10)
    assert right(first.result(10), images(1))
    try:
        assert right(second.result(10), images(1))
    except ProgramError as error:
        assert str(error) == "program copy was unloaded before this run of it began"
    gate = Gate()
    held = driver.submit(images(1), gate)
    assert gate.reached.wait(10)
    late = driver.submit(images(1))
    driver._program, program = None, driver._program  # as after unload()
    gate.opened.set()
    with pytest.raises(ProgramError, match="program copy was unloaded before this run of it began"):
        late.result(10)
    driver._program = program
    held.result(10)


def test_a_callback_that_waits_for_a_run_is_refused(engine):
    driver, _ = engine
    said = []

    def progress(done):
        later = driver.submit(images(1, 4))
        said.append(later)
        later.result()

    with pytest.raises(EngineInUse, match="a callback of a run cannot wait for another run"):
        driver.submit(images(1), progress).result(10)
    assert right(said[0].result(10), images(1, 4))
    with pytest.raises(EngineInUse, match="a progress callback cannot load, unload or run"):
        driver.submit(images(1), lambda done: driver.run(images(1))).result(10)


def test_submitting_from_many_threads(engine):
    driver, _ = engine
    results = {}

    def work(seed):
        results[seed] = [driver.submit(images(2, seed)), driver.submit(images(3, seed + 50))]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait([run for runs in results.values() for run in runs], 30)
    for seed, (one, other) in results.items():
        assert right(one.result(0), images(2, seed)) and right(other.result(0), images(3, seed + 50))


# -- coroutines ---------------------------------------------------------------------------------------------------------
def test_coroutines_go_on_while_the_engine_runs(engine):
    driver, _ = engine
    gate, ticks = Gate(), []

    async def clock():
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)
        for i in range(5):
            ticks.append(i)
            await asyncio.sleep(0)
        gate.opened.set()

    async def main():
        return await asyncio.gather(driver.run_async(images(1), gate), driver.run_async(images(4, 2)), clock())

    first, second, _ = asyncio.run(main())
    assert right(first, images(1)) and right(second, images(4, 2)) and len(ticks) == 5


def test_a_cancelled_coroutine_leaves_the_engine_working(engine):
    driver, transport = engine
    gate = Gate()

    async def main():
        under_way = asyncio.ensure_future(driver.run_async(images(1), gate))
        waiting = asyncio.ensure_future(driver.run_async(images(2)))
        while not gate.reached.is_set():
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, 0.01)
        under_way.cancel()
        with pytest.raises(asyncio.CancelledError):
            await under_way
        gate.opened.set()
        return await driver.run_async(images(3, 8))

    assert right(asyncio.run(main()), images(3, 8)) and transport.starts == 1 + 2  # one batch, nothing, two batches


def test_errors_reach_the_coroutine(engine):
    driver, _ = engine
    with pytest.raises(InputError, match="there are no images to run"):
        asyncio.run(driver.run_async(images(0)))
    with pytest.raises(EngineTimeout):
        asyncio.run(driver.run_async(images(2), deadline_cycles=1))


# -- processes ----------------------------------------------------------------------------------------------------------
def test_a_forked_process_is_refused(engine):
    driver, _ = engine
    driver.submit(images(1)).result(10)
    process = os.fork()
    if not process:
        try:
            driver.submit(images(1))
        except EngineInUse:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7


def test_the_queue_s_thread_ends_with_its_driver(fake, make_program):
    transport, program = fake(), make_program()
    transport.meta = program.meta
    driver, before = Engine(transport), set(threading.enumerate())
    driver.load(program)
    driver.submit(images(1)).result(10)
    thread, = set(threading.enumerate()) - before
    gone = weakref.ref(driver)
    del driver
    gc.collect()
    thread.join(10)
    assert gone() is None and not thread.is_alive()


PROGRAM = """
import sys, threading, time
from esbflow.runtime.in_flight import _queue_of
from esbflow.runtime.turn import Turn
turn = Turn()
begun = threading.Event()
def work():
    begun.set()
    time.sleep(0.3)
    print("finished", flush=True)
runs = [_queue_of(turn).submit(work) for _ in range(3)]
begun.wait()
"""


def test_at_the_process_s_end_the_run_under_way_is_finished_and_no_other_begun():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=20)
    assert (result.returncode, result.stdout, result.stderr) == (0, "finished\n", "")


def test_the_page_s_snippet_runs(engine, make_program, tmp_path, monkeypatch):
    """With one program for both, as the stand-in knows one at a time."""
    driver, _ = engine
    page = (Path(__file__).parents[2] / "docs" / "driver.md").read_text()
    snippet = re.search(r"## Several runs and programs in flight\n\n```python\n(.*?)```", page, re.DOTALL)[1]
    another = driver.another()
    monkeypatch.setattr(another, "load", lambda path, load=another.load: load(make_program()))
    monkeypatch.setattr(driver, "another", lambda: another)
    given = {"engine": driver, "images": images(2, 1), "more": images(3, 2)}
    exec(compile(snippet, "driver.md", "exec"), given)
    assert right(given["run"].result(0), images(2, 1)) and right(given["later"].result(0), images(3, 2))
