"""Layers, tiles and weight passes -> instructions, with the tokens that order the units.

Instructions stand in an order in which every wait is answered by an earlier post, so the engine cannot lock up;
loads of the next tile are moved before the passes of this one wherever that stays true.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, takewhile

from esbflow.compiler.channels import ChannelPass, columns
from esbflow.compiler.lower import Layer, rounding_fields
from esbflow.compiler.planned_layer import PlannedLayer
from esbflow.compiler.store_tokens import StoreTokens
from esbflow.compiler.stripes import pages, steps
from esbflow.compiler.tile import Span, window_words
from esbflow.compiler.transfers import REGION, row_transfers
from esbflow.compiler.weights import WeightPass
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import BOOKS, LEVEL_ROWS, MOST_DIGITS, MOST_RESIDUAL_DIGITS, RESIDUAL_PLANE, TABLE_DESTINATION
from esbflow.instructions import encode
from esbflow.registers import LOG_BEATS

PART_BEATS = 96
"""What a load brings at least before its passes begin, and leaves to the next one."""
LAYER_LIMIT = 4095
RESIDUAL_BANKS = 2
"""One is added from while the next operand is loaded into the other."""


@dataclass(eq=False)
class _Chunk:
    """Passes that share one half of the activation buffer, and the drains between them."""

    plan: PlannedLayer
    image: int
    row: Span
    col: Span
    planes: list
    groups: list  # output groups computed from this chunk
    first: bool  # first chunk of its output groups
    last: bool

    @property
    def residuals(self) -> list:
        """Output groups whose residual operands are loaded with this chunk, in the order of their drains."""
        return self.groups if self.first and self.plan.residual is not None else []

    @property
    def images(self) -> int:
        """Whose maps are in it, from `image` on."""
        return min(self.plan.tiling.images, self.plan.target.images - self.image)


@dataclass(eq=False)
class _Part:
    """What is loaded at once: planes of a chunk that its passes come to before any others, or its residual operand."""

    chunk: _Chunk
    index: int  # of the chunk
    planes: list  # empty for the residual
    address: int = 0  # first beat in the half
    begins: bool = False  # the chunk's first
    group: int = 0  # output group of the residual


@dataclass
class _State:
    stores: StoreTokens
    words: list = field(default_factory=list)
    drains: int = 0  # gives bank and constants bank
    drained: int = 0  # of their tokens that constants are free, so many were taken
    table: int | None = None  # beat offset of the function table's content
    passes_begun: int = 0
    begun: set = field(default_factory=set)  # accumulators of a step that a pass of this output group has overwritten
    residuals: int = 0
    residual_loads: int = 0
    tiles: int = 0  # weight tiles loaded
    freed: deque = field(default_factory=deque)  # slots that are free again, in the order of their tokens
    slots: dict = field(default_factory=dict)  # resident tiles: beat offset -> slot
    uses: Counter = field(default_factory=Counter)  # and how often the layer's passes will yet take them from there
    books: list = field(default_factory=lambda: [None] * BOOKS)  # codebooks in the array
    last_book: int = 0
    lines: list | None = None  # LOADs of the raw pixels that the image buffer has now


def emit(config: EngineConfig, plans: list, log_pages: int = 0) -> list:
    """The program as 256-bit integers, one STAMP after each layer and END at last.

    log_pages : from one slice's log to the next one's, beside SLICE_BYTES.
    """
    state = _State(StoreTokens(config))
    work = [chunk for plan in plans for chunk in _chunks(plan)]
    parts_of = [list(_parts(config, chunk, i)) for i, chunk in enumerate(work)]
    parts = [part for own in parts_of for part in own]
    loaded = 0

    def load_until(limit):
        nonlocal loaded
        while loaded < len(parts) and parts[loaded].index < limit:
            needed = _needed(config, state, parts[loaded])
            if needed is None or (not parts[loaded].planes and state.residual_loads == state.residuals + RESIDUAL_BANKS):
                break
            _emit_load(config, state, parts[loaded], needed)
            loaded += 1

    for i, chunk in enumerate(work):
        if i == 0 or work[i - 1].plan is not chunk.plan:
            state.uses.update(_uses(takewhile(partial(_of_plan, chunk.plan), islice(work, i, None))))
        # Chunk i+1 goes ahead of chunk i's passes if what it reads has been ordered to be stored before, or its planes one
        # by one behind the drains that make them.
        load_until(i + 2)
        assert (loaded == len(parts) or parts[loaded].index > i or not parts[loaded].planes), \
            "a chunk reads what no earlier drain has stored"
        _emit_passes(config, state, parts_of[i], partial(load_until, i + 2))
        if i + 1 == len(work) or work[i + 1].plan is not chunk.plan:
            log = LOG_BEATS * chunk.plan.number
            state.words.append(encode("STAMP", layer=chunk.plan.number, region=REGION["log"], offset=log,
                                      apart=log_pages))
            state.slots.clear()
            state.uses.clear()
    state.words.append(encode("END", layer=work[-1].plan.number))
    return state.words


def _chunks(plan: PlannedLayer):
    layer, tiling, target = plan.layer, plan.tiling, plan.target
    planes = plan.source.groups * plan.source.digits
    needed = [sorted({p.plane for p in passes}) for passes in plan.weights.groups]
    everything = sorted(set().union(*needed))
    images = 1 if layer.stacked else target.images
    for image in range(0, images, tiling.images):
        for row in tiling.rows:
            for col in tiling.cols:
                if len(everything) <= tiling.planes_at_once:
                    yield _Chunk(plan, image, row, col, everything, list(range(len(needed))), True, True)
                    continue
                for group, own in enumerate(needed):
                    parts = [own[k:k + tiling.planes_at_once] for k in range(0, len(own), tiling.planes_at_once)]
                    for k, part in enumerate(parts):
                        yield _Chunk(plan, image, row, col, part, [group], k == 0, k == len(parts) - 1)
    assert planes >= len(everything)


def _parts(config: EngineConfig, chunk: _Chunk, index: int):
    """A chunk's loads. Its passes take one token each, so a part ends where they go from planes to later ones for good."""
    plan = chunk.plan
    touched = list(dict.fromkeys(p.plane for _, passes in _own_passes(chunk) for p, _ in passes))
    whole = len(plan.tiling.cols) == 1
    _, window = window_words(chunk.col, config.words_per_beat, plan.source.pitch, whole)
    beats = chunk.images * (chunk.row.in1 - chunk.row.in0) * (window // config.words_per_beat) * config.beats_per_word
    start = 0
    for end in range(1, len(touched) + 1):
        enough = min(end - start, len(touched) - end) * beats >= PART_BEATS
        if ((enough and plan.unfolding is None) or end == len(touched)) and set(touched[:end]) == set(chunk.planes[:end]):
            yield _Part(chunk, index, chunk.planes[start:end], start * beats, start == 0)
            start = end
    for group in chunk.residuals:
        yield _Part(chunk, index, [], group=group)


def _needed(config: EngineConfig, state: _State, part: _Part):
    """Store tokens that this part's loads need, or None while what it reads is not yet ordered to be stored."""
    chunk, plan = part.chunk, part.chunk.plan
    if part.planes:
        step, (above, taken, _) = plan.layer.row_step, steps(plan.layer)
        rows = chunk.row.in0 * step - above, (chunk.row.in1 - 1) * step + 1 - above
        return _needed_of(state, chunk, plan.layer.sources, plan.source, part.planes, rows, taken * step)
    assert plan.residual is not None
    first, digits = part.group * config.planes_per_tile, plan.residual.digits
    planes = range(first * digits, min(plan.residual.groups, first + config.planes_per_tile) * digits, digits)
    return _needed_of(state, chunk, (plan.layer.residual,), plan.residual, planes, (chunk.row.conv0, chunk.row.conv1),
                      steps(plan.layer).made)


def _needed_of(state: _State, chunk: _Chunk, names: tuple, source, planes, rows: tuple, apart: int) -> int | None:
    """`StoreTokens.needed` of all images of a chunk."""
    most = 0
    for image in range(chunk.image, chunk.image + chunk.images):
        needed = state.stores.needed(chunk.plan.layer, names, source, planes, image, rows, apart)
        if needed is None:
            return None
        most = max(most, needed)
    return most


def _emit_load(config: EngineConfig, state: _State, part: _Part, needed: int) -> None:
    chunk, plan = part.chunk, part.chunk.plan
    wait = state.stores.take(needed)
    if part.planes and plan.unfolding is not None:
        return _emit_unfolds(config, state, part)
    if not part.planes:
        return _emit_residual_load(config, state, part, wait)
    whole = len(plan.tiling.cols) == 1
    above, taken, _ = steps(plan.layer)
    window = window_words(chunk.col, config.words_per_beat, plan.source.pitch, whole)
    transfers = list(row_transfers(config, plan.source, part.planes, chunk.image, (chunk.row.in0, chunk.row.in1, above),
                                   window, whole, part.address, plan.layer.row_step, taken, chunk.images))
    for k, transfer in enumerate(transfers):
        state.words.append(encode(
            "LOAD", layer=plan.number, destination=part.index & 1, **transfer,
            wait_free=int(k == 0 and part.begins and part.index >= 2), post_full=int(k == len(transfers) - 1),
            wait_stores=wait if k == 0 else 0))


def _emit_unfolds(config: EngineConfig, state: _State, part: _Part) -> None:
    """The planes of a chunk, all at once, from lines of raw pixels."""
    chunk, plan, number = part.chunk, part.chunk.plan, part.chunk.plan.number
    raw, digits = plan.unfolding, plan.source.digits
    assert raw is not None and part.planes == [plane - plane % digits + k for plane in part.planes[::digits]
                                               for k in range(digits)]
    images, span = plan.source.parts[0].images, (chunk.row.in0, chunk.row.in1)
    window = window_words(chunk.col, config.words_per_beat, plan.source.pitch, len(plan.tiling.cols) == 1)
    row_beats = window[1] // config.words_per_beat * config.beats_per_word
    plane_step = (span[1] - span[0]) * row_beats
    if raw.image.tables == 1 and state.lines is None:
        state.words.append(encode("LOAD", layer=number, **raw.table_load(0, images)))
    free = part.index >= 2
    for first, end in raw.pieces(*span, plan.layer.row_step):
        loads, common = raw.piece(chunk.image, (first, end), plan.layer.row_step, window, images)
        fresh = loads != state.lines  # tiles side by side, and chunks of a tile, have the same
        state.lines = loads
        for k, load in enumerate(loads if fresh else []):
            state.words.append(encode("LOAD", layer=number, **load, post_full=int(k == len(loads) - 1)))
        for k, plane in enumerate(part.planes[::digits]):
            step, steps = raw.groups[plane // digits]
            state.words.append(encode(
                "UNFOLD", layer=number, half=part.index & 1, first=step, steps=steps, digits=digits, plane_step=plane_step,
                address=k * digits * plane_step + (first - span[0]) * row_beats, **common, wait_free=int(free),
                wait_image=int(fresh and k == 0), post_full=int(end == span[1] and k == len(part.planes) // digits - 1)))
            free = False


def _emit_residual_load(config, state, part, wait) -> None:
    chunk, plan, residual = part.chunk, part.chunk.plan, part.chunk.plan.residual
    bank = state.residual_loads & 1
    words = config.words_per_beat
    first = part.group * config.planes_per_tile
    groups = range(first, min(residual.groups, first + config.planes_per_tile))
    whole = chunk.col.conv0 == 0 and chunk.col.conv1 == residual.width
    window = (chunk.col.conv0, -(-(chunk.col.conv1 - chunk.col.conv0) // words) * words)
    for digit in range(residual.digits):
        planes = [group * residual.digits + digit for group in groups]
        transfers = list(row_transfers(config, residual, planes, chunk.image, (chunk.row.conv0, chunk.row.conv1, 0), window,
                                       whole, apart=steps(plan.layer).made, images=chunk.images))
        for k, transfer in enumerate(transfers):
            last = digit == residual.digits - 1 and k == len(transfers) - 1
            state.words.append(encode(
                "LOAD", layer=plan.number, destination=2 + 2 * bank + (digit & 1),
                **{**transfer, "address": transfer["address"] + RESIDUAL_PLANE * (digit >> 1)},
                wait_free=int(digit == 0 and k == 0 and state.residual_loads >= RESIDUAL_BANKS), post_full=int(last),
                wait_stores=wait if digit == 0 and k == 0 else 0))
    state.residual_loads += 1


def _emit_passes(config: EngineConfig, state: _State, parts: list, drained) -> None:
    """The passes of the chunk that these parts bring, and its drains; after each of those calls `drained`."""
    chunk, half = parts[0].chunk, parts[0].index & 1
    plan, layer = chunk.plan, chunk.plan.layer
    whole = len(plan.tiling.cols) == 1
    first_col, window = window_words(chunk.col, config.words_per_beat, plan.source.pitch, whole)
    in_rows = chunk.images * (chunk.row.in1 - chunk.row.in0)
    place = {plane: k * in_rows * window for k, plane in enumerate(chunk.planes)}
    arrived = set()
    for group, passes in _own_passes(chunk):
        for k, (weight_pass, keep) in enumerate(passes):
            opens = chunk.first and k == 0
            if opens:
                state.begun = set()
            overwrites = weight_pass.accumulator not in state.begun
            state.begun.add(weight_pass.accumulator)
            arrives = weight_pass.plane not in arrived
            if arrives:
                arrived.update(next(part.planes for part in parts if weight_pass.plane in part.planes))
            very_last = group == chunk.groups[-1] and k == len(passes) - 1
            slot, fresh, frees = (0, False, False) if keep else _slot(config, state, plan, weight_pass)
            if opens:
                state.passes_begun += 1
            opcode, own_fields = _own_fields(state, layer, weight_pass, keep, window)
            state.words.append(encode(
                opcode, layer=plan.number, **_pixels(chunk, weight_pass, place[weight_pass.plane], first_col, window),
                half=half, bank=state.drains & 1, acc_first=weight_pass.accumulator,
                acc_gap=layer.phases * config.accumulators_per_pixel - 1, slot=slot,
                shift=weight_pass.shift, signed=int(weight_pass.signed), first=int(overwrites), keep=int(keep),
                wait_weights=int(fresh), wait_activations=int(arrives),
                wait_accumulators=int(opens and state.passes_begun > 2), post_weights=int(frees),
                post_activations=int(very_last), post_accumulators=int(chunk.last and k == len(passes) - 1), **own_fields,
                **(dict(images=chunk.images) if config.batch_tiles else {})))
        if chunk.last:
            channels = min(config.tile_channels, layer.conv_shape[0] - group * config.tile_channels)
            expected = layer.phases * -(-channels // config.cols)
            assert len(state.begun) == expected, "an accumulator is not overwritten"
            _emit_drain(config, state, chunk, group)
            drained()


def _own_passes(chunk: _Chunk):
    """For each output group the passes that read the chunk's planes, and whether each keeps the weights before it."""
    for group in chunk.groups:
        passes = [p for p in chunk.plan.weights.groups[group] if p.plane in chunk.planes]
        yield group, [(p, k > 0 and passes[k - 1].offset == p.offset) for k, p in enumerate(passes)]


def _uses(chunks) -> Counter:
    """How many passes of some chunks load the weights at each beat offset."""
    return Counter(weight_pass.offset for chunk in chunks for _, passes in _own_passes(chunk)
                   for weight_pass, keep in passes if not keep)


def _of_plan(plan: PlannedLayer, chunk: _Chunk) -> bool:
    return chunk.plan is plan


def _own_fields(state: _State, layer: Layer, weight_pass: WeightPass, keep: bool, window: int) -> tuple:
    """(PASS or CHANNEL, the fields that only that has)."""
    if isinstance(weight_pass, ChannelPass):
        return "CHANNEL", dict(
            tap_rows=weight_pass.tap_rows, tap_cols=weight_pass.tap_cols, tap_step_y=layer.dilation[0],
            tap_step=layer.dilation[0] * window, gap=columns(layer).gap, maximum=int(layer.maximum), part=weight_pass.part)
    book, load_book = (0, False) if keep else _book(state, weight_pass.codebook)
    return "PASS", dict(book=book, load_book=int(load_book), codebook=weight_pass.codebook if load_book else 0)


def _pixels(chunk: _Chunk, weight_pass: WeightPass, place: int, first_col: int, window: int) -> dict:
    """Which words of the buffer a pass takes: those of the plane at `place`, whose rows have `window` words from column
    `first_col` on."""
    layer, row, col = chunk.plan.layer, chunk.row, chunk.col
    if layer.repeat[1] > 1:
        # One row of the map: its columns are the rows of the walk, each of them taken several times.
        inputs = col.in1 - col.in0
        return dict(rows=inputs, cols=layer.repeat[1], in_rows=inputs, in_cols=1, stride_y=1, stride_x=0, y=0, x=0,
                    address=place + col.in0 - first_col, row_step=1)
    above, taken, _ = steps(layer)
    y = row.conv0 * layer.stride[0] + weight_pass.tap_y * layer.dilation[0] - layer.padding[0] - row.in0
    x = col.conv0 // layer.phases * layer.stride[1] + weight_pass.tap_x * layer.dilation[1] - layer.padding[1] - first_col
    cols, step = (col.conv1 - col.conv0) // layer.phases, layer.stride[1]
    if isinstance(weight_pass, ChannelPass):
        step, cols = columns(layer).step, columns(layer).count(cols, weight_pass.tap_cols)
    own = dict(y=y, in_rows=row.in1 - row.in0)
    if layer.stripe is not None:  # rows count from the whole map's first one
        own = dict(y=y + row.in0 - above, in_rows=layer.stripe.height, stripe=taken)
    # After an image's last row: the next image.
    row_step = layer.stride[0] * window if row.conv1 - row.conv0 > 1 or chunk.images == 1 else (row.in1 - row.in0) * window
    return dict(rows=row.conv1 - row.conv0, cols=cols, in_cols=min(chunk.plan.source.width, first_col + window) - first_col,
                stride_y=layer.stride[0], stride_x=step, x=x, address=place + y * window + x,
                row_step=row_step, **own)


def _book(state: _State, codebook: int) -> tuple:
    """(place of a codebook in the array, must the pass bring it); it takes the place of the one used less lately."""
    load = codebook not in state.books
    book = 1 - state.last_book if load else state.books.index(codebook)
    state.books[book], state.last_book = codebook, book
    return book, load


def _slot(config: EngineConfig, state: _State, plan: PlannedLayer, weight_pass: WeightPass) -> tuple:
    """(slot, does the pass wait for a fresh tile, does it free the slot); emits the tile's load if there is one."""
    if plan.resident and weight_pass.offset in state.slots:
        slot, fresh = state.slots[weight_pass.offset], False
    else:
        # A wait takes the token of the slot that was freed first, which need not be the one that was filled first.
        slot, fresh = state.tiles if state.tiles < config.weight_slots else state.freed.popleft(), True
        beats = config.tap_beats if isinstance(weight_pass, ChannelPass) else config.tile_beats
        state.words.append(encode(
            "WEIGHTS", layer=plan.number, region=REGION["weights"], offset=weight_pass.offset, beats=beats,
            segments=1, destination=0, address=slot * config.tile_beats,
            wait_free=int(state.tiles >= config.weight_slots), post_full=1))
        state.tiles += 1
        state.slots[weight_pass.offset] = slot
    state.uses[weight_pass.offset] -= 1
    frees = not plan.resident or not state.uses[weight_pass.offset]
    if frees:
        state.freed.append(slot)
    return slot, fresh, frees


def _waits(state: _State, drains: int) -> int:
    """1 if a load must wait until so many drains are over, which takes the token of the last of them."""
    waits = state.drained < drains
    assert drains - state.drained <= 1
    state.drained += waits
    return int(waits)


def _emit_drain(config: EngineConfig, state: _State, chunk: _Chunk, group: int) -> None:
    plan, layer, target = chunk.plan, chunk.plan.layer, chunk.plan.target
    number = state.drains
    words = config.words_per_beat
    loads_table = layer.lookup is not None and state.table != plan.weights.table
    state.words.append(encode(
        "WEIGHTS", layer=plan.number, region=REGION["weights"], offset=plan.weights.constants[group],
        beats=config.tile_channels, segments=1, destination=1 + (number & 1), address=0, wait_free=_waits(state, number - 1),
        post_full=int(not loads_table)))
    if loads_table:
        assert plan.weights.table is not None
        # The token of the constants stands for the table too. It is free once the drain before this one is over.
        state.words.append(encode(
            "WEIGHTS", layer=plan.number, region=REGION["weights"], offset=plan.weights.table,
            beats=LEVEL_ROWS * config.weight_ports, segments=1, destination=TABLE_DESTINATION, address=0,
            wait_free=_waits(state, number), post_full=1))
        state.table = plan.weights.table

    out_rows = chunk.images * (chunk.row.out1 - chunk.row.out0)
    out_cols = -(-(chunk.col.out1 - chunk.col.out0) // words) * words
    row_beats = out_cols // words * config.beats_per_word
    whole = len(plan.tiling.cols) == 1 and target.contiguous
    first_group = group * config.planes_per_tile
    pool = layer.pool
    posts = state.stores.drained(plan, chunk.image, chunk.row, group)
    residual = {}
    if plan.residual is not None:
        assert state.residuals < state.residual_loads, "a drain's residual operand is not loaded"
        residual = dict(residual=1, residual_bank=state.residuals & 1, residual_signed=int(plan.residual.signed),
                        residual_digits=plan.residual.digits % MOST_RESIDUAL_DIGITS)
        state.residuals += 1
    state.words.append(encode(
        "DRAIN", layer=plan.number, region=REGION[target.region],
        offset=target.beat(first_group * target.digits, chunk.image, chunk.row.out0, chunk.col.out0),
        acc_rows=chunk.images * (chunk.row.conv1 - chunk.row.conv0), acc_cols=chunk.col.conv1 - chunk.col.conv0,
        out_rows=out_rows, out_cols=out_cols,
        kernel_y=pool.kernel[0], kernel_x=pool.kernel[1], stride_y=pool.stride[0], stride_x=pool.stride[1],
        # A row that is stored several times: beyond the tile's only row, windows clamp to it.
        pad_y=chunk.row.conv0 - (chunk.row.out0 // layer.repeat[0] * pool.stride[0] - pool.padding[0]),
        pad_x=chunk.col.conv0 - (chunk.col.out0 * pool.stride[1] - pool.padding[1]),
        digits=target.digits % MOST_DIGITS, planes=min(config.planes_per_tile, target.groups - first_group),
        plane_stride=target.digits * target.plane_beats, digit_stride=target.plane_beats,
        segments=1 if whole else out_rows, segment_beats=row_beats * (out_rows if whole else 1),
        segment_stride=target.row_stride, apart=pages(steps(layer).made * target.row_stride), bank=number & 1,
        constants=number & 1, **rounding_fields(layer.rounded_format), **residual, post_store=int(posts),
        table=int(layer.lookup is not None)))
    state.drains += 1
