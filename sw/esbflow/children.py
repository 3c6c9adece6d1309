"""Child processes that end with what started them: neither Ctrl-C, nor `kill`, nor a closed terminal leaves one behind.

Tools start processes of their own (Vivado its runs, a compiler its passes), and a signal to one process reaches no other. So
each child gets a session of its own, and all that is in it is ended when the wait for it ends early.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

GRACE_SECONDS = 2.0
"""From the request to end until the end by force."""
SIGNALS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
"""What ends this process, and what handles it if nobody has said otherwise."""
_LATE: list = []
"""Signals that came while a command was begun, in a list for each block of `_deferred`: at most one."""
_RUNNING: dict = {}
"""{process: events of the pools that it belongs to}; an event is set when its pool is stopped."""
_HERE = threading.local()


class Stopped(RuntimeError):
    """What a pool's thread meets that would run a command after the pool was stopped."""


def run(command: list, cwd: str | Path | None = None, env: dict | None = None, given: str | None = None,
        together: bool = True) -> subprocess.CompletedProcess:
    """Run a command to its end; what it says is text in `stdout`, and in `stderr` unless `together`.

    `given` : its standard input; without it, it has none, and so never waits for a key. If the wait ends by an exception
    (Ctrl-C), the command and all that it has started are ended first. SIGTERM and SIGHUP become SystemExit meanwhile, with
    the exit code that shells give them, if nobody else handles them.
    """
    pools = getattr(_HERE, "pools", ())
    _check(pools)
    with _signals():
        process = None
        try:
            with _deferred():
                process = subprocess.Popen(
                    [str(word) for word in command], cwd=cwd, env=env, text=True, start_new_session=True,
                    stdin=subprocess.DEVNULL if given is None else subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT if together else subprocess.PIPE)
                _RUNNING[process] = pools
            _check(pools)  # again: whoever stops a pool sees the process here, or it sees that the pool was stopped
            said, errors = process.communicate(given)
        except BaseException:
            if process is not None:
                end(process)
            raise
        finally:
            _RUNNING.pop(process, None)
    return subprocess.CompletedProcess(command, process.returncode, said, errors)


def _check(pools: tuple) -> None:
    if any(stopped.is_set() for stopped in pools):
        raise Stopped("the work that this command belongs to was stopped")


@contextmanager
def pool(threads: int):
    """A ThreadPoolExecutor whose threads run commands, by `run` or in pools of their own.

    If the block ends by an exception, their commands are ended, and no other begins. So Ctrl-C does not wait for them.
    """
    stopped = threading.Event()
    pools = (*getattr(_HERE, "pools", ()), stopped)

    def begin():
        _HERE.pools = pools

    with _signals(), ThreadPoolExecutor(threads, initializer=begin) as executor:
        try:
            yield executor
        except BaseException:
            stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)
            for process, its in list(_RUNNING.items()):
                if stopped in its:
                    end(process)
            raise


def end(process: subprocess.Popen) -> None:
    """End a command of `run` and whatever is in its session: asked first, by force after GRACE_SECONDS."""
    session = process.pid
    try:
        _send(session, signal.SIGTERM)
        until = time.monotonic() + GRACE_SECONDS
        while _members(session) and time.monotonic() < until:
            process.poll()  # else it stays, ended, as one of them
            time.sleep(0.02)
    finally:  # also where Ctrl-C comes again
        _send(session, signal.SIGKILL)


def _send(session: int, number: int) -> None:
    for member in _members(session):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, number)


def _members(session: int) -> list:
    """Processes of a session that have not ended; without /proc, the group that its leader began."""
    if not os.path.isdir("/proc/self"):
        try:
            os.killpg(session, 0)
        except (ProcessLookupError, PermissionError):
            return []
        return [-session]
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, _, _, of = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state not in "ZX":
                    found.append(int(entry))
    return found


@contextmanager
def _signals():
    """Signals as exceptions, in the main thread, where they come: SIGTERM and SIGHUP become SystemExit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        if _LATE:
            _LATE[-1].append(number)
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        else:
            raise SystemExit(128 + number)

    taken = {number: usual for number, usual in SIGNALS.items() if signal.getsignal(number) is usual}
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, usual in taken.items():
            signal.signal(number, usual)


@contextmanager
def _deferred():
    """Within `_signals`: what comes in this block is an exception behind it.

    Popen begins the command before it returns. An exception within it would leave a process that nobody knows of.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late: list = []
    _LATE.append(late)
    try:
        yield
    finally:
        _LATE.remove(late)
        if late:
            os.kill(os.getpid(), late[0])
