"""Layers that keep each channel to itself, on the channel unit: which they are, and their taps.

Depthwise convolutions, average pools, additions, requantizations and copies are convolutions of as many groups as channels
already. A max pool of one digit and a window of up to 3 x 3 is one pass whose taps do not matter; a larger one, or one of
wider integers, is copied into the accumulators, and the drain takes the maximum.
"""

from dataclasses import dataclass, replace

import numpy as np

from esbflow.compiler.digits import WeightDigit, split_weights
from esbflow.compiler.lower import Layer, Pool, identity, storage_bits
from esbflow.compiler.weights import LayerWeights, Sums, WeightPass, WeightsRegion, check_requantizer, check_shifts
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import TAP_SIDE, TAPS, channel_offset, channel_range
from esbflow.graph.ir import Requantizer


@dataclass(frozen=True)
class ChannelPass(WeightPass):
    """A pass through the channel unit: `offset` is that of its taps, (tap_y, tap_x) the first tap of its window."""

    tap_rows: int = 1
    tap_cols: int = 1
    part: int = 0


@dataclass(frozen=True)
class Columns:
    """How passes go along a row: `taps` columns of the window at once, `step` map columns apart, an output every
    `gap` + 1 columns."""

    taps: int
    step: int
    gap: int

    def count(self, outputs: int, taps: int) -> int:
        """Columns that a pass of `taps` columns reads for so many outputs."""
        return (outputs - 1) * (self.gap + 1) + taps


def columns(layer: Layer) -> Columns:
    """Three columns at once, unless dilation and stride do not go together or most columns would be read in vain."""
    kernel, stride, dilation = layer.kernel[1], layer.stride[1], layer.dilation[1]
    single = layer.conv_shape[2] == 1
    if kernel > 1 and (single or (stride % dilation == 0 and (stride // dilation <= TAP_SIDE or layer.maximum))):
        return Columns(TAP_SIDE, dilation, 0 if single else stride // dilation - 1)
    return Columns(1, stride, 0)


def uses_unit(config: EngineConfig, layer: Layer) -> bool:
    """Whether a layer runs on the channel unit: it keeps each channel to itself, at its place in the words."""
    channels = layer.in_shape[0]
    return bool(config.channel_unit and layer.groups == channels == layer.weight.shape[0] and layer.weight.shape[1] == 1
                and not any(count % config.rows for count in layer.source_channels[:-1]))


def place_on_unit(config: EngineConfig, layers: list) -> list:
    """The layers, max pools that the unit has as such; before one whose parts begin within words, a copy of them."""
    if not config.channel_unit:
        return layers
    placed, taken = [], {layer.target for layer in layers}
    for layer in layers:
        layer = pool_on_unit(config, layer)
        if not uses_unit(config, layer) and layer.op != "Concat":
            joined = replace(layer, source_channels=(sum(layer.source_channels),))
            if uses_unit(config, joined):
                name = f"{layer.name}_joined"
                while name in taken:
                    name += "_"
                taken.add(name)
                placed.append(_copy(layer, name))
                layer = replace(joined, sources=(name,))
        placed.append(layer)
    return placed


def pool_on_unit(config: EngineConfig, layer: Layer) -> Layer:
    """A layer that is a max pool as one pass of the unit, where it can be; any other as it is."""
    pool = layer.pool
    if layer.op != "MaxPool2d" or not config.channel_unit:
        return layer
    if max(pool.kernel) > TAP_SIDE or storage_bits(layer.in_format) > config.digit_bits:
        return layer
    ones = np.ones((layer.in_shape[0], 1, *pool.kernel), dtype=np.int64)
    return replace(layer, weight=ones, stride=pool.stride, padding=pool.padding, conv_shape=layer.out_shape, pool=Pool(),
                   maximum=True)


def _copy(layer: Layer, name: str) -> Layer:
    """The parts that a layer reads, as one tensor."""
    channels = layer.in_shape[0]
    return replace(
        layer, name=name, op="Concat", target=name, residual=None, residual_format=None, conv_shape=layer.in_shape,
        out_shape=layer.in_shape, weight=identity(channels), groups=channels, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
        pool=Pool(), repeat=(1, 1), requantizer=Requantizer.pass_through(channels), out_format=layer.in_format, lookup=None,
        levels=None, stacked=False, maximum=False, macs=0)


def pack_channels(config: EngineConfig, region: WeightsRegion, layer: Layer, in_digits: int, in_signed: bool,
                  residual: tuple | None = None) -> LayerWeights:
    """As `weights.pack_layer`, for the channel unit: taps of blocks of channels in place of tiles.

    Raises
    ------
    CompileError
        as `weights.pack_layer`.
    """
    check_requantizer(config, layer)
    channels, _, ky, kx = layer.weight.shape
    width, across = config.channel_unit, columns(layer).taps
    digits = _digits(config, layer)
    check_shifts(config, layer, digits, in_digits)
    groups, constants = [], []
    for first in range(0, channels, config.tile_channels):
        sums, passes = Sums(config.tile_channels), []
        starts = range(first, min(channels, first + config.tile_channels), width)
        windows = [(start, number, ty, tx) for start in starts for number in range(len(digits))
                   for ty in range(0, ky, TAP_SIDE) for tx in range(0, kx, across)]
        live = [window for window in windows if layer.maximum or _window(digits, *window, width, across).any()]
        # Each accumulator must be overwritten.
        used = {(start - first) // config.cols for start, *_ in live}
        spare = {(start - first) // config.cols: (start, *rest) for start, *rest in reversed(windows)}
        for start, number, ty, tx in live + [spare[turn] for turn in sorted(spare) if turn not in used]:
            window = _window(digits, start, number, ty, tx, width, across)
            taps, part = _taps(window, width), (start - first) // width
            offset, lanes = region.taps(taps), slice(start - first, start - first + width)
            for d in range(in_digits):
                signed, shift = in_signed and d == in_digits - 1, digits[number].shift + config.digit_bits * d
                passes.append(ChannelPass(
                    offset=offset, plane=start // config.rows * in_digits + d, tap_y=ty, tap_x=tx,
                    shift=shift // config.shift_step, signed=signed, codebook=0, tap_rows=window.shape[1],
                    tap_cols=window.shape[2], part=part, accumulator=part * width // config.cols))
                if layer.maximum:
                    sums.add(lanes, config.sign_offset * signed, config.largest_digit, shift)
                else:
                    reach = channel_offset(config, taps, False) + config.largest_digit * np.maximum(taps, 0).sum(axis=1)
                    sums.add(lanes, channel_offset(config, taps, signed), reach, shift)
        # Equal taps one after the other: they stay in the unit.
        order = {taps: k for k, taps in enumerate(dict.fromkeys((p.part, p.offset) for p in passes))}
        groups.append(sorted(passes, key=lambda p: order[p.part, p.offset]))
        constants.append(sums.store(config, region, layer, first, residual))
    return LayerWeights(groups, constants, region.table_of(layer))


def _digits(config: EngineConfig, layer: Layer) -> list:
    """The unit takes any integers of its range as they are."""
    low, high = channel_range(config)
    if low <= layer.weight.min() and layer.weight.max() <= high:
        return [WeightDigit(layer.weight - low, np.arange(low, high + 1), 0)]
    return split_weights(layer.weight, f"layer {layer.name}", True, config.weight_min, config.weight_max, config.radix_bits)


def _window(digits, start, number, ty, tx, width, across) -> np.ndarray:
    """(channels, rows, columns) of the taps of one pass."""
    return digits[number].values[start:start + width, 0, ty:ty + TAP_SIDE, tx:tx + across]


def _taps(window: np.ndarray, width: int) -> np.ndarray:
    """(width, TAPS): tap row * 3 + age, age 0 being the last column."""
    channels, rows, cols = window.shape
    taps = np.zeros((width, TAP_SIDE, TAP_SIDE), dtype=np.int64)
    # Channels that are not there take the taps of the last one, so that those of a pool are all equal.
    taps[:, :rows, :cols] = np.pad(window[:, :, ::-1], ((0, width - channels), (0, 0), (0, 0)), mode="edge")
    return taps.reshape(width, TAPS)
