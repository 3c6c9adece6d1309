"""Sliding windows over a map, and the zeros around it."""

from esbflow.graph.validate import window_counts


def windows_fit(source: tuple, shape: tuple, reach: tuple, stride: tuple, padding: tuple, even: bool = False) -> bool:
    """Whether windows over a map of shape `source` (c, h, w) make one of `shape`, with less than one window of zeros behind;
    with `even`, with as many zeros behind it as before.

    reach : (y, x) pixels from a window's first to its last, both counted. padding : zeros before the first row and column.

    >>> [windows_fit((1, 5, 5), (1, size, size), (3, 3), (2, 2), (1, 1)) for size in (1, 2, 3, 4)]
    [False, True, True, False]
    """
    for size, count, *window in zip(source[1:], shape[1:], reach, stride, padding):
        least, same, most = window_counts(size, *window)
        if count != same if even else not least <= count <= most:
            return False
    return True
