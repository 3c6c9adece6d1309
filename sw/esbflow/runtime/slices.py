"""Memory of an engine with several slices: each has a part of input, workspace, output and log, all equally far apart."""

from esbflow.runtime.pages import whole_pages

SLICED = ("workspace", "input", "output", "log")
"""Regions of which each slice has a part. Program and weights are those of all slices."""


class SlicedRegion:
    """A region in one allocation for all slices: `arrays` are the slices' parts, `address` is that of the first.

    Arrays that can be flushed and invalidated by themselves are, as PYNQ's; else the whole allocation is. Of its regions
    only the one that `owns` it frees it.
    """

    def __init__(self, buffer, start: int, size: int, stride: int, slices: int, owns: bool):
        self._buffer, self._owns = buffer, owns
        self.address = buffer.address + start
        self.arrays = [buffer.array[start + k * stride:start + k * stride + size] for k in range(slices)]
        self._cached = self.arrays if hasattr(buffer.array, "invalidate") else [buffer]

    @property
    def array(self):
        """The first slice's part."""
        return self.arrays[0]

    def flush(self) -> None:
        for part in self._cached:
            part.flush()

    def invalidate(self) -> None:
        for part in self._cached:
            part.invalidate()

    def free(self) -> None:
        if self._owns:
            self._buffer.free()


def stride_of(sizes: dict) -> int:
    """Bytes from one slice's parts to the next one's: regions begin with a page.

    >>> stride_of({"workspace": 5000, "input": 16, "output": 16, "log": 64})
    20480
    """
    return sum(whole_pages(sizes[region]) for region in SLICED)


def sliced_regions(buffer, sizes: dict, slices: int) -> dict:
    """{region: SlicedRegion} in an allocation of `slices * stride_of(sizes)` bytes."""
    regions: dict[str, SlicedRegion] = {}
    start, stride = 0, stride_of(sizes)
    for region in SLICED:
        regions[region] = SlicedRegion(buffer, start, sizes[region], stride, slices, owns=not regions)
        start += whole_pages(sizes[region])
    return regions
