"""What the driver needs of the world: registers, memory that both sides see, and a way to wait."""

from typing import Protocol

import numpy as np


class Buffer(Protocol):
    """Memory that the engine reads and writes by `address`; `array` is the host's uint8 view of it.

    The host's view may be cached: `flush` after writing it, `invalidate` before reading it.
    """

    address: int
    array: np.ndarray

    def flush(self) -> None:
        """What the host has written becomes visible to the engine."""

    def invalidate(self) -> None:
        """What the engine has written becomes visible to the host."""

    def free(self) -> None:
        """Give the memory back; nothing may use it afterwards."""


class Transport(Protocol):
    """A board, a simulated board, or a recording."""

    def read(self, offset: int) -> int:
        """A 32-bit register."""

    def write(self, offset: int, value: int) -> None:
        """A 32-bit register."""

    def allocate(self, size: int) -> Buffer:
        """`size` bytes at a multiple of 4096."""

    def wait_for_interrupt(self, seconds: float) -> bool:
        """Sleep until the interrupt is high or the time is over; False when there is no interrupt line to wait on."""
