"""Pass 5: weight tiles and the requantizer's constants, as they lie in the weights region."""

from dataclasses import dataclass

import numpy as np

from esbflow.compiler.digits import ones_complement_loss, split_weights
from esbflow.compiler.errors import CompileError
from esbflow.compiler.layout import channel_groups
from esbflow.compiler.lower import Layer
from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.graph.ir import B_BITS
from esbflow.numbers import ESB
from esbflow.requantizer import FACTOR_BITS, fold

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


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """`groups[g]`: the passes of output group g; `constants[g]`: the beat offset of its constants."""

    groups: list
    constants: list

    @property
    def tiles(self) -> int:
        return len({weight_pass.offset for passes in self.groups for weight_pass in passes})


class WeightsRegion:
    """Collects tiles and constants; `bytes()` is the region's content."""

    def __init__(self, config: EngineConfig):
        self._config = config
        self._parts, self._beats = [], 0

    def _append(self, data: np.ndarray) -> int:
        offset = self._beats
        self._parts.append(data)
        self._beats += data.size // BEAT_BYTES
        return offset

    def bytes(self) -> np.ndarray:
        return np.concatenate(self._parts) if self._parts else np.zeros(0, dtype=np.uint8)

    def tile(self, codes: np.ndarray) -> int:
        """Store a (cols, rows) tile of codes; code c*rows + r, low nibble first. Returns its beat offset."""
        flat = codes.reshape(-1).astype(np.uint8)
        packed = flat[0::2] | flat[1::2] << 4
        padded = np.zeros(self._config.tile_beats * BEAT_BYTES, dtype=np.uint8)
        padded[:packed.size] = packed
        return self._append(padded)

    def constants(self, m, n, s, b) -> int:
        """Store one beat for each channel: m and n 12 bit, s 6 bit at bit 24, b (folded, not negative) from bit 32 on."""
        mask = (1 << FACTOR_BITS) - 1
        low = (m & mask) | (n & mask) << FACTOR_BITS | s << 24 | (b & 0xFFFFFFFF) << 32
        words = np.zeros((len(m), 2), dtype=np.uint64)
        words[:, 0] = low.astype(np.uint64)
        words[:, 1] = (b >> 32).astype(np.uint64)
        return self._append(np.frombuffer(words.astype("<u8").tobytes(), dtype=np.uint8))


def pack_layer(config: EngineConfig, region: WeightsRegion, layer: Layer, in_digits: int, in_signed: bool,
               residual: tuple | None = None) -> LayerWeights:
    """Cut a layer's weights into tiles, correct b for the array's one's complements, and fold the lanes' offsets into it.

    residual : (digits, signed) of the residual as it is stored, where the layer has one.

    A tile of nothing but zeros adds nothing, so it is left out; one is kept where an output group has no other, since its
    accumulators must be overwritten.

    Raises
    ------
    CompileError
        if an accumulator, the corrected b, or the shift of the highest digits does not fit the engine, or the engine was
        built without what the layer's requantizer needs.
    """
    _check_requantizer(config, layer)
    rows, cols = config.rows, config.cols
    out_channels, per_group = layer.weight.shape[:2]
    out_per_group = out_channels // layer.groups
    digits = split_weights(layer.weight, f"layer {layer.name}", with_zero=layer.groups > 1)
    highest = max(digit.position for digit in digits) + in_digits - 1
    if highest > 3:
        raise CompileError(f"layer {layer.name}: weights of {len(digits)} digits times activations of {in_digits} "
                           "need more than the engine's 3 digit positions; use fewer weight bits")
    loss = sum(ones_complement_loss(digit).sum(axis=(1, 2, 3)) for digit in digits)
    # Every activation digit of the layer sees the same negative weights.
    loss = sum(loss << (4 * d) for d in range(in_digits))
    corrected = layer.requantizer.b + layer.requantizer.m * loss
    if np.any((corrected < -(1 << B_BITS - 1)) | (corrected >= 1 << B_BITS - 1)):
        raise CompileError(f"layer {layer.name}: a requantizer offset needs more than {B_BITS} bits")
    _check_accumulator(config, layer, digits, in_digits, in_signed)
    constant = layer.requantizer
    folded = fold(config, constant.m, constant.n, constant.s, corrected, layer.out_format, residual)

    groups, constants = [], []
    live, books = [digit.values != 0 for digit in digits], [(digit.codebook, digit.padding_code) for digit in digits]
    in_groups = channel_groups(layer.source_channels, rows)
    for og in range(-(-out_channels // cols)):
        first, last = og * cols, min(out_channels, (og + 1) * cols)
        passes = []
        for ig, (channel_out, channel_in, row_at), ty, tx, number in _tiles(live, range(first, last), in_groups, per_group,
                                                                            out_per_group):
            digit, codebook, padding_code = digits[number], *books[number]
            tile = np.full((cols, rows), padding_code, dtype=np.uint8)
            tile[channel_out - first, row_at] = digit.codes[channel_out, channel_in, ty, tx]
            offset = region.tile(tile)
            # One tile serves all digits of the activations, and stays in the array from one to the next.
            passes += [WeightPass(
                offset=offset, plane=ig * in_digits + d, tap_y=ty, tap_x=tx, shift=digit.position + d,
                signed=in_signed and d == in_digits - 1, codebook=codebook) for d in range(in_digits)]
        groups.append(passes)
        values = {name: np.zeros(cols, dtype=np.int64) for name in "mnsb"}
        for name, source in (("m", layer.requantizer.m), ("n", layer.requantizer.n), ("s", layer.requantizer.s),
                             ("b", folded)):
            values[name][:last - first] = source[first:last]
        constants.append(region.constants(**values))
    return LayerWeights(groups, constants)


def _tiles(live, outputs, in_groups, per_group, out_per_group) -> list:
    """(input group, index arrays of `_block`, tap_y, tap_x, digit) of the tiles of some output channels.

    live : for each digit where the weights have one that is not zero, bool (out, per_group, kernel_y, kernel_x).
    """
    found, spare = [], []
    for ig, (channel0, count) in enumerate(in_groups):
        block = _block(outputs, channel0, count, per_group, out_per_group)
        if block is None:
            continue
        channel_out, channel_in, _ = block
        needed = np.stack([used[channel_out, channel_in].any(axis=0) for used in live], axis=-1)
        found += [(ig, block, int(ty), int(tx), int(digit)) for ty, tx, digit in np.argwhere(needed)]
        spare = spare or [(ig, block, 0, 0, 0)]
    return found or spare


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


def _check_requantizer(config, layer):
    if layer.residual is not None and not config.residual:
        raise CompileError(f"layer {layer.name}: engine {config.name} is built without a residual operand (residual = "
                           "false); use an engine with one, or a network without additions")
    if isinstance(layer.out_format, ESB) and not config.esb_output:
        raise CompileError(f"layer {layer.name}: engine {config.name} is built without ESB output (esb_output = false) "
                           f"and the layer gives {layer.out_format}; use an engine with it, or u4, s4, u8 or s8")


def _check_accumulator(config, layer, digits, in_digits, in_signed):
    """Bound every partial sum, whatever the order of passes: the array adds ~a for negative weights."""
    reach = np.zeros(layer.weight.shape[0], dtype=np.int64)
    for digit in digits:
        magnitude = np.abs(digit.values).sum(axis=(1, 2, 3)) << (4 * digit.position)
        for d in range(in_digits):
            is_signed = in_signed and d == in_digits - 1
            largest = 8 if is_signed else 16  # |a| and |~a| of a 4-bit digit
            reach += (magnitude << (4 * d)) * largest
    worst = int(reach.max(initial=0))
    bits = worst.bit_length() + 1
    if bits > config.accumulator_width:
        raise CompileError(
            f"layer {layer.name}: its accumulator may need {bits} bits and engine {config.name} has "
            f"{config.accumulator_width}; use fewer bits or channels, or an engine with wider accumulators")
