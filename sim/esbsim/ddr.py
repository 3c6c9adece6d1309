"""The simulated board's DDR: physical memory, contiguous allocation, and a CPU cache that is not coherent."""

import ctypes

import numpy as np
from pynq.buffer import PynqBuffer

PAGE = 4096
FRESH = 0xA5
"""What freshly allocated memory holds: nobody should count on zeros."""


class Ddr:
    """`memory` holds the bytes at bus address `base` and above; all sizes in bytes."""

    def __init__(self, base: int, size: int):
        self.base = base
        self.memory = np.zeros(size, np.uint8)  # the system gives pages when they are touched
        self._free = [(0, size)]  # (offset, size), sorted, never adjacent

    @property
    def free_bytes(self) -> int:
        return sum(size for _, size in self._free)

    def allocate(self, device, shape, dtype, cacheable: bool) -> PynqBuffer:
        """A buffer as pynq.allocate returns it; cacheable ones are a copy until flushed or invalidated.

        Raises
        ------
        RuntimeError
            if no free piece is large enough.
        """
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        offset, size = self._take(max(PAGE, -(-nbytes // PAGE) * PAGE))
        self.memory[offset:offset + size] = FRESH
        physical = memoryview(self.memory)[offset:offset + nbytes]
        buffer = PynqBuffer(shape, np.dtype(dtype), bo=(offset, size), device=device,
                            buffer=bytearray(physical) if cacheable else physical,
                            device_address=self.base + offset, coherent=not cacheable)
        buffer.memory, buffer.pointer, buffer.return_to = device, (offset, size), self
        buffer.freed = True  # as with XRT buffers: freebuffer() hands the pointer back and unmaps nothing
        return buffer

    def _take(self, size):
        for i, (offset, available) in enumerate(self._free):
            if available >= size:
                self._free[i:i + 1] = [(offset + size, available - size)] if available > size else []
                return offset, size
        raise RuntimeError(f"Allocate failed: {size} bytes asked for, {self.free_bytes} free")

    def return_pointer(self, pointer):
        """Called by PynqBuffer.freebuffer()."""
        merged = []
        for offset, size in sorted([*self._free, pointer]):
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((offset, size))
        self._free = merged

    def flush(self, bo, offset, virtual_address, nbytes):
        """CPU copy to memory."""
        ctypes.memmove(self.memory.ctypes.data + bo[0] + offset, virtual_address, nbytes)

    def invalidate(self, bo, offset, virtual_address, nbytes):
        """Memory to CPU copy."""
        ctypes.memmove(virtual_address, self.memory.ctypes.data + bo[0] + offset, nbytes)
