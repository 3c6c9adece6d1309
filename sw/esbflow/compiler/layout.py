"""Where tensors lie in memory. The order is (channel group, digit, image, row, column)."""

from dataclasses import dataclass
from typing import NamedTuple

from esbflow.compiler.lower import storage_bits
from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.numbers import Format
from esbflow.registers import MAPS


@dataclass(frozen=True)
class TensorLayout:
    """A tensor in `region`, from beat `offset`; a row of `width` words takes `pitch` words, whole beats.

    An image has `rows` rows in memory, the map's behind the first `first_row` of them. They begin `row_stride` beats apart.
    """

    region: str
    offset: int
    channels: int
    height: int
    width: int
    images: int
    groups: int
    digits: int
    signed: bool
    pitch: int
    row_beats: int
    words_per_beat: int
    beats_per_word: int
    first_row: int
    rows: int
    row_stride: int

    @property
    def plane_beats(self) -> int:
        """Beats from one (channel group, digit) plane to the next."""
        return self.images * self.rows * self.row_stride

    @property
    def contiguous(self) -> bool:
        """Whether there is nothing between one row and the next."""
        return self.row_stride == self.row_beats

    @property
    def beats(self) -> int:
        """128-bit beats of the tensor: all channel groups and digits."""
        return self.groups * self.digits * self.plane_beats

    @property
    def bytes(self) -> int:
        """Bytes of the tensor in memory."""
        return self.beats * AXI_BEAT_BITS // 8

    def beat(self, plane: int, image: int, row: int, column: int) -> int:
        """Beat offset in the region of a pixel that begins a beat; the map's first row is row 0."""
        place = image * self.rows + self.first_row + row
        assert column % self.words_per_beat == 0 and 0 <= place < self.images * self.rows
        inside = place * self.row_stride + column // self.words_per_beat * self.beats_per_word
        return self.offset + plane * self.plane_beats + inside


class Place(NamedTuple):
    """A pixel's place in memory: the name of its region, and the 128-bit beat in it."""

    region: str
    beat: int


class PlanePlace(NamedTuple):
    """A plane's place among the parts of a tensor: the number of the part, and the channel group in it."""

    part: int
    group: int


@dataclass(frozen=True)
class Source:
    """What a layer reads: the planes of a tensor, or of several of the same format and size one after the other.

    column_step : columns of the tensors from one that is loaded to the next, which is this map's next column. Above 1 a word
        must be whole beats.
    """

    parts: tuple
    column_step: int = 1

    @property
    def groups(self) -> int:
        """Channel groups of all parts together."""
        return sum(part.groups for part in self.parts)

    @property
    def digits(self) -> int:
        """Digits of a value."""
        return self.parts[0].digits

    @property
    def signed(self) -> bool:
        """Whether values have a sign."""
        return self.parts[0].signed

    @property
    def height(self) -> int:
        """Rows of a map."""
        return self.parts[0].height

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return -(-self.parts[0].width // self.column_step)

    @property
    def pitch(self) -> int:
        """Words that a row takes in the activation buffer."""
        return self.parts[0].pitch if self.column_step == 1 else self.width

    @property
    def row_beats(self) -> int:
        """Beats that a row takes there."""
        return self.parts[0].row_beats if self.column_step == 1 else self.width * self.parts[0].beats_per_word

    @property
    def contiguous(self) -> bool:
        """Whether rows follow each other without a gap, in every part."""
        return self.column_step == 1 and all(part.contiguous for part in self.parts)

    def beat(self, plane: int, image: int, row: int, column: int) -> Place:
        """(region, beat offset in it) of a pixel that begins a beat."""
        number = self.find(plane).part
        part = self.parts[number]
        first = sum(p.groups * p.digits for p in self.parts[:number])
        return Place(part.region, part.beat(plane - first, image, row, column * self.column_step))

    def row_stride(self, plane: int) -> int:
        """Beats from one row of a plane to the next."""
        return self.parts[self.find(plane).part].row_stride

    def find(self, plane: int) -> PlanePlace:
        """(number of the part, channel group in it) of a plane."""
        for number, part in enumerate(self.parts):
            if plane < part.groups * part.digits:
                return PlanePlace(number, plane // part.digits)
            plane -= part.groups * part.digits
        raise IndexError(plane)


def channel_groups(source_channels: tuple, rows: int) -> list:
    """(first channel, channels) of each group of up to `rows` channels that a layer reads; each part begins a group.

    >>> channel_groups((20, 3), 16)
    [(0, 16), (16, 4), (20, 3)]
    """
    groups, first = [], 0
    for channels in source_channels:
        groups += [(first + k, min(rows, channels - k)) for k in range(0, channels, rows)]
        first += channels
    return groups


def tensor_layout(config: EngineConfig, region: str, shape: tuple, form: Format, images: int,
                  offset: int = 0) -> TensorLayout:
    """The layout of a (c, h, w) tensor of `images` images, without gaps.

    >>> from esbflow.engines import ENGINES
    >>> from esbflow.numbers import Unsigned
    >>> layout = tensor_layout(ENGINES["base16x16"], "workspace", (20, 12, 13), Unsigned(4), 2)
    >>> layout.groups, layout.pitch, layout.row_beats, layout.plane_beats
    (2, 14, 7, 168)
    """
    channels, height, width = shape
    words = config.words_per_beat
    pitch = -(-width // words) * words
    return TensorLayout(
        region=region, offset=offset, channels=channels, height=height, width=width, images=images,
        groups=-(-channels // config.rows), digits=max(1, storage_bits(form) // config.digit_bits),
        signed=bool(form.min < 0 or form.signed),
        pitch=pitch, row_beats=pitch // words * config.beats_per_word,
        words_per_beat=words, beats_per_word=config.beats_per_word, first_row=0, rows=height,
        row_stride=pitch // words * config.beats_per_word)


def place(layers: list, layouts: dict) -> dict:
    """Give every tensor of the workspace an offset; memory is used again after a tensor's last reader. Outputs lie one
    behind the other in their region. Maps on chip have their places already.

    `layouts` maps tensor -> TensorLayout. A tensor may take the place of one whose last reader is an earlier layer:
    loads are carried out in order, so no load of an earlier layer follows a store of a later one.
    """
    last_use, made = {}, {}
    for i, layer in enumerate(layers):
        made[layer.target] = i
        for source in (*layer.sources, layer.residual):
            if source is not None:
                last_use[source] = i
    placed: dict[str, int] = {}
    busy: list[tuple] = []  # (offset, end, last use)
    end = 0
    for i, layer in enumerate(layers):
        layout = layouts[layer.target]
        if layout.region == MAPS:
            continue
        if layout.region == "output":
            placed[layer.target], end = end, end + layout.beats
            continue
        busy = [entry for entry in busy if entry[2] >= i]
        offset = 0
        for start, behind, _ in sorted(busy):
            if offset + layout.beats <= start:
                break
            offset = max(offset, behind)
        busy.append((offset, offset + layout.beats, last_use.get(layer.target, i)))
        placed[layer.target] = offset
    return placed
