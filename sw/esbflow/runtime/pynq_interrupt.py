"""Waiting for the engine's interrupt through PYNQ, which ties it to one thread and its event loop."""

import asyncio
import contextlib
import signal
import threading
from typing import Any

import pynq

from esbflow.registers import REGISTERS

PENDING = REGISTERS["IRQ_STATUS"].offset
PATIENCE = 2
"""Interrupts missed in a row after which the driver polls."""


class Line:
    """The interrupt of an IP core. `wait` says False wherever the caller must poll instead.

    Parameters
    ----------
    ip : the driver; its `irq` is a pynq.Interrupt, or None where Linux has no UIO device, and `pin` the line's name.
    thread : of the IP's making. PYNQ's readers of UIO devices sit on that thread's event loop.
    """

    def __init__(self, ip, thread: int):
        self._ip, self._thread = ip, thread
        self._interrupt: Any = getattr(ip, "irq", None)
        self._loop, self._missed = None, 0

    def wait(self, seconds: float, read) -> bool:
        """Sleep until the interrupt or for `seconds`; `read` gives a register of the engine."""
        if self._interrupt is None or threading.get_ident() != self._thread:
            return False
        try:
            asyncio.get_running_loop()
            return False  # in a notebook: its loop cannot be entered again
        except RuntimeError:
            pass
        with _interrupts_later():
            try:
                woken = self._wait(seconds)
            except RuntimeError:  # PYNQ's, when the overlay was loaded again or the event's loop is closed
                self.renew()
                return False
        if woken:
            self._missed = 0
        elif read(PENDING):
            # The line is high and nobody woke us: the reader's loop is gone, or an exception has cost PYNQ an event.
            self._missed += 1
            self.renew()
            if self._missed > PATIENCE:
                self._interrupt = None
        return True

    def renew(self) -> None:
        """After a download PYNQ's Interrupt object is dead; make another, or poll from now on."""
        self._interrupt = None
        if self._ip.pin is not None and threading.get_ident() == self._thread:
            with contextlib.suppress(ValueError, RuntimeError):  # no such pin, or no UIO device
                self._interrupt = pynq.Interrupt(self._ip.pin)

    def _wait(self, seconds: float) -> bool:
        loop = self._own_loop()
        task = loop.create_task(self._interrupt.wait())
        try:
            loop.run_until_complete(asyncio.wait({task}, timeout=seconds))
            if task.done():
                task.result()
            return task.done()
        finally:
            if not task.done():  # else it would wait on, beside the next one
                task.cancel()
                loop.run_until_complete(asyncio.gather(task, return_exceptions=True))

    def _own_loop(self):
        # asyncio.run() leaves a thread without a loop.
        if self._loop is None or self._loop.is_closed():
            try:
                self._loop = asyncio.get_event_loop_policy().get_event_loop()
            except RuntimeError:
                self._loop = asyncio.new_event_loop()
                asyncio.set_event_loop(self._loop)
        return self._loop


@contextlib.contextmanager
def _interrupts_later():
    """Ctrl-C inside acts at the end: in the middle of PYNQ's callbacks it would lose an event for ever."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(signal.SIGINT, came[-1])
