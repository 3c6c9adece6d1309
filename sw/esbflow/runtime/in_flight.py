"""Several runs in flight: they wait in one queue for their engine, and each has its own result or error.

    first, second = engine.submit(images), other.submit(more)      # two drivers of one engine: two programs
    outputs = (await engine.run_async(images)).outputs             # in a coroutine, whose event loop goes on

A thread of the queue's own does the runs in the order in which they were submitted, whichever driver of the engine they came
from. It belongs to the engine's Turn, and ends with it.
"""

import asyncio
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from esbflow.runtime.errors import EngineInUse
from esbflow.runtime.turn import Turn


class Run(Future):
    """A submitted run: a concurrent.futures.Future of its Result.

    `result` and `exception` raise EngineInUse where they would wait for ever: in the thread that does the runs, which is
    where progress and done callbacks are called.
    """

    def __init__(self, work: Callable[[], Any], worker: threading.Thread):
        super().__init__()
        self._work: Callable[[], Any] | None = work
        self._worker = worker

    def result(self, timeout: float | None = None):
        """As of any future; raises EngineInUse where waiting would never end."""
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None):
        """As of any future; raises EngineInUse where waiting would never end."""
        self._check()
        return super().exception(timeout)

    def _check(self) -> None:
        if threading.current_thread() is self._worker and not self.done():
            raise EngineInUse("a callback of a run cannot wait for another run, which begins only after it")

    def perform(self) -> None:
        """Do it, unless it was cancelled; for the queue's thread."""
        work, self._work = self._work, None  # images and program go once they are not needed
        if work is None or not self.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)


class _Queue:
    """The runs that wait for one engine, and the thread that does them."""

    def __init__(self):
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=_perform_all, args=(self._waiting,), name="esbflow runs", daemon=True)
        self._thread.start()
        # At the end of the process too: a run that is under way is finished, and the others are cancelled.
        self._end = weakref.finalize(self, _end, self._waiting, self._thread)

    def submit(self, work) -> Run:
        run = Run(work, self._thread)
        self._waiting.put(run)
        return run


def _perform_all(waiting) -> None:
    while True:
        run = waiting.get()
        if run is None:
            return
        run.perform()
        del run  # it keeps its driver, and so the queue


def _end(waiting, thread) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait().cancel()
    waiting.put(None)
    if thread is not threading.current_thread():
        thread.join()


_QUEUES: weakref.WeakKeyDictionary[Turn, _Queue] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def _queue_of(turn: Turn) -> _Queue:
    turn.check_process()  # a forked process has the queue and no thread that serves it
    with _MAKING:
        if turn not in _QUEUES:
            _QUEUES[turn] = _Queue()
        return _QUEUES[turn]


class Submits:
    """What a driver does with runs that it need not wait for; it has `_turn`, and `_run_of(program, ...)`."""

    _turn: Turn

    def submit(self, images, progress=None, deadline_cycles: int | None = None) -> Run:
        """Queue a run, with the program that is loaded now, and return at once. The parameters are those of `run`.

        Images are not copied: leave them as they are until the run is done. `cancel` takes a run out of the queue; one
        that has begun goes on to its end. An error belongs to its run alone, and the next one begins.

        Returns
        -------
        Run
            a concurrent.futures.Future: `result(timeout)` gives what `run` would return, or raises what it would raise.

        Raises
        ------
        ProgramError
            if no program is loaded; from the run, also if it is no longer loaded then.
        EngineInUse
            in a forked process.
        """
        turn, program = self._turn, self._loaded
        return _queue_of(turn).submit(lambda: self._run_of(program, images, progress, deadline_cycles))

    async def run_async(self, images, progress=None, deadline_cycles: int | None = None):
        """`run` in a coroutine: other coroutines go on meanwhile. `progress` is called in another thread.

        A coroutine that is cancelled no longer waits; its run is taken out of the queue, or goes on to its end if it has
        begun. The engine works on. Raises as `run` does.
        """
        return await asyncio.wrap_future(self.submit(images, progress, deadline_cycles))

    @property
    def _loaded(self):
        raise NotImplementedError

    def _run_of(self, program, images, progress, deadline_cycles):
        raise NotImplementedError
