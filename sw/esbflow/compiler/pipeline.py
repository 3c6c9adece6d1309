"""The compiler: named passes from an integer graph to a program for one engine and one batch size."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from esbflow.compiler.bipolar import store_bipolar
from esbflow.compiler.channels import columns, pack_channels, place_on_unit, uses_unit
from esbflow.compiler.copies import with_copies, without_idle
from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.emit import LAYER_LIMIT, emit
from esbflow.compiler.errors import CompileError
from esbflow.compiler.fold import Fold, fold_input
from esbflow.compiler.images import HostFolds, RawImage, raw_image, unfolding
from esbflow.compiler.large_pools import split_large_pools
from esbflow.compiler.layout import Source, TensorLayout, place, tensor_layout
from esbflow.compiler.lower import Layer, lower, skip_rows
from esbflow.compiler.on_chip import stay_on_chip
from esbflow.compiler.packing import choose, pack_layers, worthwhile
from esbflow.compiler.planned_layer import PlannedLayer
from esbflow.compiler.pools import split_pools
from esbflow.compiler.program import Program, instruction_array
from esbflow.compiler.shifts import shift_requantizer
from esbflow.compiler.stripes import cut, spaces, unstacked
from esbflow.compiler.tile import TileTask, tile, tile_with_cost
from esbflow.compiler.weights import WeightsRegion, pack_layer
from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import BEATS_PER_4K, STEP_COUNT
from esbflow.errors import BadValue
from esbflow.graph.ir import Graph
from esbflow.numbers import Format
from esbflow.registers import LOG_BEATS, MAPS
from esbflow.runtime.program_file import FORMAT, VERSION

BEAT_BYTES = AXI_BEAT_BITS // 8
PAGE_BYTES = BEATS_PER_4K * BEAT_BYTES
BATCH_LIMIT = 256


def compile_graph(graph: Graph, config: EngineConfig, batch: int = 1, fold: bool = True,
                  packing: dict | None = None, stripes: bool | None = None, raw: bool = True,
                  channels_last: bool = False) -> Program:
    """Compile for runs of `batch` images. An engine of several slices shares them out: each slice has as many, and the
    program is that of one slice. Or, on an engine with stripes, all slices work on stripes of one image after the other.

    Passes: store_bipolar (signs as ternary levels), split_large_pools (windows of more than 15 pixels), lower (operators to
    convolutions), shift_requantizer (factors that are powers of two, where lanes shift), fold_input (few input channels),
    split_pools (pools that are cheaper as layers of their own), place_on_unit (what keeps channels apart), with_copies (of
    maps that cannot be packed), pack_layers (several pixels of few channels in a word), tensor_layout, stay_on_chip and
    place (memory), split_weights, pack_layer and pack_channels (integers to codes and taps), tile, emit (instructions).

    packing : {tensor: pixels in a word}; by default what takes the fewest cycles, and nothing without `fold`.
    stripes : whether slices work on stripes of one image; by default what takes fewer cycles.
    raw : on an engine with an image buffer, whether the load unit makes the first layer's map from raw pixels where it can.
    channels_last : images are (n, h, w, c) arrays, and not (n, c, h, w).

    Raises
    ------
    CompileError
        if the graph does not fit the engine; the sentence names the layer and the nearest fix.
    """
    if not 1 <= batch <= BATCH_LIMIT:
        raise CompileError(f"batch must be in 1..{BATCH_LIMIT}, not {batch}")
    if stripes and not config.stripes:
        raise CompileError(f"engine {config.name} is built without stripes of an image (stripes = false); use an engine "
                           "with them, or a batch of images")
    if stripes is None and config.stripes:
        # Each way lowers the graph anew: a millisecond of the seconds that pools, packing and tiles take, which differ.
        return _faster(*(partial(compile_graph, graph, config, batch, fold, packing, way, raw, channels_last)
                         for way in (False, True)))
    build = partial(_with_input, graph, config, batch, fold, packing, bool(stripes), channels_last)
    if not config.image_beats:
        return build(False)
    try:
        if not raw:
            raise HostFolds("it was asked to")
        if stripes:
            raise HostFolds("slices work on stripes of one image")
        return build(True)
    except HostFolds as reason:
        program = build(False)
        program.meta["input"]["host"] = str(reason)
        return program


def _with_input(graph: Graph, config: EngineConfig, batch: int, fold: bool, packing: dict | None, stripes: bool,
                channels_last: bool, raw: bool) -> Program:
    """The program whose input is raw pixels, or what the host makes of them.

    Raises
    ------
    HostFolds
        if it cannot be raw.
    """
    images = config.rounds(batch, stripes)
    graph = split_large_pools(store_bipolar(graph))
    layers, fold_choice, first = [shift_requantizer(config, layer) for layer in lower(graph)], None, None
    readers = [layer for layer in layers if graph.input.name in (*layer.sources, layer.residual)]
    alone = readers == layers[:1] and layers[0].sources == (graph.input.name,) and layers[0].residual is None
    pixels = raw_image(config, graph, layers[0] if alone else None, channels_last) if raw else None
    how = partial(fold_input, unfolder=partial(_unfold_cycles, config, pixels, graph.input.format, images),
                  channels_last=channels_last) if pixels else fold_input
    if fold and len(readers) == 1 and readers[0] is layers[0]:
        first = layers[0]
        fold_choice, layers[0] = how(first, config.rows, config.cols, digit_bits=config.digit_bits)
    layers = place_on_unit(config, split_pools(config, layers, images, stripes))
    if first is not None:
        # A pool that became a layer of its own is not the first layer's any more.
        first = replace(first, target=layers[0].target, out_shape=layers[0].out_shape, pool=layers[0].pool)
    build = partial(_compile, graph, config, batch, stripes, first, fold_choice, how, pixels, channels_last)
    outputs = graph.ends
    if packing is not None or not fold:
        return build(layers, packing or {})
    chosen = choose(config, layers, first, outputs, images, stripes, how)
    program = _fastest(partial(build, layers), layers, chosen) if chosen else build(layers, {})
    copied = with_copies(config, layers, outputs)
    if len(copied) > len(layers):
        copied = without_idle(copied, layers, choose(config, copied, first, outputs, images, stripes, how))
    if len(copied) > len(layers):
        return _faster(lambda: program, partial(build, copied, choose(config, copied, first, outputs, images, stripes, how)))
    return program


def _unfold_cycles(config: EngineConfig, pixels: RawImage, form: Format, images: int, fold: Fold | None,
                   layer: Layer) -> int | None:
    """Roughly the cycles of one image in `layer`, whose tiles share rows that are made from raw pixels for each of them;
    None if the load unit cannot."""
    source = Source((tensor_layout(config, "input", layer.in_shape, form, images),))
    target = tensor_layout(config, "workspace", layer.out_shape, layer.out_format, images)
    turns = -(-min(config.tile_channels, layer.conv_shape[0]) // config.cols)
    passes = layer.kernel[0] * layer.kernel[1] * layer.phases * turns
    try:
        raw = unfolding(config, pixels, fold, layer.stacked)
        cycles, _ = tile_with_cost(TileTask(config, layer, source, target, passes, source.groups * source.digits, raw=raw))
    except CompileError:
        return None
    return -(-cycles // images)


def _faster(first, second) -> Program:
    """The program that takes fewer cycles; the first one if the second one does not fit the engine."""
    program = first()
    try:
        other = second()
    except CompileError:
        return program
    return min(program, other, key=lambda candidate: count_cycles(candidate).total)


def _fastest(build, layers: list, packing: dict) -> Program:
    """Of the programs without packed maps, with those of `packing`, and with those of them that pay, the fastest."""
    plain = build({})
    cycles = count_cycles(plain)
    best = cycles.total, plain
    while packing:
        try:
            program = build(packing)
        except CompileError:
            break
        packed = count_cycles(program)
        if packed.total < best[0]:
            best = packed.total, program
        left = worthwhile(layers, packing, cycles.per_layer, packed.per_layer)
        if left == packing:
            break
        packing = left
    return best[1]


def _compile(graph: Graph, config: EngineConfig, batch: int, stripes: bool, first: Layer | None, fold_choice: Fold | None,
             how: Callable, pixels: RawImage | None, channels_last: bool, layers: list, packing: dict) -> Program:
    """The program of layers that are ready to be packed, as compile_graph has them."""
    images = config.rounds(batch, stripes)
    shapes = {layer.target: layer.out_shape for layer in layers}
    if packing:
        fold_choice, layers = pack_layers(config, layers, first, fold_choice, packing, how)
    raw = unfolding(config, pixels, fold_choice, layers[0].stacked) if pixels else None
    if len(layers) > LAYER_LIMIT:
        raise CompileError(f"graph {graph.name} has {len(layers)} layers and the engine numbers {LAYER_LIMIT}")

    input_shape = layers[0].in_shape if fold_choice else graph.input.shape
    layouts = {graph.input.name: tensor_layout(config, "input", input_shape, graph.input.format, images)}
    for layer in layers:
        kind = "output" if layer.target in graph.ends else "workspace"
        layouts[layer.target] = tensor_layout(config, kind, layer.out_shape, layer.out_format, images)
    whole = layers
    if stripes:
        layers = [cut(layer, config.slices) for layer in layers]
        rows = {name: layout.height for name, layout in layouts.items()}
        found = spaces(config, layers, rows, {name: layout.row_beats for name, layout in layouts.items()})
        layouts = {name: replace(layout, first_row=found[name].first, rows=found[name].rows, row_stride=found[name].pitch)
                   for name, layout in layouts.items()}
        layers = [unstacked(layer, found, rows, images) for layer in layers]
    if config.map_beats and not stripes:  # slices with stripes read rows of each other's
        layouts |= {tensor: replace(layouts[tensor], region=MAPS, offset=offset)
                    for tensor, offset in stay_on_chip(config, layers, layouts).items()}
    for tensor, offset in place(layers, layouts).items():
        layouts[tensor] = replace(layouts[tensor], offset=offset)

    region, plans = WeightsRegion(config), []
    for number, layer in enumerate(layers):
        source, target = Source(tuple(layouts[name] for name in layer.sources)), layouts[layer.target]
        added = layouts[layer.residual] if layer.residual else None
        on_unit = uses_unit(config, layer)
        weights = (pack_channels if on_unit else pack_layer)(
            config, region, layer, source.digits, source.signed,
            (added.digits * config.digit_bits, added.signed) if added else None)
        passes = max(len(group) for group in weights.groups) * (columns(layer).gap + 1 if on_unit else 1)
        planes = max(len({p.plane for p in group}) for group in weights.groups)
        layer = skip_rows(layer, source.row_beats)
        resident = weights.tiles <= config.weight_slots
        tile_beats = config.tap_beats if on_unit else config.tile_beats
        pixels_of = raw if number == 0 else None
        try:
            tiling = tile(TileTask(config, layer, source, target, -(-passes // planes), planes,
                                   0 if resident else weights.tiles * tile_beats, pixels_of))
        except CompileError as error:
            raise HostFolds(str(error)) if pixels_of else error from None
        if pixels_of and tiling.planes_at_once % source.digits:
            raise HostFolds("half of the activation buffer does not hold all digits of a tile's channels")
        plans.append(PlannedLayer(
            number=number, layer=layer, source=source,
            residual=Source((added,)) if added else None, target=target, tiling=tiling,
            weights=weights, resident=resident, unfolding=pixels_of))
    log_bytes = len(layers) * LOG_BEATS * BEAT_BYTES
    log_pages = -(-log_bytes // PAGE_BYTES)
    try:
        words = emit(config, plans, log_pages if stripes else 0)
    except BadValue as error:
        raise CompileError(f"graph {graph.name} does not fit the instructions of engine {config.name}: {error}") from None
    workspace = max((layouts[layer.target].offset + layouts[layer.target].beats for layer in layers
                     if layouts[layer.target].region == "workspace"), default=0) * BEAT_BYTES
    given, results = layouts[graph.input.name], [layouts[name] for name in graph.ends]
    input_bytes = given.bytes
    if raw:
        input_bytes = (images * raw.image.beats + raw.image.tables * STEP_COUNT) * BEAT_BYTES
    meta = {
        "format": FORMAT, "version": VERSION, "name": graph.name, "batch": batch, "stripes": stripes,
        "engine": config.to_dict(), "engine_hash": f"{config.hash:016x}",
        "input": {
            "shape": list(graph.input.shape), "digits": given.digits, "channels": given.channels,
            "height": given.height, "width": given.width, **_rows(config, given),
            "fold": fold_choice.to_meta() if fold_choice else None,
            **({"channels_last": True} if channels_last else {}),
            **({"raw": raw.image.to_meta(raw.steps)} if raw else {}),
        },
        **_outputs(graph, config, layouts),
        "regions": {
            "workspace": workspace, "input": input_bytes, "output": sum(result.bytes for result in results),
            "log": log_bytes,
        },
        "layers": [{
            "name": plan.layer.name, "op": plan.layer.op, "macs": plan.layer.macs,
            "passes": sum(len(group) for group in plan.weights.groups),
            "tiles": len(plan.tiling.rows) * len(plan.tiling.cols),
            "out_shape": list(shapes[plan.layer.target] if plan.layer.target in packing else original.out_shape),
            "stacked": plan.layer.stacked, "stripe": plan.layer.stripe.made if plan.layer.stripe else 0,
            "pixels": plan.layer.conv_shape[1] * plan.layer.conv_shape[2] // plan.layer.phases,
            "unit": uses_unit(config, plan.layer),
            "digits": plan.source.digits * plan.weights.digits,
        } for plan, original in zip(plans, whole, strict=True)],
    }
    return Program(meta=meta, instructions=instruction_array(words), weights=region.bytes(),
                   table=np.asarray(graph.input.table, dtype=np.int64))


def _outputs(graph: Graph, config: EngineConfig, layouts: dict) -> dict:
    """What meta says of the output; or of `outputs`, several of them, with their names and places in the region."""
    found = {}
    for name, node in graph.results.items():
        layout = layouts[node.name]
        found[name] = {"shape": list(node.shape), "digits": layout.digits, "signed": layout.signed,
                       **_rows(config, layout), "scale": float(node.scale)}
        if graph.outputs:
            found[name] |= {"name": name, "offset": layout.offset * BEAT_BYTES, "bytes": layout.bytes}
    return {"outputs": list(found.values())} if graph.outputs else {"output": found[graph.output.name]}


def _rows(config: EngineConfig, layout: TensorLayout) -> dict:
    """Where rows lie, as meta has it: words from one to the next, rows of an image and the map's first of them."""
    return {"pitch": layout.row_stride // config.beats_per_word * config.words_per_beat, "rows": layout.rows,
            "first_row": layout.first_row}
