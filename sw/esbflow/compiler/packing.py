"""Several neighbouring pixels of few channels in one word, and in the columns of one pass.

A map of 16 channels fills a quarter of a word of 64, and a layer that makes it a quarter of 64 columns. So several pixels
of a row may share a word: channel c of pixel p is channel p * channels + c of a map that is narrower by as much. A
convolution reads and writes such maps as any others. Its weights become a Toeplitz matrix: the tile of one tap holds what
each pixel of the word it reads gives to each pixel of the word it makes. Tiles of nothing but zeros are left out as
everywhere. Integers are the same.

A pass goes from word to word of its input. That may be more pixels than the columns hold; and a max pool needs all pixels of
a window in the same column. So accumulators next to each other may take turns: each belongs to a `phase`, which has passes
and tiles of its own.

What is packed is chosen by the estimate of tile.py, summed over all layers. The pipeline then counts the cycles with and
without, unpacks what did not pay, and keeps the fastest program.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from esbflow.compiler.channels import uses_unit
from esbflow.compiler.digits import split_weights
from esbflow.compiler.errors import CompileError
from esbflow.compiler.fold import Fold, fold_input
from esbflow.compiler.layout import Source, tensor_layout
from esbflow.compiler.lower import Layer, Pool, skip_rows
from esbflow.compiler.stripes import cut
from esbflow.compiler.tile import TileTask, tile_with_cost
from esbflow.engine_config import EngineConfig
from esbflow.graph.ir import Requantizer

CHOICES = (1, 2, 4, 8, 16)
"""Pixels in a word."""
CHANNEL_LIMIT = 4
"""A packed map has at most so many times the channels that an output tile has."""
PHASE_LIMIT = 16
"""`acc_gap` is a 4-bit field: phases times the accumulators of a pixel."""
STRIDE_LIMIT = 63


def pack_pixels(layer: Layer, taken: int, given: int, phases: int | None = None, limit: int = PHASE_LIMIT) -> Layer:
    """The layer that reads words of `taken` pixels and makes words of `given`, in the fewest phases or in as many as said;
    in no more than `limit`.

    With the max pool's stride as `step`, lane q of a row's accumulator j holds the convolution's pixel
    (j // step * given + q) * step + j % step. So the windows of a word's pixels lie in accumulators next to each other, and
    the drain takes their maximum as if there were one pixel in a word.

    Raises
    ------
    CompileError
        if the layer cannot.
    """
    reason = obstacle(layer, taken, given, phases, limit)
    if reason:
        raise CompileError(f"layer {layer.name}: {taken} and {given} pixels in a word: {reason}")
    if keeps_pixels(layer):
        return _repeated(layer, given)
    out, channels, ky, kx = layer.weight.shape
    width, conv_width, out_width = layer.in_shape[2], layer.conv_shape[2], layer.out_shape[2]
    step = layer.pool.stride[1] if given > 1 else 1
    single = conv_width == 1
    phases = phases or fewest_phases(layer, taken, given)
    # What each phase, lane and kernel column reads: pixels from where the phase's words begin.
    phase, lane, tap = np.ogrid[:phases, :given, :kx]
    made = (phase // step * given + lane) * step + phase % step
    reads = made * layer.stride[1] - layer.padding[1] + tap * layer.dilation[1]
    words, places = reads // taken, reads % taken
    first = int(words.min())
    weight = np.zeros((phases, given, out, taken, channels, ky, int(words.max()) - first + 1), dtype=layer.weight.dtype)
    for f, q, k in np.ndindex(*reads.shape):
        weight[f, q, :, places[f, q, k], :, :, words[f, q, k] - first] = layer.weight[..., k].reshape(out, channels, ky)
    count = -(-conv_width // (phases * given))
    in_width = -(-width // taken)
    stride = (in_width if layer.stacked else 1) if single else phases * given * layer.stride[1] // taken
    return replace(
        layer, weight=weight.reshape(phases * given * out, taken * channels, ky, -1),
        in_shape=(taken * channels, layer.in_shape[1], in_width), source_channels=_times(layer.source_channels, taken),
        conv_shape=(given * out, layer.conv_shape[1], count * phases),
        out_shape=(given * out, layer.out_shape[1], -(-out_width // given)),
        stride=(layer.stride[0], stride), padding=(layer.padding[0], -first), dilation=(layer.dilation[0], 1),
        requantizer=_lanes(layer.requantizer, given), phases=phases)


def fewest_phases(layer: Layer, taken: int, given: int) -> int:
    """Phases after which a pass has made whole words from whole words, and whole windows of a max pool."""
    if layer.conv_shape[2] == 1:
        return 1
    made = given * layer.stride[1]
    phases = taken // math.gcd(taken, made)
    return math.lcm(phases, layer.pool.stride[1]) if given > 1 else phases


def keeps_pixels(layer: Layer) -> bool:
    """Whether every value depends on the pixel at its own place only, and on its own channel."""
    return layer.groups == layer.in_shape[0] == layer.weight.shape[0] and layer.kernel == (1, 1)


def _repeated(layer: Layer, pixels: int) -> Layer:
    def narrow(shape):
        return shape[0] * pixels, shape[1], -(-shape[2] // pixels)

    return replace(
        layer, weight=np.tile(layer.weight, (pixels, 1, 1, 1)), groups=layer.groups * pixels,
        in_shape=narrow(layer.in_shape), source_channels=_times(layer.source_channels, pixels),
        conv_shape=narrow(layer.conv_shape), out_shape=narrow(layer.out_shape),
        requantizer=_lanes(layer.requantizer, pixels))


def _times(counts: tuple, factor: int) -> tuple:
    return tuple(count * factor for count in counts)


def _lanes(rule: Requantizer, pixels: int) -> Requantizer:
    return Requantizer(**{name: np.tile(getattr(rule, name), pixels) for name in "mbsn"})


def phase_limit(config: EngineConfig) -> int:
    """Phases that a layer may have on an engine."""
    return PHASE_LIMIT // config.accumulators_per_pixel


def obstacle(layer: Layer, taken: int, given: int, phases: int | None = None, limit: int = PHASE_LIMIT) -> str | None:
    """Why a layer cannot read and make such words in so many phases, or None."""
    pool, conv_width, width = layer.pool, layer.conv_shape[2], layer.in_shape[2]
    if (taken, given) == (1, 1):
        return None
    if layer.repeat != (1, 1) or layer.maximum or len(layer.sources) > 1:
        return "it repeats columns, takes maxima on the channel unit, or reads several maps"
    if keeps_pixels(layer):
        same = taken == given and layer.stride == (1, 1) and layer.padding == (0, 0) and pool == Pool()
        return None if same else "a layer that keeps pixels apart makes the words it reads"
    if layer.groups > 1:
        return "it keeps channels apart"
    reach = (conv_width - 1) * layer.stride[1] - layer.padding[1] + (layer.kernel[1] - 1) * layer.dilation[1]
    if width % taken and reach >= width:
        return "a window reads beyond the map, where the last word holds no zeros"
    if layer.stacked and given > 1:
        return "a linear layer makes one pixel"
    if given > 1 and (pool.padding[1] or pool.kernel[1] > pool.stride[1]):
        return "windows of its max pool reach beyond a word"
    phases = phases or fewest_phases(layer, taken, given)
    if phases > limit or (phases * given * layer.stride[1] // taken > STRIDE_LIMIT and conv_width > 1):
        return "its steps are too long"
    if conv_width % (phases * given):
        if (layer.out_shape[2] - 1) * pool.stride[1] - pool.padding[1] + pool.kernel[1] > conv_width:
            return "a window of its max pool reads beyond the map"
        if layer.residual is not None:
            return "its rows end within a step, and those of its residual do not"
    return None


def choose(config: EngineConfig, layers: list, first: Layer | None, outputs: set, batch: int,
           stripes: bool = False, fold: Callable = fold_input) -> dict:
    """{tensor: pixels in a word} of those maps that are better packed, by estimate.

    layers : as they come to tiling, none of them packed.  first : layer 0 before its input was folded, if it was.
    outputs : the graph's, which are never packed.  stripes : slices work on stripes of one image.
    fold : how the input is folded.


    Maps that must be alike, as a residual and what it is added to, go together. It starts with none packed, and changes one
    group of maps at a time, as long as the sum of all layers' estimates falls.
    """
    groups = alike(layers)
    readers: dict[str, list] = {}
    for number, layer in enumerate(layers):
        for name in {*layer.sources, layer.residual} - {None}:
            readers.setdefault(name, []).append(number)
    makers = {layer.target: number for number, layer in enumerate(layers)}

    @cache
    def cost(number, taken, given):
        layer = layers[number]
        try:
            if number == 0 and first is not None:
                layer = _fold_wide(config, first, given, fold)[1] if given > 1 else layer
            else:
                layer = pack_pixels(layer, taken, given, limit=phase_limit(config))
            return _estimate(config, cut(layer, config.slices) if stripes else layer, batch)
        except CompileError:
            return math.inf

    pixels = dict.fromkeys(makers, 1)

    def total(numbers):
        return sum(cost(k, pixels.get(layers[k].sources[0], 1), pixels[layers[k].target]) for k in numbers)

    candidates = [group for group in groups if outputs.isdisjoint(group) and group <= set(makers)
                  and any(leaves_room(config, layers[makers[name]].out_shape[0]) for name in group)]
    better = True
    while better:
        better = False
        for group in candidates:
            touched = {k for name in group for k in (makers[name], *readers.get(name, ()))}
            before, now = pixels[next(iter(group))], total(touched)
            for count in CHOICES:
                if any(layers[makers[name]].out_shape[0] * count > CHANNEL_LIMIT * config.tile_channels for name in group):
                    break
                previous = pixels[next(iter(group))]
                pixels.update(dict.fromkeys(group, count))
                changed = total(touched)
                if changed < now:
                    now, better = changed, True
                else:
                    pixels.update(dict.fromkeys(group, previous))
            assert better or before == pixels[next(iter(group))]
    return {name: count for name, count in pixels.items() if count > 1}


def worthwhile(layers: list, pixels: dict, plain: list, packed: list) -> dict:
    """Those of the packed maps whose layers, all that make or read them, took fewer cycles; cycles are given by layer."""
    kept = {}
    for group in alike(layers):
        touched = [k for k, layer in enumerate(layers) if group & {layer.target, layer.residual, *layer.sources}]
        if sum(packed[k] for k in touched) < sum(plain[k] for k in touched):
            kept.update({name: pixels[name] for name in group if name in pixels})
    return kept


class PackedLayers(NamedTuple):
    """The Fold of the input, or None, and the layers that read and make packed maps."""

    fold: Fold | None
    layers: list[Layer]


def pack_layers(config: EngineConfig, layers: list, first: Layer | None, fold: Fold | None, pixels: dict,
                how: Callable = fold_input) -> PackedLayers:
    """(Fold or None, the layers that read and make maps of so many pixels in a word); `fold` is that of the layers given,
    `how` it is chosen.

    Raises
    ------
    CompileError
        if one of the layers cannot, or a residual is not packed as what it is added to.
    """
    packed = []
    for number, layer in enumerate(layers):
        taken, given = pixels.get(layer.sources[0], 1), pixels.get(layer.target, 1)
        if layer.residual is not None and pixels.get(layer.residual, 1) != given:
            raise CompileError(f"layer {layer.name}: its residual and its output must be packed alike")
        if any(pixels.get(source, 1) > 1 for source in layer.sources[1:]):
            raise CompileError(f"layer {layer.name}: a map that is read together with others cannot be packed")
        if number == 0 and first is not None and given > 1:
            fold, layer = _fold_wide(config, first, given, how)
        elif (taken, given) != (1, 1):
            layer = pack_pixels(layer, taken, given, limit=phase_limit(config))
        packed.append(layer)
    return PackedLayers(fold, packed)


def _fold_wide(config: EngineConfig, layer: Layer, given: int, fold: Callable) -> tuple:
    """(Fold or None, the first layer that makes words of `given` pixels), in the phases that take the fewest cycles."""
    fewest, limit = fewest_phases(layer, 1, given), phase_limit(config)
    forms = [pack_pixels(layer, 1, given, phases, limit) for phases in (fewest, 2 * fewest, 4 * fewest)
             if phases == fewest or obstacle(layer, 1, given, phases, limit) is None]
    return fold(layer, config.rows, config.cols, tuple(forms), config.digit_bits)


def leaves_room(config: EngineConfig, channels: int) -> bool:
    """Whether a map of so many channels fills neither words nor columns."""
    return bool(channels % config.rows or channels % config.cols)


def alike(layers: list) -> list:
    """Sets of maps that must be packed alike: a layer's residual, its output and, where it keeps pixels, its input."""
    sets: dict[str, set] = {}
    for layer in layers:
        names = {layer.target} | ({layer.residual} - {None}) | (set(layer.sources) if keeps_pixels(layer) else set())
        for name in tuple(names):
            names |= sets.get(name, set())
        sets.update(dict.fromkeys(names, names))
    return list({id(group): group for group in sets.values()}.values())


def _estimate(config: EngineConfig, layer: Layer, batch: int) -> int:
    """Cycles of a layer, roughly."""
    source = Source(tuple(tensor_layout(config, "workspace", (count, *layer.in_shape[1:]), layer.in_format, batch)
                          for count in layer.source_channels))
    target = tensor_layout(config, "workspace", layer.out_shape, layer.out_format, batch)
    planes = source.groups * source.digits
    if uses_unit(config, layer) or layer.groups > 1:
        planes, tiles = source.digits * config.planes_per_tile, 0
        passes = planes * config.accumulators_per_pixel
    else:
        passes, tiles = _passes(config, layer, source.digits)
    layer = skip_rows(layer, source.row_beats)
    weights = 0 if tiles <= config.weight_slots else tiles * config.tile_beats
    return tile_with_cost(TileTask(config, layer, source, target, -(-passes // planes), planes, weights,
                                   most_images=batch)).cycles


def _passes(config: EngineConfig, layer: Layer, in_digits: int) -> tuple:
    """(passes of an output group, weight tiles of the layer): those of tiles that are not all zeros, phases alike."""
    digits = len(split_weights(layer.weight, f"layer {layer.name}", layer.phases > 1, config.weight_min, config.weight_max,
                               config.radix_bits))
    live = layer.weight.reshape(layer.phases, -1, *layer.weight.shape[1:]) != 0
    rows = range(0, live.shape[2], config.rows)
    most = tiles = 0
    for first in range(0, live.shape[1], config.tile_channels):
        own = 0
        for start in range(first, min(live.shape[1], first + config.tile_channels), config.cols):
            group = live[:, start:start + config.cols].any(axis=1)  # phase, channel, kernel_y, kernel_x
            counts = sum(group[:, row:row + config.rows].any(axis=1).sum(axis=(1, 2)) for row in rows)
            own += layer.phases * int(counts.max())
        most, tiles = max(most, own), tiles + own
    return most * digits * in_digits, tiles * digits
