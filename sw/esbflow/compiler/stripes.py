"""Slices on stripes of one image: slice s makes the rows of a layer's output from row s * made on.

All slices carry out the same instructions, so a layer is compiled as if it had the rows of one stripe only. Its windows
reach into the stripes before and behind: tensors lie in memory as a whole, and a slice reads its neighbours' rows as they
have stored them. What lies above and below the map is told apart by the engine, row by row. Memory there may hold anything,
but it must be there and belong to the tensor alone: `spaces`.

A layer that cannot be cut so, as a linear one, is made by all slices alike, from the same memory to the same memory.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from esbflow.compiler.lower import Layer, Pool, Stripe
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import BEATS_PER_4K

ROWS_LIMIT = 1023
"""Rows of a map, and from stripe to stripe, are 10-bit fields; so are rows of a window before and behind them."""


@dataclass(frozen=True)
class Space:
    """Where a tensor's rows lie in memory: `first` rows above the map, `rows` in all; rows are `pitch` beats apart."""

    first: int
    rows: int
    pitch: int


def pool_fits(layer: Layer) -> bool:
    """Whether no window of a max pool on the layer's way out begins above the map, or ends below it."""
    pool = layer.pool
    return pool == Pool() or (pool.padding[0] == 0 and
                              (layer.out_shape[1] - 1) * pool.stride[0] + pool.kernel[0] <= layer.conv_shape[1])


def cut(layer: Layer, slices: int) -> Layer:
    """The layer with the rows of one stripe, or the layer itself if all slices must make all of it."""
    height, pool = layer.out_shape[1], layer.pool
    if layer.stacked or layer.repeat != (1, 1) or height < 2 or not pool_fits(layer):
        return layer
    made = -(-height // slices)
    conv_rows = (made - 1) * pool.stride[0] + pool.kernel[0]
    reach = (layer.kernel[0] - 1) * layer.dilation[0]
    stripe = Stripe(made, made * pool.stride[0] * layer.stride[0], layer.padding[0], layer.in_shape[1])
    in_rows = (conv_rows - 1) * layer.stride[0] + reach + 1
    if max(stripe.height, stripe.taken, in_rows, layer.padding[0]) > ROWS_LIMIT:
        return layer

    def of(shape, rows):
        return shape[0], rows, shape[2]

    return replace(layer, in_shape=of(layer.in_shape, in_rows), conv_shape=of(layer.conv_shape, conv_rows),
                   out_shape=of(layer.out_shape, made), padding=(0, layer.padding[1]), stripe=stripe)


def spaces(config: EngineConfig, layers: list, heights: dict, row_beats: dict) -> dict:
    """{tensor: Space}: room for all rows that the stripes of `layers` read and write, and rows so far apart that stripes are
    whole pages apart.

    heights, row_beats : {tensor: rows of the map, and beats that a row holds}
    """
    first, rows = dict.fromkeys(heights, 0), dict(heights)
    distances: dict[str, set] = {name: set() for name in heights}
    for layer in layers:
        if layer.stripe is None:
            continue
        made, taken, above = layer.stripe.made, layer.stripe.taken, layer.stripe.above
        uses = [(name, taken, above, layer.in_shape[1] - above) for name in layer.sources]
        uses += [(name, made, 0, made) for name in (layer.target, layer.residual) if name is not None]
        for name, step, before, own in uses:
            distances[name].add(step)
            first[name] = max(first[name], before)
            rows[name] = max(rows[name], (config.slices - 1) * step + own)
    found = {}
    for name in heights:
        grain = BEATS_PER_4K // math.gcd(BEATS_PER_4K, *distances[name])
        pitch = -(-row_beats[name] // grain) * grain if distances[name] else row_beats[name]
        found[name] = Space(first[name], first[name] + rows[name], pitch)
    return found


def unstacked(layer: Layer, found: dict, heights: dict, images: int) -> Layer:
    """A layer that takes the images of a batch for one tall map, one by one where there are rows between them."""
    names = (*layer.sources, layer.target, layer.residual)
    if layer.stacked and images > 1 and any(found[name].rows != heights[name] for name in names if name is not None):
        return replace(layer, stacked=False, stride=(1, 1))
    return layer


class Steps(NamedTuple):
    """Rows of the map above row 0 of a stripe; loaded from one slice's stripe to the next's; made so."""

    above: int
    taken: int
    made: int


def steps(layer: Layer) -> Steps:
    """(rows of the map above row 0 of a stripe, rows that are loaded from one slice's to the next's, rows made so)"""
    stripe = layer.stripe
    return Steps(stripe.above, stripe.taken, stripe.made) if stripe else Steps(0, 0, 0)


def rows_of_slices(config: EngineConfig, first: int, end: int, apart: int, height: int) -> int:
    """Rows first..end-1 of each slice, where they lie on the map of `height` rows: bit r is row r."""
    rows = 0
    for k in range(config.slices if apart else 1):
        low, high = max(0, first + k * apart), min(height, end + k * apart)
        if low < high:
            rows |= (1 << high) - (1 << low)
    return rows


def pages(beats: int) -> int:
    """What a field `apart` says of whole pages."""
    assert beats % BEATS_PER_4K == 0, "stripes that are no whole pages apart"
    return beats // BEATS_PER_4K
