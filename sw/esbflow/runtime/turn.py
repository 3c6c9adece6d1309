"""One user of an engine at a time."""

import functools
import os
import sys
import threading
from types import FrameType

from esbflow.runtime.errors import EngineInUse


class Turn:
    """What all drivers of one engine share: other threads wait until it is their turn.

    `check` raises EngineInUse where waiting cannot help: inside a call of the same thread (a progress callback), and in
    a process that was forked after the driver was made.
    """

    def __init__(self):
        self.lock = threading.RLock()
        self.frame: FrameType | None = None  # of the call whose turn it is
        self.stop = False  # the run under way is to end
        self._process = os.getpid()

    def check(self) -> None:
        """Raises EngineInUse in a copy of the process, or in a callback of this thread's own run."""
        self.check_process()
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if frame is self.frame:
                raise EngineInUse("this thread's run is still under way; a progress callback cannot load, unload or run")
            frame = frame.f_back

    def check_process(self) -> None:
        """Raises EngineInUse in a copy of the process that made the driver."""
        if os.getpid() != self._process:
            raise EngineInUse(f"this driver belongs to process {self._process}, and this is its copy in process "
                              f"{os.getpid()}; load the overlay and the program in the process that runs them")

    def release(self) -> None:
        """Also what Ctrl-C in an earlier `release` has left to this thread; nothing, if the turn is another thread's."""
        try:
            while True:
                self.lock.release()
        except RuntimeError:
            pass  # not, or no longer, this thread's


def in_turn(method):
    """Makes a method of an object with a `_turn` wait for its turn."""

    @functools.wraps(method)
    def alone(self, *arguments, **named):
        turn, here = self._turn, sys._getframe()
        turn.check()
        try:
            turn.lock.acquire()
            turn.frame = here
            return method(self, *arguments, **named)
        finally:
            # Ctrl-C may come here too. So nothing relies on these lines: a frame that has ended is on no stack, and a
            # thread that still holds the lock gets it again.
            if turn.frame is here:
                turn.frame = None
            turn.release()

    return alone
