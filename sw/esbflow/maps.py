"""What networks compute on, as maps: rows of features and sequences are maps of one pixel, or of one row of pixels."""

from esbflow.errors import BadValue


def map_shape(shape: tuple) -> tuple[int, int, int]:
    """(c, h, w) of (features,), (channels, length) or (channels, height, width).

    >>> map_shape((593,)), map_shape((2, 1024)), map_shape((3, 32, 32))
    ((593, 1, 1), (2, 1, 1024), (3, 32, 32))
    """
    if len(shape) == 2:
        return shape[0], 1, shape[1]
    return tuple(shape) + (1,) * (3 - len(shape))


def plane(values: tuple, neutral: int) -> tuple[int, int]:
    """(y, x) of what a layer has for each axis; a sequence is a map of one row.

    >>> plane((3,), neutral=1), plane((3, 5), neutral=1)
    ((1, 3), (3, 5))
    """
    return (neutral,) * (2 - len(values)) + tuple(values)


def as_maps(images, shape: tuple, error: type = BadValue):
    """Rows (n, features), sequences (n, channels, length) or images (n, c, h, w), an array or tensor, as (n, *shape).

    Raises
    ------
    error
        if they are of another shape than (c, h, w).
    """
    given = tuple(images.shape)
    if not 2 <= len(given) <= 4 or map_shape(given[1:]) != tuple(shape):
        raise error(f"images must have shape (n, {', '.join(map(str, shape))}), not {given}")
    return images.reshape(given[0], *shape)
