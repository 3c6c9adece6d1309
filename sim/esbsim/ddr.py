"""The simulated board's DDR: physical memory, contiguous allocation, and a CPU cache that is not coherent."""

import ctypes

import numpy as np
from pynq.buffer import PynqBuffer

from esbflow.runtime.pages import PAGE, Pages, whole_pages

FRESH = 0xA5
"""What freshly allocated memory holds: nobody should count on zeros."""
FREED = 0xDD
"""What freed memory holds, in the host's copy too, until it is allocated again."""


class UseAfterFree(RuntimeError):
    """Freed memory was written, or a freed buffer flushed or invalidated. A board would say nothing and give wrong data."""


class Ddr:
    """`memory` holds the bytes at bus address `base` and above; all sizes in bytes."""

    def __init__(self, base: int, size: int):
        self.base = base
        self.memory = np.zeros(size, np.uint8)  # the system gives pages when they are touched
        self._pages = Pages(size)
        self._freed = []  # (offset, size) that hold FREED
        self._host = {}  # (offset, size, number) of a buffer in use -> the host's bytes of it
        self._count = 0

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody has."""
        return self._pages.free

    def allocate(self, device, shape, dtype, cacheable: bool) -> PynqBuffer:
        """A buffer as pynq.allocate returns it; cacheable ones are a copy until flushed or invalidated.

        Raises
        ------
        RuntimeError
            if no free piece is large enough.
        UseAfterFree
            if someone has written to this memory since it was freed.
        """
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        size = max(PAGE, whole_pages(nbytes))
        offset = self._pages.allocate(size)
        if offset is None:
            raise RuntimeError(f"Allocate failed: {size} bytes asked for, {self.free_bytes} free")
        self._check_freed(offset, size)
        self.memory[offset:offset + size] = FRESH
        physical = memoryview(self.memory)[offset:offset + nbytes]
        self._count += 1
        pointer = (offset, size, self._count)
        self._host[pointer] = host = bytearray(physical) if cacheable else physical
        buffer = PynqBuffer(shape, np.dtype(dtype), bo=pointer, device=device, buffer=host,
                            device_address=self.base + offset, coherent=not cacheable)
        buffer.memory, buffer.pointer, buffer.return_to = device, pointer, self
        buffer.freed = True  # as with XRT buffers: freebuffer() hands the pointer back and unmaps nothing
        return buffer

    def return_pointer(self, pointer):
        """Called by PynqBuffer.freebuffer()."""
        offset, size, _ = pointer
        host = self._host.pop(pointer)
        host[:] = bytes([FREED]) * len(host)
        self.memory[offset:offset + size] = FREED
        self._freed.append((offset, size))
        self._pages.release(offset, size)

    def _check_in_use(self, bo):
        if bo not in self._host:
            raise UseAfterFree(f"the buffer at bus address 0x{self.base + bo[0]:x} was freed; allocate another")

    def _check_freed(self, start, size):
        """What is taken again, and what of it was freed before, is as it was left."""
        end = start + size
        for offset, length in [piece for piece in self._freed if piece[0] < end and start < sum(piece)]:
            low, high = max(offset, start), min(offset + length, end)
            changed = np.flatnonzero(self.memory[low:high] != FREED)
            self._freed.remove((offset, length))
            self._freed += [piece for piece in ((offset, low - offset), (high, offset + length - high)) if piece[1]]
            if len(changed):
                raise UseAfterFree(f"bus address 0x{self.base + low + int(changed[0]):x} was written after it was freed")

    def flush(self, bo, offset, virtual_address, nbytes):
        """CPU copy to memory."""
        self._check_in_use(bo)
        ctypes.memmove(self.memory.ctypes.data + bo[0] + offset, virtual_address, nbytes)

    def invalidate(self, bo, offset, virtual_address, nbytes):
        """Memory to CPU copy."""
        self._check_in_use(bo)
        ctypes.memmove(virtual_address, self.memory.ctypes.data + bo[0] + offset, nbytes)
