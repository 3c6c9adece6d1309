"""Memory given out in pages: where a region of the engine may begin."""

PAGE = 4096
"""Bytes. The engine ignores the lower bits of a region's address."""


def whole_pages(size: int) -> int:
    """`size` in bytes, rounded up to pages.

    >>> whole_pages(1), whole_pages(4096)
    (4096, 4096)
    """
    return -(-size // PAGE) * PAGE


class Pages:
    """Pieces of a memory of `size` bytes, each from the first place where it fits; free neighbours become one.

    >>> pages = Pages(3 * PAGE)
    >>> pages.allocate(5000), pages.allocate(1), pages.allocate(1)
    (0, 8192, None)
    >>> pages.release(0, 5000); pages.allocate(8192)
    0
    """

    def __init__(self, size: int):
        self._free = [(0, size // PAGE * PAGE)]

    @property
    def free(self) -> int:
        """Bytes that are left, in however many pieces."""
        return sum(length for _, length in self._free)

    def allocate(self, size: int) -> int | None:
        """Where a piece of `size` bytes begins, or None if no such piece is left."""
        needed = whole_pages(size)
        for i, (start, length) in enumerate(self._free):
            if length >= needed:
                self._free[i] = (start + needed, length - needed)
                return start
        return None

    def release(self, start: int, size: int) -> None:
        """Take back what `allocate` gave."""
        merged: list[tuple] = []
        for begin, length in sorted([*self._free, (start, whole_pages(size))]):
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            elif length:
                merged.append((begin, length))
        self._free = merged
