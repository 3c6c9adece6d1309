"""Weight tiles and the requantizer's constants, as they lie in the weights region."""

from dataclasses import dataclass, replace

import numpy as np

from esbflow.compiler.digits import split_weights
from esbflow.compiler.errors import CompileError
from esbflow.compiler.layout import channel_groups
from esbflow.compiler.lower import Layer
from esbflow.engine_config import AXI_BEAT_BITS, TABLE_INPUTS, EngineConfig
from esbflow.engine_facts import (
    BOOK_ENTRY_BITS,
    LEVEL_ROWS,
    TAP_ENTRY_BITS,
    array_offset,
    book_entry,
    burst_lengths,
    dot_largest,
    tap_entry,
)
from esbflow.numbers import ESB
from esbflow.requantizer import SILENT_SHIFT, constant_fields, fold

BEAT_BYTES = AXI_BEAT_BITS // 8


@dataclass(frozen=True)
class WeightPass:
    """One pass of an output group: the tile's beat offset and what the PASS instruction needs to know of it."""

    offset: int
    plane: int  # input plane: channel group * digits + digit
    tap_y: int
    tap_x: int
    shift: int
    signed: bool
    codebook: int
    accumulator: int = 0  # of those that take turns along a row: phases (packing.py), and in each all of a pixel


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """`groups[g]`: the passes of output group g; `constants[g]`: the beat offset of its constants. `table`: that of the
    function table, if the layer has one."""

    groups: list
    constants: list
    table: int | None = None

    @property
    def tiles(self) -> int:
        """Different weight tiles of the layer."""
        return len({weight_pass.offset for passes in self.groups for weight_pass in passes})

    @property
    def digits(self) -> float:
        """Passes of each word of the input and tap, on average: the weights' digits."""
        return sum(map(len, self.groups)) / sum(
            len({(p.plane, p.tap_y, p.tap_x, p.accumulator) for p in passes}) for passes in self.groups)


class WeightsRegion:
    """Collects tiles and constants; `bytes()` is the region's content."""

    def __init__(self, config: EngineConfig):
        self._config = config
        self._parts: list[np.ndarray] = []
        self._beats = 0
        self._taps: dict = {}
        self._tables: dict = {}

    def _append(self, data: np.ndarray) -> int:
        """A port brings an equal part of every burst, one after the other in memory: beats k, k + ports, ... to port k."""
        offset, ports, beats = self._beats, self._config.weight_ports, data.reshape(-1, BEAT_BYTES)
        start = 0
        for length in burst_lengths(offset, len(beats), self._config.max_burst * ports):
            piece = beats[start:start + length]
            self._parts.append(piece.reshape(-1, ports, BEAT_BYTES).transpose(1, 0, 2).reshape(-1))
            start += length
        self._beats += data.size // BEAT_BYTES
        return offset

    def bytes(self) -> np.ndarray:
        """uint8 (bytes,), the region as it lies in memory."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, dtype=np.uint8)

    def tile(self, codes: np.ndarray) -> int:
        """Store a (cols, rows) tile of codes, low nibble first. Returns its beat offset.

        Code c*rows + r for the shift-add array; group by group of four rows, (r // 4 * cols + c)*4 + r % 4, for tables.
        """
        if self._config.array == "table":
            codes = codes.reshape(self._config.cols, -1, TABLE_INPUTS).transpose(1, 0, 2)
        flat = codes.reshape(-1).astype(np.uint8)
        packed = flat[0::2] | flat[1::2] << 4
        padded = np.zeros(self._config.tile_beats * BEAT_BYTES, dtype=np.uint8)
        padded[:packed.size] = packed
        return self._append(padded)

    def taps(self, taps: np.ndarray) -> int:
        """Store taps (channels, TAPS) of the channel unit, 64 bits a channel and 5 bits a tap; equal ones once.

        Returns their beat offset.
        """
        places = np.uint64(TAP_ENTRY_BITS) * np.arange(taps.shape[1], dtype=np.uint64)
        words = (tap_entry(self._config, taps).astype(np.uint64) << places).sum(axis=1, dtype=np.uint64)
        content = words.astype("<u8").tobytes()
        if content not in self._taps:
            self._taps[content] = self._append(np.frombuffer(content, dtype=np.uint8))
        return self._taps[content]

    def table_of(self, layer: Layer) -> int | None:
        """Store a layer's function table, if it has one; equal ones once. Returns its beat offset.

        Row r has entries 4r to 4r + 3, a byte each. Every weight port brings its part of a row in the lowest bits of a beat.
        """
        if layer.lookup is None:
            return None
        parts = (layer.lookup.table & 255).astype(np.uint8).reshape(LEVEL_ROWS * self._config.weight_ports, -1)
        content = parts.tobytes()
        if content not in self._tables:
            beats = np.zeros((len(parts), BEAT_BYTES), dtype=np.uint8)
            beats[:, :parts.shape[1]] = parts
            self._tables[content] = self._append(beats)
        return self._tables[content]

    def constants(self, values: dict) -> int:
        """Store one beat for each channel; `values` as esbflow.requantizer.fold gives them, none of them negative."""
        words, low = [0] * self._config.tile_channels, 0
        for name, bits in constant_fields(self._config):
            if name in values:
                words = [word | int(value) << low for word, value in zip(words, values[name], strict=True)]
            low += bits
        return self._append(np.frombuffer(b"".join(word.to_bytes(BEAT_BYTES, "little") for word in words), dtype=np.uint8))


def pack_layer(config: EngineConfig, region: WeightsRegion, layer: Layer, in_digits: int, in_signed: bool,
               residual: tuple | None = None) -> LayerWeights:
    """Cut a layer's weights into tiles; fold what the array's dots have too much, and the lanes' offsets, into b.

    residual : (bits, signed) of the residual as it is stored, where the layer has one.

    A tile of nothing but zeros adds nothing, so it is left out; one is kept where an output group has no other, since its
    accumulators must be overwritten. All phases take as many tiles, since the constants are the same for all. With fewer
    columns than rows each accumulator of a pixel has tiles, and constants, of its own.

    Raises
    ------
    CompileError
        if an accumulator, the corrected b, or the shift of the highest digits does not fit the engine, or the engine was
        built without what the layer's requantizer needs.
    """
    check_requantizer(config, layer)
    rows, cols = config.rows, config.cols
    per_group, out_channels = layer.weight.shape[1], layer.weight.shape[0] // layer.phases
    digits = split_weights(layer.weight, f"layer {layer.name}", layer.groups > 1 or layer.phases > 1, config.weight_min,
                           config.weight_max, config.radix_bits)
    check_shifts(config, layer, digits, in_digits)

    groups, constants = [], []
    live = [digit.values != 0 for digit in digits]
    books = [(_codebook(config, digit.book), digit.padding_code) for digit in digits]
    in_groups = channel_groups(layer.source_channels, rows)
    for first in range(0, out_channels, config.tile_channels):
        found: list[tuple] = []  # (phase, turn, place)
        for turn, start in enumerate(range(first, min(out_channels, first + config.tile_channels), cols)):
            outputs = [range(phase * out_channels + start, phase * out_channels + min(out_channels, start + cols))
                       for phase in range(layer.phases)]
            own = [_tiles(live, wanted, in_groups, per_group, layer.weight.shape[0] // layer.groups) for wanted in outputs]
            if layer.phases > 1:
                own = _as_many(own)
            found += [(phase, turn, place) for phase, places in enumerate(own) for place in places]
        passes, sums = [], [Sums(config.tile_channels) for _ in range(layer.phases)]
        # By input group: what is loaded first is used first.
        for phase, turn, place in sorted(found, key=lambda entry: (entry[2].group, *entry[:2])):
            digit, (codebook, padding_code) = digits[place.digit], books[place.digit]
            tile = np.full((cols, rows), padding_code, dtype=np.uint8)
            if not place.spare:
                channel_out, channel_in, row_at = place.block
                column = channel_out - (phase * out_channels + first + turn * cols)
                tile[column, row_at] = digit.codes[channel_out, channel_in, place.tap_y, place.tap_x]
            offset = region.tile(tile)
            # One tile serves all digits of the activations, and stays in the array from one to the next.
            for d in range(in_digits):
                signed, shift = in_signed and d == in_digits - 1, digit.shift + config.digit_bits * d
                passes.append(WeightPass(offset=offset, plane=place.group * in_digits + d, tap_y=place.tap_y,
                                         tap_x=place.tap_x, shift=shift // config.shift_step, signed=signed,
                                         codebook=codebook, accumulator=phase * config.accumulators_per_pixel + turn))
                values = digit.book[tile]
                sums[phase].add(slice(turn * cols, (turn + 1) * cols), array_offset(config, values, signed),
                                _reach(config, values), shift)
        groups.append(passes)
        constants.append(Sums.of_phases(sums).store(config, region, layer, first, residual))
    return LayerWeights(groups, constants, region.table_of(layer))


def check_requantizer(config: EngineConfig, layer: Layer) -> None:
    """Refuse a layer that needs a part of the requantizer that the engine was built without."""
    if layer.residual is not None and not config.residual:
        raise CompileError(f"layer {layer.name}: engine {config.name} is built without a residual operand (residual = "
                           "false); use an engine with one, or a network without additions")
    if layer.lookup is not None and not config.function_table:
        raise CompileError(f"layer {layer.name}: its result is looked up in a function table ({layer.lookup.name}) and "
                           f"engine {config.name} is built without one (function_table = false); use an engine with one, as "
                           "function_table: true in an engine's .json makes it, or a network whose only activation is the "
                           "ReLU")
    if isinstance(layer.rounded_format, ESB) and not config.esb_output:
        raise CompileError(f"layer {layer.name}: engine {config.name} is built without ESB output (esb_output = false) "
                           f"and the layer gives {layer.rounded_format}; use an engine with it, or u4, s4, u8 or s8")


def check_shifts(config: EngineConfig, layer: Layer, digits: list, in_digits: int) -> None:
    """Refuse a layer whose highest digits need more shift than the accumulators have."""
    highest = max(digit.shift for digit in digits) + config.digit_bits * (in_digits - 1)
    if highest > config.largest_shift * config.shift_step:
        raise CompileError(f"layer {layer.name}: weights of {len(digits)} digits times activations of {in_digits} "
                           f"need larger shifts than engine {config.name} has; use fewer weight bits")


class Sums:
    """Of the accumulators of one output group: what they have too much, and how far they can reach."""

    def __init__(self, channels: int):
        self._too_much, self._reach = np.zeros(channels, dtype=np.int64), np.zeros(channels, dtype=np.int64)

    def add(self, channels: slice, too_much, reach, shift: int) -> None:
        """Take in a pass that adds to some of the tile's channels."""
        self._too_much[channels] += too_much << shift
        self._reach[channels] += reach << shift

    @classmethod
    def of_phases(cls, sums: list) -> "Sums":
        """Of accumulators whose passes differ, but not in what they have too much."""
        whole = cls(len(sums[0]._reach))
        whole._too_much, whole._reach = sums[0]._too_much, np.maximum.reduce([own._reach for own in sums])
        assert all(np.array_equal(own._too_much, whole._too_much) for own in sums)
        return whole

    def store(self, config: EngineConfig, region: WeightsRegion, layer: Layer, first: int, residual: tuple | None) -> int:
        """Store the constants of the group from channel `first` on, offsets folded into b. Returns their beat offset."""
        _check_accumulator(config, layer, int(self._reach.max()))
        values = {name: np.zeros(config.tile_channels, dtype=np.int64) for name in "mnsb"}
        if config.requantizer == "shift":  # has no m of zero
            values["s"][:] = SILENT_SHIFT
        for name in "mnsb":
            own = getattr(layer.requantizer, name)[first:first + config.tile_channels]
            values[name][:len(own)] = own
        # Channels that are not there get constants too, so that zeros are stored for them.
        return region.constants(fold(config, values["m"], values["n"], values["s"],
                                     values["b"] - values["m"] * self._too_much, layer.rounded_format, residual))


def _codebook(config: EngineConfig, book: np.ndarray) -> int:
    """The codebook field of a PASS: entry i in bits 5i..5i+4."""
    return sum(book_entry(config, int(value)) << BOOK_ENTRY_BITS * i for i, value in enumerate(book))


def _reach(config: EngineConfig, tile: np.ndarray) -> np.ndarray:
    """An upper bound of each column's dots with a tile."""
    if config.array == "shiftadd" and config.weight_planes[1]:
        return config.largest_digit * np.abs(tile).sum(axis=1)
    if config.array == "table":
        # Entries of a table lie above the offset by what its positive weights add.
        return array_offset(config, tile, False) + config.largest_digit * np.maximum(tile, 0).sum(axis=1)
    return np.full(len(tile), dot_largest(config))


@dataclass(frozen=True, eq=False)
class _Place:
    """A tile of some output channels: input group, tap and digit; `block` as `_block` gives it. `spare`: all zeros."""

    group: int
    block: tuple
    tap_y: int
    tap_x: int
    digit: int
    spare: bool = False


def _tiles(live, outputs, in_groups, per_group, out_per_group) -> list:
    """The places of the tiles of some output channels.

    live : for each digit where the weights have one that is not zero, bool (out, per_group, kernel_y, kernel_x).
    """
    found: list[_Place] = []
    spare: list[_Place] = []
    for ig, (channel0, count) in enumerate(in_groups):
        block = _block(outputs, channel0, count, per_group, out_per_group)
        if block is None:
            continue
        channel_out, channel_in, _ = block
        needed = np.stack([used[channel_out, channel_in].any(axis=0) for used in live], axis=-1)
        found += [_Place(ig, block, int(ty), int(tx), int(digit)) for ty, tx, digit in np.argwhere(needed)]
        spare = spare or [_Place(ig, block, 0, 0, 0)]
    return found or spare


def _as_many(phases: list) -> list:
    """The places of all phases, with spare ones where a phase has fewer than another.

    Each begins with one of the first input group, since it must overwrite its accumulators before the next group comes.
    """
    lowest = min((place for own in phases for place in own), key=lambda place: place.group)
    filled = [own if any(place.group == lowest.group for place in own) else [replace(lowest, spare=True), *own]
              for own in phases]
    for digit in {place.digit for own in filled for place in own}:
        counts = [sum(place.digit == digit for place in own) for own in filled]
        filled = [own + [replace(lowest, digit=digit, spare=True)] * (max(counts) - count)
                  for own, count in zip(filled, counts)]
    return filled


def _block(outputs, channel0, count, per_group, out_per_group):
    """Index arrays (output channel, weight's input index, row of the tile) of the tile's real weights, or None."""
    outs = np.asarray(outputs)
    starts = outs // out_per_group * per_group  # first input channel that each output reads
    low = np.maximum(starts, channel0)
    high = np.minimum(starts + per_group, channel0 + count)
    if not np.any(high > low):
        return None
    channels = np.arange(channel0, channel0 + count)
    used = (channels[None, :] >= low[:, None]) & (channels[None, :] < high[:, None])
    which_out, which_row = np.nonzero(used)
    return outs[which_out], channels[which_row] - starts[which_out], which_row


def _check_accumulator(config, layer, worst: int) -> None:
    """Sums only grow, since dots are not negative: the last one bounds them all, whatever the order of passes."""
    bits = worst.bit_length()
    if bits > config.accumulator_width:
        raise CompileError(
            f"layer {layer.name}: its accumulator may need {bits} bits and engine {config.name} has "
            f"{config.accumulator_width}; use fewer bits or channels, or an engine with wider accumulators")
