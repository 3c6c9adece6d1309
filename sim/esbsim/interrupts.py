"""The simulated way of an interrupt: AXI interrupt controller (PG099) in the PL, and Linux's UIO device above it."""

import asyncio

# Register offsets of AXI INTC 4.1, PG099 table 2-3.
ISR, IPR, IER, IAR, SIE, CIE, IVR, MER = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14, 0x18, 0x1C
STEP_CYCLES = 20_000
"""Engine cycles between two looks at the event loop: some tens of milliseconds of wall time."""


class InterruptController:
    """AXI INTC with one level-sensitive input; `level` is a function that tells the input's level."""

    def __init__(self, level):
        self._level = level
        self._latched = self._enabled = self._master = 0

    def _sense(self):
        # A level input is latched, and latched again at once if it is acknowledged while still high.
        if self._level():
            self._latched = 1

    @property
    def irq(self) -> bool:
        """Whether its output is high."""
        self._sense()
        return bool(self._latched & self._enabled & (self._master & 1))

    def read(self, offset: int) -> int:
        """A register of the AXI interrupt controller, by byte offset."""
        self._sense()
        return {ISR: self._latched, IPR: self._latched & self._enabled, IER: self._enabled, MER: self._master,
                IVR: 0 if self._latched & self._enabled else 0xFFFFFFFF}.get(offset, 0)

    def write(self, offset: int, value: int):
        """A register of the AXI interrupt controller, by byte offset."""
        if offset == IER:
            self._enabled = value & 1
        elif offset == SIE:
            self._enabled |= value & 1
        elif offset == CIE:
            self._enabled &= ~value & 1
        elif offset == IAR:
            self._latched &= ~value & 1
        elif offset == MER:
            self._master = value & 3


class UioDevice:
    """What pynq.interrupt expects in place of a UioController: add_event(event, number).

    Simulated time goes on while somebody waits for an event and the event loop runs.

    Parameters
    ----------
    irq : tells the level of the interrupt line.
    advance : runs the engine for at most so many cycles, and returns when the line rises.
    """

    def __init__(self, irq, advance):
        self._irq, self._advance = irq, advance
        self._events = []
        self._loop = None  # the loop on which a step is scheduled

    def add_event(self, event, number: int):
        """PYNQ's hook: set `event` at the next interrupt."""
        self._events.append(event)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            loop.call_soon(self._step, loop)

    def _step(self, loop):
        if loop is not self._loop:
            return  # the waiter has moved to another loop
        self._loop = None  # until the end, so that an exception in between leaves nobody waiting for this step
        if not self._irq():
            self._advance(STEP_CYCLES)
        if self._irq():
            events, self._events = self._events, []
            for event in events:
                event.set()  # may add events again, and with the first of them the next step
        if self._events and self._loop is None:
            self._loop = loop
            loop.call_soon(self._step, loop)
