"""What a program's file says of it: the driver's half of what the compiler settled. docs/program.md has the fields."""

from esbflow.compiler.channels import uses_unit
from esbflow.compiler.compilation import Compilation
from esbflow.compiler.layout import TensorLayout
from esbflow.compiler.planned_layer import PlannedLayer
from esbflow.engine_config import AXI_BEAT_BITS, EngineConfig
from esbflow.engine_facts import STEP_COUNT
from esbflow.registers import LOG_BEATS
from esbflow.runtime.program_file import FORMAT, VERSION

BEAT_BYTES = AXI_BEAT_BITS // 8


def program_meta(state: Compilation) -> dict:
    """The meta of a compilation whose layers are planned."""
    graph, config, raw, given = state.graph, state.config, state.unfolding, state.layouts[state.graph.input.name]
    return {
        "format": FORMAT, "version": VERSION, "name": graph.name, "batch": state.batch, "stripes": bool(state.stripes),
        "engine": config.to_dict(), "engine_hash": f"{config.hash:016x}",
        "input": {
            "shape": list(graph.input.shape), "digits": given.digits, "channels": given.channels,
            "height": given.height, "width": given.width, **_rows(config, given),
            "fold": state.folded.to_meta() if state.folded else None,
            **({"channels_last": True} if state.channels_last else {}),
            **({"raw": raw.image.to_meta(raw.steps)} if raw else {}),
            **({"host": state.host} if state.host else {}),
        },
        **_outputs(state),
        "regions": _regions(state),
        "layers": [_layer(state, plan) for plan in state.plans],
    }


def _regions(state: Compilation) -> dict:
    """Bytes of the regions whose size this file alone says."""
    made = [state.layouts[layer.target] for layer in state.layers]
    ends = [layout.offset + layout.beats for layout in made if layout.region == "workspace"]
    given = state.layouts[state.graph.input.name].bytes
    if state.unfolding:
        raw = state.unfolding.image
        given = (state.images * raw.beats + raw.tables * STEP_COUNT) * BEAT_BYTES
    return {
        "workspace": BEAT_BYTES * max(ends, default=0), "input": given,
        "output": sum(state.layouts[name].bytes for name in state.graph.ends),
        "log": len(state.layers) * LOG_BEATS * BEAT_BYTES,
    }


def _layer(state: Compilation, plan: PlannedLayer) -> dict:
    layer = plan.layer
    return {
        "name": layer.name, "op": layer.op, "macs": layer.macs,
        "passes": sum(len(group) for group in plan.weights.groups),
        "tiles": len(plan.tiling.rows) * len(plan.tiling.cols),
        "out_shape": list(state.shapes[layer.target]),
        "stacked": layer.stacked, "stripe": layer.stripe.made if layer.stripe else 0,
        "pixels": layer.conv_shape[1] * layer.conv_shape[2] // layer.phases,
        "unit": uses_unit(state.config, layer),
        "digits": plan.source.digits * plan.weights.digits,
        **({"images": plan.tiling.images} if state.config.batch_tiles else {}),
    }


def _outputs(state: Compilation) -> dict:
    """What meta says of the output; or of `outputs`, several of them, with their names and places in the region."""
    graph, found = state.graph, {}
    for name, node in graph.results.items():
        layout = state.layouts[node.name]
        found[name] = {"shape": list(node.shape), "digits": layout.digits, "signed": layout.signed,
                       **_rows(state.config, layout), "scale": float(node.scale)}
        if graph.outputs:
            found[name] |= {"name": name, "offset": layout.offset * BEAT_BYTES, "bytes": layout.bytes}
    return {"outputs": list(found.values())} if graph.outputs else {"output": found[graph.output.name]}


def _rows(config: EngineConfig, layout: TensorLayout) -> dict:
    """Where rows lie, as meta has it: words from one to the next, rows of an image and the map's first of them."""
    return {"pitch": layout.row_stride // config.beats_per_word * config.words_per_beat, "rows": layout.rows,
            "first_row": layout.first_row}
