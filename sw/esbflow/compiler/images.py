"""Raw pixels to the first layer's map: what the load unit of an engine with an image buffer does in place of the host.

The host copies lines of pixels. LOADs bring those that a tile needs, through a table that gives each pixel its level, and
UNFOLDs take bytes of them step by step: a step is a run of up to 16 bytes of one line, which go next to each other into a
word. The steps of one word (or of as many as 16 bytes hold) are the same for all of a map, so they are worked out here.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from esbflow.compiler.errors import CompileError
from esbflow.compiler.fold import Fold
from esbflow.compiler.lower import storage_bits
from esbflow.compiler.transfers import REGION
from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import (
    IMAGE_DESTINATION,
    IMAGE_TABLE_DESTINATION,
    SLOT_BYTES,
    STEP_COUNT,
    STEP_FIELDS,
)
from esbflow.graph.ir import Graph

BEAT_BYTES = AXI_BEAT_BITS // 8
LEVEL_BITS = 8
LINE_LIMIT = 4096
"""Bytes of a line, and rows of an image: bytes and rows are signed fields of 14 and 12 bits, and windows reach beyond."""
ROW_LIMIT = 1024
LOAD_CYCLES = 16
"""What a LOAD takes beyond its beats, roughly."""
PLAIN = Fold(kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), rows=1, first_row=0, row_step=1)
"""A map that is not folded has a pixel in each word."""
BY_HOST = "the host folds: {}"
NO_BUFFER = "engine {} has no image buffer (image_beats = 0)"


class HostFolds(CompileError):
    """Why the load unit cannot make the first layer's map, so that the host does."""


@dataclass(frozen=True)
class Step:
    """As engine_facts.STEP_FIELDS has it."""

    line: int
    y: int
    x: int
    length: int
    place: int
    ends: bool

    def encode(self) -> int:
        """
        >>> hex(Step(line=3, y=1, x=-1, length=2, place=0, ends=True).encode())
        '0x405fff8010003'
        """
        word, low = 0, 0
        for name, bits in STEP_FIELDS:
            word |= (int(getattr(self, name)) & (1 << bits) - 1) << low
            low += bits
        return word


@dataclass(frozen=True)
class RawImage:
    """Images (c, h, w) as they lie in memory: lines of one row, one channel or with all channels of each pixel side by side,
    padded to whole beats.

    tables : one for all channels, or one for each.
    """

    shape: tuple
    channels_last: bool
    tables: int

    @property
    def pixel_bytes(self) -> int:
        """Bytes from a pixel to the next of a line."""
        return self.shape[0] if self.channels_last else 1

    @property
    def planes(self) -> int:
        """How many planes an image has in memory: one, or one a channel."""
        return 1 if self.channels_last else self.shape[0]

    @property
    def width(self) -> int:
        """Bytes of a line."""
        return self.shape[2] * self.pixel_bytes

    @property
    def line_beats(self) -> int:
        """Beats of a line, filled up to whole ones."""
        return -(-self.width // BEAT_BYTES)

    @property
    def beats(self) -> int:
        """Of an image."""
        return self.planes * self.shape[1] * self.line_beats

    def to_meta(self, steps) -> dict:
        """As the program's file has it, with the unfolding `steps`."""
        return {"channels_last": self.channels_last, "pitch": self.line_beats * BEAT_BYTES, "tables": self.tables,
                "steps": [step.encode() for step in steps]}


def said_of_input(program) -> str:
    """Which way a program's images go to the first layer: "raw pixels", or "the host folds: REASON"."""
    meta = program.meta["input"]
    if "raw" in meta:
        return "raw pixels"
    return BY_HOST.format(meta.get("host") or NO_BUFFER.format(program.config.name))


def raw_image(config: EngineConfig, graph: Graph, first, channels_last: bool) -> RawImage:
    """The graph's input as raw lines. `first`: the only layer that reads it, or None.

    Raises
    ------
    HostFolds
        if the load unit cannot take it.
    """
    (channels, height, width), form = graph.input.shape, graph.input.format
    if not config.image_beats:
        raise HostFolds(NO_BUFFER.format(config.name))
    if first is None:
        raise HostFolds("the input is read by several layers, or by one as a residual or beside other maps")
    if storage_bits(form) > LEVEL_BITS:
        raise HostFolds(f"levels of {storage_bits(form)} bits are more than the table's {LEVEL_BITS}")
    tables = len(np.unique(graph.input.table, axis=0))
    if tables > 1 and channels_last:
        raise HostFolds("channels lie side by side and have tables of their own")
    image = RawImage((channels, height, width), channels_last, channels if tables > 1 else 1)
    if image.width >= LINE_LIMIT or height >= ROW_LIMIT:
        raise HostFolds(f"lines of {image.width} bytes or {height} rows are more than UNFOLD counts")
    return image


class PieceLoads(NamedTuple):
    """Fields of the LOADs of lines of the image for rows of the map, and what the UNFOLDs of these rows have in common."""

    loads: list[dict]
    common: dict


@dataclass(frozen=True)
class Unfolding:
    """The steps that make a layer's map.

    groups : (first step, steps) of each channel group;  lines : that the buffer holds of each channel, or of all.
    span : lines from the first to the last that a row of the map needs.
    tall : rows of the map that an image has, where the images of a batch are one map: all, or one of all its lines. Else 0.
    """

    config: EngineConfig
    image: RawImage
    fold: Fold
    tall: int
    steps: tuple
    groups: tuple
    lines: int
    span: int

    @property
    def words(self) -> int:
        """Words that the steps make."""
        return max(1, SLOT_BYTES // self.config.rows)

    def cycles(self, height: int, width: int) -> int:
        """Roughly those of a map."""
        return height * -(-width // self.words) * len(self.steps)

    def load_cycles(self, in0: int, in1: int, chunks: int, side: int) -> int:
        """Roughly those that bring the lines of rows [in0, in1) of a map, without its row step, for a tile of so many
        chunks, of which `side` lie side by side. Nothing is unfolded meanwhile. Lines that fit come once for all."""
        lines = self._lines(in0, in1, 1)
        cycles = self.image.planes * (lines * self.image.line_beats + LOAD_CYCLES)
        return chunks * cycles if lines > self.lines else cycles // side

    def pieces(self, in0: int, in1: int, row_step: int):
        """(first row, end) of as many rows of the map as the buffer holds the lines for."""
        first = in0
        for end in range(in0 + 1, in1 + 1):
            if end == in1 or self._lines(first, end + 1, row_step) > self.lines:
                yield first, end
                first = end

    def _lines(self, first: int, end: int, row_step: int) -> int:
        if self.tall:
            return (end - first) * self.span
        low, high = self.rows_of(first, end, row_step)
        return high - low

    def rows_of(self, first: int, end: int, row_step: int) -> tuple[int, int]:
        """(first row of the image that rows of the map need, end); one at least."""
        fold, height = self.fold, self.image.shape[1]
        step = fold.row_step * row_step
        low = fold.first_row + first * step
        high = fold.first_row + (end - 1) * step + self.span
        low = min(max(low, 0), height - 1)
        return low, max(min(high, height), low + 1)

    def table_load(self, number: int, images: int) -> dict:
        """The LOAD that brings a table, and the steps with it."""
        return dict(region=REGION["input"], offset=images * self.image.beats + number * STEP_COUNT, beats=STEP_COUNT,
                    segments=1, destination=IMAGE_TABLE_DESTINATION)

    def piece(self, image: int, rows: tuple, row_step: int, window: tuple, images: int) -> PieceLoads:
        """(LOADs of the lines that rows [first, end) of the map need, what all UNFOLDs of these rows have in common).

        window : (first column, words of a row) of the map.
        """
        first, end = rows
        raw, fold = self.image, self.fold
        if self.tall:
            spans = []
            for number in range(first // self.tall, -(-end // self.tall)):
                low, high = (max(edge - number * self.tall, 0) for edge in (first, end))
                high = min(high, self.tall)
                spans.append((number, low, low + (high - low) * self.span, (number * self.tall + low - first) * self.span))
            place = dict(line=0, row_beats=self.span * raw.line_beats, y=0, y_step=0)
        else:
            low, high = self.rows_of(first, end, row_step)
            step = fold.row_step * row_step
            y = fold.first_row + first * step
            spans = [(image, low, high, 0)]
            place = dict(line=(y - low) * raw.line_beats & 0xFFFF, row_beats=step * raw.line_beats & 0xFFFF, y=y,
                         y_step=step)
        loads = []
        for plane in range(raw.planes):
            if raw.tables > 1:
                loads.append(self.table_load(plane, images))
            loads += [dict(region=REGION["input"], beats=(high - low) * raw.line_beats, segments=1,
                           offset=number * raw.beats + (plane * raw.shape[1] + low) * raw.line_beats,
                           destination=IMAGE_DESTINATION, address=(plane * self.lines + at) * raw.line_beats)
                      for number, low, high, at in spans]
        step = fold.stride[1] * raw.pixel_bytes
        return PieceLoads(loads, dict(
            place, height=raw.shape[1], width=raw.width, rows=end - first, groups=window[1] // self.words,
            x=window[0] * step - fold.padding[1] * raw.pixel_bytes, x_step=self.words * step))


def unfolding(config: EngineConfig, image: RawImage, fold: Fold | None, stacked: bool) -> Unfolding:
    """How the load unit makes the map that `fold` describes.

    Raises
    ------
    HostFolds
        if its lines or its steps do not fit.
    """
    fold = fold or PLAIN
    reach = (fold.rows - 1) * fold.dilation[0] + 1
    lines = config.image_beats // (image.planes * image.line_beats)
    span = min(reach, image.shape[1]) if stacked else reach
    if lines < min(span, image.shape[1]):
        raise HostFolds(f"the lines of one row, {min(span, image.shape[1]) * image.planes} of {image.line_beats} beats, do "
                        f"not fit the image buffer of {config.image_beats}")
    words, rows = max(1, SLOT_BYTES // config.rows), config.rows
    sources = _sources(image, fold, lines)
    steps: list[Step] = []
    groups = []
    for first in range(0, len(sources), rows):
        word = sources[first:first + rows]
        word += [None] * (rows - len(word))
        shift = fold.stride[1] * image.pixel_bytes
        own = _steps([source and (*source[:2], source[2] + number * shift) for number in range(words) for source in word])
        groups.append((len(steps), len(own)))
        steps += own
    if len(steps) > STEP_COUNT:
        raise HostFolds(f"its words take {len(steps)} steps and the load unit holds {STEP_COUNT}")
    tall = (image.shape[1] if fold is PLAIN else 1) if stacked else 0
    return Unfolding(config, image, fold, tall, tuple(steps), tuple(groups), lines, span)


def _sources(image: RawImage, fold: Fold, lines: int) -> list:
    """(beat, row, byte) of each channel of the map, from where its pixel's window begins."""
    channels, columns = image.shape[0], fold.kernel[1]
    dy, dx = fold.dilation
    places = [(plane, row, column) for plane in range(channels) for row in range(fold.rows) for column in range(columns)]
    if image.channels_last:
        places = [(plane, row, column) for row in range(fold.rows) for column in range(columns) for plane in range(channels)]
        return [(row * dy * image.line_beats, row * dy, column * dx * channels + plane) for plane, row, column in places]
    return [((plane * lines + row * dy) * image.line_beats, row * dy, column * dx) for plane, row, column in places]


def _steps(sources: list) -> list:
    """The fewest steps that put these bytes next to each other; None is a zero. Their number is a multiple of a slot's."""
    steps: list[Step] = []
    at = ended = 0  # bytes that steps have reached; complete slots
    while at < len(sources) or ended < len(sources) // SLOT_BYTES:
        slot_end = (ended + 1) * SLOT_BYTES
        while at < min(slot_end, len(sources)) and sources[at] is None:
            at += 1
        if at >= slot_end or at >= len(sources):
            # Nothing more comes into this slot.
            if steps and not steps[-1].ends:
                steps[-1] = replace(steps[-1], ends=True)
            else:
                steps.append(Step(0, 0, 0, 0, 0, True))
            ended += 1
            continue
        line, y, x = sources[at]
        length = 1
        while length < SLOT_BYTES and at + length < len(sources) and sources[at + length] == (line, y, x + length):
            length += 1
        ends = at + length >= slot_end
        steps.append(Step(line, y, x, length, at % SLOT_BYTES, ends))
        at += length
        ended += ends
    return steps
