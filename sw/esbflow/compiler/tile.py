"""Cut each layer's output into tiles that fit the accumulators and buffers."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from esbflow.compiler.errors import CompileError
from esbflow.compiler.images import Unfolding
from esbflow.compiler.layout import Source, TensorLayout
from esbflow.compiler.lower import Layer, skip_columns
from esbflow.engine_config import LARGEST, EngineConfig
from esbflow.engine_facts import SPLIT_CYCLES, load_tail
from esbflow.instructions import IMAGE_FIELDS, INSTRUCTION_BEATS

ROW_LIMIT = 1023
"""Rows and columns of a tile and of its input are 10-bit fields."""
IMAGE_LIMIT = (1 << dict(IMAGE_FIELDS["PASS"])["images"]) - 1
STEP_LIMIT = (1 << 16) - 1
"""A pass's step from a row to the next, in words."""
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
    """Tiles are the product of row spans and column spans; `planes_at_once` input planes fit half a buffer.

    images : whose whole maps are one tile; of what is left of a batch the last tile has fewer.
    """

    rows: tuple
    cols: tuple
    planes_at_once: int
    images: int = 1


class MeasuredTiling(NamedTuple):
    """A Tiling, and the beats of the buffer that its largest plane takes."""

    tiling: Tiling
    plane_beats: int


@dataclass(frozen=True, eq=False)
class TileTask:
    """A layer to cut into tiles, with what it reads and writes.

    passes : passes that each input plane takes for one group of output channels.
    planes : input planes (channel groups x digits) that a tile needs at most.
    weight_beats : what each tile of outputs brings of weights: none where the slots hold all of the layer's.
    raw : how the load unit makes the input from raw pixels, if it does: all digits of a word together.
    most_images : whose maps may be one tile, on engines with `batch_tiles`.
    """

    config: EngineConfig
    layer: Layer
    source: Source
    target: TensorLayout
    passes: int
    planes: int
    weight_beats: int = 0
    raw: Unfolding | None = None
    most_images: int = 1

    @property
    def stack(self) -> int:
        """Maps that are tiled together: a stacked linear layer's whole batch."""
        return self.target.images if self.layer.stacked else 1

    def columns(self, width: int) -> tuple[Span, ...]:
        """Spans of so many outputs."""
        return self._spans(1, self.target.width, width, 1)

    def rows(self, height: int) -> tuple[Span, ...]:
        """Spans of so many rows of outputs, of all stacked maps."""
        return self._spans(0, self.out_height, height, self.stack)

    @property
    def out_height(self) -> int:
        """Rows of outputs of all stacked maps."""
        return self.layer.out_shape[1] * self.stack

    def window(self, column: Span, whole: bool) -> int:
        """Words of a row of the buffer window; `whole` if the tiles have one column."""
        return window_words(column, self.config.words_per_beat, self.source.pitch, whole).words

    def plane_beats(self, row: Span, column: Span, whole: bool) -> int:
        """Beats of the buffer that a plane of a tile takes."""
        words = self.window(column, whole) // self.config.words_per_beat
        return (row.in1 - row.in0) * words * self.config.beats_per_word

    def tiling(self, rows: tuple, cols: tuple, images: int = 1) -> MeasuredTiling:
        """(Tiling, the beats of its largest plane). Half a buffer takes all digits of a tile's channels if it takes those of
        one, so that a weight tile meets them."""
        beats = images * max(self.plane_beats(row, column, len(cols) == 1) for row in rows for column in cols)
        count, digits = min(self.planes, self.config.activation_beats // beats), self.source.digits
        return MeasuredTiling(Tiling(rows, cols, count - count % digits if count > digits else count, images), beats)

    def whole_map(self) -> Span | None:
        """The rows of a whole map, if a pass can go on from an image's last row to the first one of the next image.

        That one must lie where another row of the same image would; and no window of a pool may reach into it.
        """
        layer, pool = self.layer, self.layer.pool
        if (not self.config.batch_tiles or layer.stacked or layer.repeat != (1, 1) or layer.stripe is not None or self.raw
                or pool.padding[0] or pool.kernel[0] > pool.stride[0]):
            return None
        [row] = self.rows(self.out_height)
        height, made = layer.in_shape[1], row.conv1 - row.conv0
        if made != self.out_height * pool.stride[0] or self.source.height != height * layer.row_step:
            return None
        if made * layer.stride[0] != height and (made > 1 or height * self.source.pitch > STEP_LIMIT):
            return None
        return replace(row, in0=0, in1=height)

    def _spans(self, axis: int, size: int, step: int, count: int) -> tuple[Span, ...]:
        conv_size, in_size = count * self.layer.conv_shape[1 + axis], count * self.layer.in_shape[1 + axis]
        return tuple(span(self.layer, axis, start, end, conv_size, in_size) for start, end in _cut(size, step))


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


class WindowWords(NamedTuple):
    """The window of the activation buffer along a row: its first column, and how many words it has."""

    first: int
    words: int


def window_words(column: Span, words: int, pitch: int, whole: bool) -> WindowWords:
    """(first column, words) of the buffer window: whole beats, or the whole row with its padding."""
    if whole:
        return WindowWords(0, pitch)
    first = column.in0 // words * words
    return WindowWords(first, -(-(column.in1 - first) // words) * words)


def tile(task: TileTask) -> Tiling:
    """The tiles of `tile_with_cost`."""
    return tile_with_cost(task).tiling


class TiledTask(NamedTuple):
    """A TileTask, and its tiles."""

    task: TileTask
    tiling: Tiling


def tile_few_columns(task: TileTask) -> TiledTask:
    """(task, Tiling): as `tile`, where columns that no window reads are not loaded if that pays.

    Each row of a plane is a transfer then. The queue of the load unit must hold those of a tile: one that is full would keep
    the passes of the tile before from being dispatched.
    """
    layer = skip_columns(task.layer, task.config)
    if layer.column_step > 1:
        narrow = replace(task, layer=layer, source=replace(task.source, column_step=layer.column_step))
        tiling = tile(narrow)
        rows = tiling.images * max(row.in1 - row.in0 for row in tiling.rows)
        if rows * tiling.planes_at_once <= task.config.queue_depth:
            return TiledTask(narrow, tiling)
    return TiledTask(task, tile(task))


class PricedTiling(NamedTuple):
    """The estimated cycles of a Tiling, and the Tiling."""

    cycles: int
    tiling: Tiling


def tile_with_cost(task: TileTask) -> PricedTiling:
    """(cycles, Tiling): tiles chosen by an estimate of first load + passes, weights, loads or drains + last drain.

    Raises
    ------
    CompileError
        if not even one output pixel's window fits the buffers, saying what it takes and whether an engine has as much.
    """
    config, layer, target, best = task.config, task.layer, task.target, None
    if layer.repeat != (1, 1):
        return PricedTiling(0, _repeated(task))
    # Tiles begin with a beat of the target and with a whole step of the passes.
    grain = math.lcm(config.words_per_beat, layer.phases // math.gcd(layer.phases, layer.pool.stride[1]))
    width = target.width
    if layer.phases > 1 and layer.pool.padding[1]:
        grain = width
    shared = any(kernel > stride for kernel, stride in zip(layer.pool.kernel, layer.pool.stride))
    halvings = 0
    while True:
        step = min(width, target.width)
        candidate = _best_rows(task, task.columns(step))
        if candidate is not None and (best is None or candidate.cycles < best.cycles):
            best = candidate
        # Narrower tiles may be so much taller that pools share fewer rows between them.
        if step <= grain or (best is not None and halvings == MORE_HALVINGS * shared):
            break
        halvings += best is not None
        width = -(-(step // 2) // grain) * grain
    if best is None:
        raise CompileError(_too_large(task, task.columns(min(width, target.width))))
    return _of_images(task, best)


def _of_images(task: TileTask, best: PricedTiling) -> PricedTiling:
    """The best tiling of whole maps of several images, or `best` if none takes less."""
    row = task.whole_map() if task.most_images > 1 else None
    columns = task.columns(task.target.width)
    for images in range(2, min(task.most_images, IMAGE_LIMIT) + 1) if row else ():
        if not _fits(task, (row,), columns, images):
            break
        tiling, plane_beats = task.tiling((row,), columns, images)
        cost = _cost(task, tiling, plane_beats)
        if cost < best.cycles:
            best = PricedTiling(cost, tiling)
    return best


def _too_large(task: TileTask, columns: tuple) -> str:
    """What a row of outputs in these columns takes, what the engine has of it, and if any of as many rows has enough."""
    config, row_pixels, sides, beats, residual = task.config, 0, 0, 0, 0
    for row in task.rows(1):
        for column in columns:
            conv = row.conv1 - row.conv0, column.conv1 - column.conv0
            row_pixels = max(row_pixels, conv[0] * conv[1])
            sides = max(sides, *conv, row.in1 - row.in0, task.window(column, len(columns) == 1))
            beats = max(beats, (task.source.digits if task.raw else 1) * task.plane_beats(row, column, len(columns) == 1))
            residual = max(residual, config.planes_per_tile * conv[0] * -(-conv[1] // config.words_per_beat)
                           * config.beats_per_word if task.layer.residual is not None else 0)
    found, wanted = [], []
    for field, needed, has, scale, what in (
            ("activation_beats", beats, config.activation_beats, 1, "beats of activations"),
            ("accumulator_depth", row_pixels, config.tile_pixels, config.accumulators_per_pixel, "accumulators"),
            ("residual_beats", residual, config.residual_beats, 1, "beats of the residual")):
        if needed > has:
            found.append(f"{needed:,} {what}, and engine {config.name} has {has:,}")
            wanted.append((field, 1 << (needed * scale - 1).bit_length()))
    if sides > ROW_LIMIT:
        found.append(f"{sides:,} pixels of a side, and a tile has at most {ROW_LIMIT:,}")
    fits = sides <= ROW_LIMIT and all(least <= LARGEST[field] for field, least in wanted)
    larger = " and ".join(f"{field} of at least {least}" for field, least in wanted)
    fix = f"use an engine with {larger}, or a smaller kernel" if fits else (
        f"no engine of {config.rows} rows has enough: use a smaller kernel, or try other rows")
    return f"layer {task.layer.name}: the smallest tile takes {'; '.join(found)}; {fix}"


def _repeated(task: TileTask) -> Tiling:
    """Tiles of one row of the map each, with as many of its columns as fit, every one taken several times."""
    config, layer, (down, across), words = task.config, task.layer, task.layer.repeat, task.config.words_per_beat
    rows = tuple(Span(y * down, (y + 1) * down, y, y + 1, y, y + 1) for y in range(task.source.height))
    outputs = min(config.tile_pixels, ROW_LIMIT // words * words)
    inputs = config.activation_beats // config.beats_per_word * words
    width = task.target.width
    if width > min(outputs, inputs * across):
        # Parts begin with a beat of the target and with a column of the map, perhaps in the middle of a beat of that.
        step = math.lcm(words, across)
        width = min(outputs, (inputs - words) * across) // step * step
    if width == 0:
        raise CompileError(f"layer {layer.name}: repeating a column {across} times does not fit the engine's "
                           f"{config.tile_pixels} accumulators; use a larger engine, or several smaller factors")
    cols = tuple(Span(x0, x1, x0, x1, x0 // across, x1 // across) for x0, x1 in _cut(task.target.width, width))
    return task.tiling(rows, cols).tiling


def _best_rows(task: TileTask, columns: tuple) -> PricedTiling | None:
    """(cycles, Tiling) of the best tile height with these columns; None if no row of outputs fits."""
    tallest = next((height for height in range(task.out_height, 0, -1) if _fits(task, task.rows(height), columns)), None)
    if tallest is None:
        return None
    fewest, best = -(-task.out_height // tallest), None
    for count in range(fewest, min(task.out_height, fewest + MORE_TILES) + 1):
        tiling, plane_beats = task.tiling(task.rows(-(-task.out_height // count)), columns)
        cost = _cost(task, tiling, plane_beats)
        if best is None or cost < best.cycles:
            best = PricedTiling(cost, tiling)
    return best


def _fits(task: TileTask, rows: tuple, columns: tuple, images: int = 1) -> bool:
    config, whole = task.config, len(columns) == 1
    together = task.source.digits if task.raw else 1
    for row in rows:
        for column in columns:
            conv_rows, conv_cols = images * (row.conv1 - row.conv0), column.conv1 - column.conv0
            if conv_rows * conv_cols > config.tile_pixels or max(conv_rows, conv_cols) > ROW_LIMIT:
                return False
            if max(images * (row.in1 - row.in0), task.window(column, whole)) > ROW_LIMIT:
                return False
            if together * images * task.plane_beats(row, column, whole) > config.activation_beats:
                return False
            if task.layer.residual is not None:
                pitch = -(-conv_cols // config.words_per_beat)
                if (config.planes_per_tile * conv_rows * pitch * config.beats_per_word > config.residual_beats):
                    return False
    return True


def _cost(task: TileTask, tiling: Tiling, plane_beats: int) -> int:
    """Cycles, roughly: what cannot be hidden and, of each tile, the longest of compute, weights, load, drains and fetch."""
    config, layer, target, planes, raw = task.config, task.layer, task.target, task.planes, task.raw
    out_groups = -(-layer.conv_shape[0] // config.tile_channels)
    images = 1 if layer.stacked else target.images
    whole = len(tiling.cols) == 1
    shortest = config.tile_load_cycles + load_tail(config) + 4
    total = last_drain = 0
    reloads = 1 if planes <= tiling.planes_at_once else out_groups
    weights = (task.weight_beats + out_groups * config.tile_channels) // config.weight_ports  # with the constants
    tiles, rest = divmod(images, tiling.images)
    for number, own in ((tiles, tiling.images), (1, rest)) if rest else ((tiles, tiling.images),):
        for row in tiling.rows:
            for column in tiling.cols:
                pixels = own * (row.conv1 - row.conv0) * (column.conv1 - column.conv0)
                compute = out_groups * planes * task.passes * max(pixels // layer.phases, shortest)
                load = config.slices_per_port * reloads * planes * own * task.plane_beats(row, column, whole)
                if layer.column_step > 1:  # each word is a burst
                    load = load * max(SPLIT_CYCLES, config.beats_per_word) // config.beats_per_word
                if raw:
                    chunks = reloads * -(-planes // tiling.planes_at_once)
                    load = reloads * raw.cycles(row.in1 - row.in0, task.window(column, whole)) + raw.load_cycles(
                        row.in0, row.in1, chunks, len(tiling.cols))
                words = own * (row.out1 - row.out0) * (column.out1 - column.out0)
                last_drain = (words * layer.pool.kernel[0] * layer.pool.kernel[1] * target.digits
                              * config.tile_channels // config.requantize_lanes)
                fetch = INSTRUCTION_BEATS * out_groups * (planes * task.passes + 2)
                total += number * max(compute, weights, load, out_groups * last_drain, fetch)
    first_load = config.slices_per_port * min(planes, tiling.planes_at_once) * plane_beats
    if raw:
        first_load = raw.cycles(tiling.rows[0].in1 - tiling.rows[0].in0, task.source.pitch)
    return total + first_load + last_drain
