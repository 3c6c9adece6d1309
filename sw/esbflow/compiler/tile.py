"""Cut each layer's output into tiles that fit the accumulators and buffers."""

import math
from dataclasses import dataclass

from esbflow.compiler.errors import CompileError
from esbflow.compiler.images import Unfolding
from esbflow.compiler.layout import Source, TensorLayout
from esbflow.compiler.lower import Layer
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import load_tail
from esbflow.instructions import INSTRUCTION_BEATS

ROW_LIMIT = 1023
"""Rows and columns of a tile and of its input are 10-bit fields."""
MORE_TILES = 8
"""Tile heights tried beyond the tallest that fits: small first and last tiles hide loads and stores."""
MORE_HALVINGS = 2
"""How often a width that fits is halved to see whether narrower tiles take less."""


@dataclass(frozen=True)
class Span:
    """Along one axis: outputs [out0, out1) after the pool, convolution outputs [conv0, conv1), inputs [in0, in1)."""

    out0: int
    out1: int
    conv0: int
    conv1: int
    in0: int
    in1: int


@dataclass(frozen=True)
class Tiling:
    """Tiles are the product of row spans and column spans; `planes_at_once` input planes fit half a buffer."""

    rows: tuple
    cols: tuple
    planes_at_once: int


def span(layer: Layer, axis: int, out0: int, out1: int, conv_size: int, in_size: int) -> Span:
    """What outputs [out0, out1) need, cut to the map."""
    pool = layer.pool
    conv0 = max(0, out0 * pool.stride[axis] - pool.padding[axis])
    conv1 = min(conv_size, (out1 - 1) * pool.stride[axis] - pool.padding[axis] + pool.kernel[axis])
    step = layer.phases if axis else 1  # whole steps of a pass
    first, last = conv0 // step, -(-conv1 // step)
    stride, padding, reach = layer.stride[axis], layer.padding[axis], (layer.kernel[axis] - 1) * layer.dilation[axis]
    in0 = min(max(0, first * stride - padding), in_size - 1)
    in1 = max(min(in_size, (last - 1) * stride - padding + reach + 1), in0 + 1)
    return Span(out0, out1, first * step, last * step, in0, in1)


def _cut(size: int, step: int) -> list:
    return [(start, min(size, start + step)) for start in range(0, size, step)]


def heights(layer: Layer, images: int) -> tuple:
    """(rows of the convolution, rows of its input) that are tiled together: of all images where they are stacked."""
    count = images if layer.stacked else 1
    return count * layer.conv_shape[1], count * layer.in_shape[1]


def tile(*arguments) -> Tiling:
    """The tiles of `tile_with_cost`."""
    return tile_with_cost(*arguments)[1]


def tile_with_cost(config: EngineConfig, layer: Layer, source: Source, target: TensorLayout, passes_per_plane: int,
                   heights: tuple, planes: int, weight_beats: int = 0, raw: Unfolding | None = None) -> tuple:
    """(cycles, Tiling): tiles chosen by an estimate of first load + passes, weights, loads or drains + last drain.

    weight_beats : what each tile of outputs brings of weights: none where the slots hold all of the layer's.

    heights : (conv rows, input rows) of the map, which for a stacked linear layer is that of the whole batch.
    passes_per_plane : passes that each input plane takes for one group of output channels.
    planes : input planes (channel groups x digits) that a tile needs at most.
    raw : how the load unit makes the input from raw pixels, if it does: all digits of a word together.

    Raises
    ------
    CompileError
        if not even one output pixel's window fits the activation buffer, saying so.
    """
    if layer.repeat != (1, 1):
        return 0, _repeated(config, layer, source, target, planes)
    conv_height, in_height = heights
    conv_width, in_width = layer.conv_shape[2], layer.in_shape[2]
    out_height = layer.out_shape[1] * (target.images if layer.stacked else 1)
    words, best = config.words_per_beat, None
    width = target.width
    # Tiles begin with a beat of the target and with a whole step of the passes.
    grain = math.lcm(words, layer.phases // math.gcd(layer.phases, layer.pool.stride[1]))
    if layer.phases > 1 and layer.pool.padding[1]:
        grain = width
    shared = any(kernel > stride for kernel, stride in zip(layer.pool.kernel, layer.pool.stride))
    halvings = 0
    while True:
        step = min(width, target.width)
        columns = _columns(layer, step, target.width, conv_width, in_width)
        candidate = _best_rows(config, layer, columns, out_height, conv_height, in_height, source, target,
                               passes_per_plane, planes, weight_beats, raw)
        if candidate is not None and (best is None or candidate[0] < best[0]):
            best = candidate
        # Narrower tiles may be so much taller that pools share fewer rows between them.
        if step <= grain or (best is not None and halvings == MORE_HALVINGS * shared):
            break
        halvings += best is not None
        width = -(-(step // 2) // grain) * grain
    if best is None:
        raise CompileError(
            f"layer {layer.name}: the window of one row of outputs does not fit the engine's buffers "
            f"({config.activation_beats} beats a half, {config.tile_pixels} accumulators); "
            "use a larger engine or a smaller kernel")
    return best


def _repeated(config, layer, source, target, planes) -> Tiling:
    """Tiles of one row of the map each, with as many of its columns as fit, every one taken several times."""
    (down, across), words = layer.repeat, config.words_per_beat
    rows = tuple(Span(y * down, (y + 1) * down, y, y + 1, y, y + 1) for y in range(source.height))
    outputs = min(config.tile_pixels, ROW_LIMIT // words * words)
    inputs = config.activation_beats // config.beats_per_word * words
    width = target.width
    if width > min(outputs, inputs * across):
        # Parts begin with a beat of the target and with a column of the map, perhaps in the middle of a beat of that.
        step = math.lcm(words, across)
        width = min(outputs, (inputs - words) * across) // step * step
    if width == 0:
        raise CompileError(f"layer {layer.name}: repeating a column {across} times does not fit the engine's "
                           f"{config.tile_pixels} accumulators; use a larger engine, or several smaller factors")
    cols = tuple(Span(x0, x1, x0, x1, x0 // across, x1 // across) for x0, x1 in _cut(target.width, width))
    plane_beats = max(_plane_beats(config, rows[0], column, source, words, len(cols) == 1) for column in cols)
    return Tiling(rows, cols, _at_once(config, plane_beats, planes, source.digits))


def _at_once(config, plane_beats, planes, digits) -> int:
    """How many planes of a tile half a buffer takes; all digits of its channels, so that a weight tile meets them."""
    count = min(planes, config.activation_beats // plane_beats)
    return count - count % digits if count > digits else count


def _columns(layer, step, out_width, conv_width, in_width) -> tuple:
    return tuple(span(layer, 1, x0, x1, conv_width, in_width) for x0, x1 in _cut(out_width, step))


def window_words(column: Span, words: int, pitch: int, whole: bool) -> tuple:
    """(first column, words) of the buffer window: whole beats, or the whole row with its padding."""
    if whole:
        return 0, pitch
    first = column.in0 // words * words
    return first, -(-(column.in1 - first) // words) * words


def _best_rows(config, layer, columns, out_height, conv_height, in_height, source, target, passes_per_plane, planes,
               weight_beats, raw):
    words = config.words_per_beat
    whole = len(columns) == 1
    together = source.digits if raw else 1
    tallest = None
    for height in range(out_height, 0, -1):
        if _fits(config, layer, columns, height, out_height, conv_height, in_height, source, words, whole, together):
            tallest = height
            break
    if tallest is None:
        return None
    best = None
    fewest = -(-out_height // tallest)
    for count in range(fewest, min(out_height, fewest + MORE_TILES) + 1):
        height = -(-out_height // count)
        rows = tuple(span(layer, 0, y0, y1, conv_height, in_height) for y0, y1 in _cut(out_height, height))
        plane_beats = max(_plane_beats(config, row, column, source, words, whole)
                          for row in rows for column in columns)
        tiling = Tiling(rows, columns, _at_once(config, plane_beats, planes, source.digits))
        cost = _cost(config, layer, tiling, plane_beats, planes, passes_per_plane, source, target, weight_beats, raw)
        if best is None or cost < best[0]:
            best = (cost, tiling)
    return best


def _plane_beats(config, row, column, source, words, whole):
    _, window = window_words(column, words, source.pitch, whole)
    return (row.in1 - row.in0) * (window // words) * config.beats_per_word


def _fits(config, layer, columns, height, out_height, conv_height, in_height, source, words, whole, together) -> bool:
    for y0, y1 in _cut(out_height, height):
        row = span(layer, 0, y0, y1, conv_height, in_height)
        for column in columns:
            conv_rows, conv_cols = row.conv1 - row.conv0, column.conv1 - column.conv0
            if conv_rows * conv_cols > config.tile_pixels or max(conv_rows, conv_cols) > ROW_LIMIT:
                return False
            if max(row.in1 - row.in0, window_words(column, words, source.pitch, whole)[1]) > ROW_LIMIT:
                return False
            if together * _plane_beats(config, row, column, source, words, whole) > config.activation_beats:
                return False
            if layer.residual is not None:
                pitch = -(-conv_cols // words)
                if (config.planes_per_tile * conv_rows * pitch * config.beats_per_word > config.residual_beats):
                    return False
    return True


def _cost(config, layer, tiling, plane_beats, planes, passes_per_plane, source, target, weight_beats, raw) -> int:
    """Cycles, roughly: what cannot be hidden and, of each tile, the longest of compute, weights, load, drains and fetch."""
    out_groups = -(-layer.conv_shape[0] // config.tile_channels)
    images = 1 if layer.stacked else target.images
    shortest = config.tile_load_cycles + load_tail(config) + 4
    total = last_drain = 0
    reloads = 1 if planes <= tiling.planes_at_once else out_groups
    weights = (weight_beats + out_groups * config.tile_channels) // config.weight_ports  # with the constants
    for row in tiling.rows:
        for column in tiling.cols:
            pixels = (row.conv1 - row.conv0) * (column.conv1 - column.conv0)
            compute = out_groups * planes * passes_per_plane * max(pixels // layer.phases, shortest)
            whole = len(tiling.cols) == 1
            load = config.slices_per_port * reloads * planes * _plane_beats(
                config, row, column, source, config.words_per_beat, whole)
            if raw:
                window = window_words(column, config.words_per_beat, source.pitch, whole)[1]
                chunks = reloads * -(-planes // tiling.planes_at_once)
                load = reloads * raw.cycles(row.in1 - row.in0, window) + raw.load_cycles(
                    row.in0, row.in1, chunks, len(tiling.cols))
            words = (row.out1 - row.out0) * (column.out1 - column.out0)
            last_drain = (words * layer.pool.kernel[0] * layer.pool.kernel[1] * target.digits
                          * config.tile_channels // config.requantize_lanes)
            fetch = INSTRUCTION_BEATS * out_groups * (planes * passes_per_plane + 2)
            total += max(compute, weights, load, out_groups * last_drain, fetch)
    first_load = config.slices_per_port * min(planes, tiling.planes_at_once) * plane_beats
    if raw:
        first_load = raw.cycles(tiling.rows[0].in1 - tiling.rows[0].in0, source.pitch)
    return images * total + first_load + last_drain
