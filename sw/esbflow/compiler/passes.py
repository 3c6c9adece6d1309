"""PASSES: what the compiler does to a graph, in order. `run` carries the list out, and docs/program.md prints it.

Each function takes a Compilation to what a module of this folder makes of it. Its docstring is what the page says of it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import NamedTuple

import numpy as np

from esbflow.compiler import bipolar, channels, copies, images, large_pools, layout, on_chip, packing, pools, shifts, stripes
from esbflow.compiler import emit as emission
from esbflow.compiler import fold as folding
from esbflow.compiler import lower as lowering
from esbflow.compiler import tile as tiling
from esbflow.compiler import weights as tiles
from esbflow.compiler.compilation import Compilation
from esbflow.compiler.errors import CompileError
from esbflow.compiler.fold import Fold
from esbflow.compiler.images import HostFolds, RawImage
from esbflow.compiler.layout import Source, tensor_layout
from esbflow.compiler.lower import Layer
from esbflow.compiler.meta import program_meta
from esbflow.compiler.planned_layer import PlannedLayer
from esbflow.compiler.program import Program, instruction_array
from esbflow.compiler.tile import TileTask, tile_with_cost
from esbflow.engine_facts import BEATS_PER_4K
from esbflow.errors import BadValue
from esbflow.registers import LOG_BEATS, MAPS

Finish = Callable[[Compilation], Compilation]
"""All passes behind one, which that pass calls for each of its choices."""


def choose_stripes(state: Compilation, finish: Finish) -> Compilation:
    """On an engine with stripes: whether slices work on [stripes](#stripes) of one image, or on images of their own."""
    if state.stripes is not None or not state.config.stripes:
        return finish(state)
    # Each way lowers the graph anew: a millisecond of the seconds that pools, packing and tiles take, which differ.
    return _faster(finish(replace(state, stripes=False)), finish, replace(state, stripes=True))


def choose_input(state: Compilation, finish: Finish) -> Compilation:
    """On an engine with an image buffer: the load unit makes the first layer's map from raw pixels. Where it cannot, the
    host does, and the program says why."""
    if not state.config.image_beats:
        return finish(replace(state, raw=False))
    try:
        if not state.raw:
            raise HostFolds("it was asked to")
        if state.stripes:
            raise HostFolds("slices work on stripes of one image")
        return finish(state)
    except HostFolds as reason:
        return finish(replace(state, raw=False, host=str(reason)))


def store_bipolar(state: Compilation) -> Compilation:
    """Tensors of -1 and +1 become ternary ones that are never 0. m is 2 or -2 and b odd, so that every sum keeps its sign. A
    sum with a residual takes a layer more."""
    return replace(state, graph=bipolar.store_bipolar(state.graph))


def split_large_pools(state: Compilation) -> Compilation:
    """A max pool over a whole side of 16 to 225 pixels becomes two."""
    return replace(state, graph=large_pools.split_large_pools(state.graph))


def lower(state: Compilation) -> Compilation:
    """Every operator becomes a convolution with a drain. That of a linear layer is as large as its map, with the images of a
    batch one below the other. Those of average pools, additions and requantizations are diagonal. A max pool and a lookup
    that alone follow a layer happen on that layer's way out. See below for concatenations and repeated pixels."""
    return replace(state, layers=lowering.lower(state.graph))


def shift_requantizer(state: Compilation) -> Compilation:
    """For engines with `requantizer="shift"`: factors that are powers of two become signs and shifts, exactly; others are
    refused."""
    return replace(state, layers=[shifts.shift_requantizer(state.config, layer) for layer in state.layers])


def fold_input(state: Compilation) -> Compilation:
    """A first layer with few channels takes its kernel columns, or its whole window, as channels; a linear one all pixels.
    The driver, or the load unit, lays the input out so."""
    graph, config, (first, *more) = state.graph, state.config, state.layers
    readers = [layer for layer in state.layers if graph.input.name in (*layer.sources, layer.residual)]
    if state.raw:
        alone = readers == [first] and first.sources == (graph.input.name,) and first.residual is None
        pixels = images.raw_image(config, graph, first if alone else None, state.channels_last)
        state = replace(state, pixels=pixels)
    if not state.fold or readers != [first]:
        return state
    found = _folder(state)(first, config.rows, config.cols, digit_bits=config.digit_bits)
    return replace(state, first=first, folded=found.fold, layers=[found.layer, *more])


def split_pools(state: Compilation) -> Compilation:
    """A pool with overlapping windows leaves its convolution where computing the rows that tiles share twice costs more than
    a layer for the pool."""
    layers, first = pools.split_pools(state.config, state.layers, state.images, bool(state.stripes)), state.first
    if first is not None:
        # A pool that became a layer of its own is not the first layer's any more.
        first = replace(first, target=layers[0].target, out_shape=layers[0].out_shape, pool=layers[0].pool)
    return replace(state, layers=layers, first=first)


def place_on_unit(state: Compilation) -> Compilation:
    """With a channel unit: layers that keep each channel to itself go there, max pools among them."""
    return replace(state, layers=channels.place_on_unit(state.config, state.layers))


def with_copies(state: Compilation, finish: Finish) -> Compilation:
    """Where rows are more than columns: a copy of a map that cannot be packed, for readers that can."""
    done = finish(state)
    if state.packing is not None:
        return done
    copied = replace(state, layers=copies.with_copies(state.config, state.layers, state.graph.ends))
    if len(copied.layers) > len(state.layers):
        copied = replace(copied, layers=copies.without_idle(copied.layers, state.layers, _packing(copied)))
    if len(copied.layers) > len(state.layers):
        return _faster(done, finish, replace(copied, packing=_packing(copied)))
    return done


def choose_packing(state: Compilation, finish: Finish) -> Compilation:
    """Which maps get [several pixels in a word](#several-pixels-in-a-word): none, those whose estimate is lower so, or those
    of them whose layers took fewer cycles."""
    if state.packing is not None:
        return finish(state)
    chosen = _packing(state)
    plain = best = finish(replace(state, packing={}))
    while chosen:
        try:
            tried = finish(replace(state, packing=chosen))
        except CompileError:
            break
        best = min(best, tried, key=lambda candidate: candidate.cycles.total)
        left = packing.worthwhile(state.layers, chosen, plain.cycles.per_layer, tried.cycles.per_layer)
        if left == chosen:
            break
        chosen = left
    return best


def pack_layers(state: Compilation) -> Compilation:
    """Layers read and make maps that are packed so. Weights become Toeplitz matrices."""
    shapes = {layer.target: layer.out_shape for layer in state.layers}
    folded, layers = packing.pack_layers(state.config, state.layers, state.first, state.folded, state.packing or {},
                                         _folder(state))
    if len(layers) > emission.LAYER_LIMIT:
        raise CompileError(
            f"graph {state.graph.name} has {len(layers)} layers and the engine numbers {emission.LAYER_LIMIT}")
    return replace(state, folded=folded, layers=layers, shapes=shapes)


def unfolding(state: Compilation) -> Compilation:
    """With raw pixels: the steps in which the load unit makes a word of the first layer's map from bytes of lines."""
    if state.pixels is None:
        return state
    return replace(state, unfolding=images.unfolding(state.config, state.pixels, state.folded, state.layers[0].stacked))


def lay_out(state: Compilation) -> Compilation:
    """How words and rows of each tensor lie."""
    graph, of = state.graph, partial(tensor_layout, state.config)
    shape = state.layers[0].in_shape if state.folded else graph.input.shape
    return replace(state, layouts={
        graph.input.name: of("input", shape, graph.input.format, state.images),
        **{layer.target: of("output" if layer.target in graph.ends else "workspace", layer.out_shape, layer.out_format,
                            state.images) for layer in state.layers}})


def cut_stripes(state: Compilation) -> Compilation:
    """With [stripes](#stripes): each layer becomes that of one stripe, and tensors get room above and below."""
    if not state.stripes:
        return state
    config, layouts = state.config, state.layouts
    layers = [stripes.cut(layer, config.slices) for layer in state.layers]
    heights = {name: layout.height for name, layout in layouts.items()}
    found = stripes.spaces(config, layers, heights, {name: layout.row_beats for name, layout in layouts.items()})
    return replace(
        state, layers=[stripes.unstacked(layer, found, heights, state.images) for layer in layers],
        layouts={name: replace(layout, first_row=found[name].first, rows=found[name].rows, row_stride=found[name].pitch)
                 for name, layout in layouts.items()})


def stay_on_chip(state: Compilation) -> Compilation:
    """On engines with `map_beats`: which maps stay in the [map memories](engine.md#maps-on-chip)."""
    if not state.config.map_beats or state.stripes:  # slices with stripes read rows of each other's
        return state
    kept = on_chip.stay_on_chip(state.config, state.layers, state.layouts)
    return replace(state, layouts=state.layouts | {
        name: replace(state.layouts[name], region=MAPS, offset=offset) for name, offset in kept.items()})


def place(state: Compilation) -> Compilation:
    """Where tensors lie; workspace is used again after a tensor's last reader."""
    return replace(state, layouts=state.layouts | {
        name: replace(state.layouts[name], offset=offset)
        for name, offset in layout.place(state.layers, state.layouts).items()})


def pack_weights(state: Compilation) -> Compilation:
    """Integers become the array's digits (`digits.py`), exactly: one digit holds any 16 integers of the array's range, wider
    weights are cut into 4-bit digits of two's complement. Digits become weight tiles, codebooks and constants. The array's
    offsets are taken off b, which holds what the requantizer's lanes leave out, too. For the channel unit (`channels.py`)
    they become taps of blocks of channels."""
    config, region, packed = state.config, tiles.WeightsRegion(state.config), []
    for layer in state.layers:
        source, added = state.source(layer), state.layouts[layer.residual] if layer.residual else None
        pack = channels.pack_channels if channels.uses_unit(config, layer) else tiles.pack_layer
        packed.append(pack(config, region, layer, source.digits, source.signed,
                           (added.digits * config.digit_bits, added.signed) if added else None))
    return replace(state, weights=packed, region=region.bytes())


def choose_images(state: Compilation, finish: Finish) -> Compilation:
    """With batch tiles: whether tiles have [several images](#tiles-of-several-images). `tile.py` sees a layer at a time, but
    the layer behind it then waits for all images of a tile."""
    done = finish(state)
    if all(plan.tiling.images == 1 for plan in done.plans):
        return done
    return _faster(done, finish, replace(state, images_apart=True))


def tile(state: Compilation) -> Compilation:
    """Tiles that fit accumulators and buffers, chosen by an estimate of first load + passes + last drain. Rows and columns
    that no window reads are [left out](#what-a-layer-loads)."""
    config, plans = state.config, []
    for number, (layer, weights) in enumerate(zip(state.layers, state.weights, strict=True)):
        source, on_unit = state.source(layer), channels.uses_unit(config, layer)
        passes = max(len(group) for group in weights.groups) * (channels.columns(layer).gap + 1 if on_unit else 1)
        planes = max(len({p.plane for p in group}) for group in weights.groups)
        layer = lowering.skip_rows(layer, source.row_beats)
        resident = weights.tiles <= config.weight_slots
        beats = 0 if resident else weights.tiles * (config.tap_beats if on_unit else config.tile_beats)
        raw = state.unfolding if number == 0 else None
        task = TileTask(config, layer, source, state.layouts[layer.target], -(-passes // planes), planes, beats, raw,
                        1 if state.stripes or state.images_apart else state.images)
        try:
            task, tiled = (task, tiling.tile(task)) if on_unit or raw else tiling.tile_few_columns(task)
        except CompileError as error:
            raise HostFolds(str(error)) if raw else error from None
        if raw and tiled.planes_at_once % source.digits:
            raise HostFolds("half of the activation buffer does not hold all digits of a tile's channels")
        plans.append(PlannedLayer(
            number=number, layer=task.layer, source=task.source,
            residual=Source((state.layouts[layer.residual],)) if layer.residual else None,
            target=state.layouts[layer.target], tiling=tiled, weights=weights, resident=resident, unfolding=raw))
    return replace(state, plans=plans)


def emit(state: Compilation) -> Compilation:
    """[Instructions](instructions.md), and the tokens that order the units."""
    graph, config = state.graph, state.config
    log_pages = -(-len(state.plans) * LOG_BEATS // BEATS_PER_4K)
    try:
        words = emission.emit(config, state.plans, log_pages if state.stripes else 0)
    except BadValue as error:
        raise CompileError(f"graph {graph.name} does not fit the instructions of engine {config.name}: {error}") from None
    return replace(state, made=Program(meta=program_meta(state), instructions=instruction_array(words), weights=state.region,
                                       table=np.asarray(graph.input.table, dtype=np.int64)))


class Pass(NamedTuple):
    """A step of the compiler: what fits it to a Compilation, the module that does it, and whether it tries programs.

    One that tries carries out all passes behind it for each of its choices, and keeps the fastest program.
    """

    run: Callable[..., Compilation]
    module: ModuleType
    tries: bool = False

    @property
    def name(self) -> str:
        """What pages call it."""
        return self.run.__name__

    @property
    def file(self) -> str:
        """Of this folder, where the work is done."""
        return f"{self.module.__name__.rpartition('.')[2]}.py"

    @property
    def about(self) -> str:
        """What it does, on one line."""
        return " ".join((self.run.__doc__ or "").split())


PASSES = (
    Pass(choose_stripes, stripes, tries=True), Pass(choose_input, images, tries=True),
    Pass(store_bipolar, bipolar), Pass(split_large_pools, large_pools),
    Pass(lower, lowering), Pass(shift_requantizer, shifts), Pass(fold_input, folding), Pass(split_pools, pools),
    Pass(place_on_unit, channels), Pass(with_copies, copies, tries=True), Pass(choose_packing, packing, tries=True),
    Pass(pack_layers, packing), Pass(unfolding, images),
    Pass(lay_out, layout), Pass(cut_stripes, stripes), Pass(stay_on_chip, on_chip), Pass(place, layout),
    Pass(pack_weights, tiles), Pass(choose_images, tiling, tries=True), Pass(tile, tiling), Pass(emit, emission),
)
"""In the order in which they are carried out."""


def run(state: Compilation, passes: tuple[Pass, ...] = PASSES) -> Compilation:
    """Carry out passes one after the other. One that tries is given those behind it."""
    for number, step in enumerate(passes):
        if step.tries:
            return step.run(state, partial(run, passes=passes[number + 1:]))
        state = step.run(state)
    return state


def _faster(done: Compilation, finish: Finish, other: Compilation) -> Compilation:
    """What takes fewer cycles: what is done, or the other one, if that fits the engine."""
    try:
        tried = finish(other)
    except CompileError:
        return done
    return min(done, tried, key=lambda candidate: candidate.cycles.total)


def _packing(state: Compilation) -> dict:
    """{tensor: pixels in a word} that takes the fewest cycles, by estimate."""
    return packing.choose(state.config, state.layers, state.first, state.graph.ends, state.images, bool(state.stripes),
                          _folder(state))


def _folder(state: Compilation) -> Callable:
    """How the input is folded: by the host, or by the load unit, which takes cycles for it."""
    if state.pixels is None:
        return folding.fold_input
    unfolder = partial(_unfold_cycles, state, state.pixels)
    return partial(folding.fold_input, unfolder=unfolder, channels_last=state.channels_last)


def _unfold_cycles(state: Compilation, pixels: RawImage, fold: Fold | None, layer: Layer) -> int | None:
    """Roughly the cycles of one image in `layer`, whose tiles share rows that are made from raw pixels for each of them;
    None if the load unit cannot."""
    config, form = state.config, state.graph.input.format
    source = Source((tensor_layout(config, "input", layer.in_shape, form, state.images),))
    target = tensor_layout(config, "workspace", layer.out_shape, layer.out_format, state.images)
    turns = -(-min(config.tile_channels, layer.conv_shape[0]) // config.cols)
    passes = layer.kernel[0] * layer.kernel[1] * layer.phases * turns
    try:
        raw = images.unfolding(config, pixels, fold, layer.stacked)
        cycles, _ = tile_with_cost(TileTask(config, layer, source, target, passes, source.groups * source.digits, raw=raw))
    except CompileError:
        return None
    return -(-cycles // state.images)
