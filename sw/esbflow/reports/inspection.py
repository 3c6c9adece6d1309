"""What quantization has done to each layer: scales, errors against the Gaussian bound, saturation, accumulators."""

import math

import numpy as np

from esbflow.graph import ir
from esbflow.graph.bounds import bounds
from esbflow.numbers import Format
from esbflow.quant.methods.dda import expected_error, optimal_scale

SATURATED = 0.02
"""A larger share of weights at the end levels is worth a warning; Gaussian weights on esb4.1 have 0.35 %."""
BLOCKS = " ▁▂▃▄▅▆▇█"


def gaussian_sqnr(form: Format) -> float | None:
    """Signal to quantization noise in dB that the format reaches at best on Gaussian values; None if it cannot be listed.

    >>> from esbflow.numbers import ESB
    >>> round(gaussian_sqnr(ESB(4, 1)), 2)
    18.97
    """
    try:
        levels = form.levels
    except ValueError:
        return None
    if not (levels >= 0).any() or len(levels) < 2:
        return None
    positive = levels[levels >= 0].astype(np.float64)
    return -10 * math.log10(expected_error(positive, optimal_scale(form)))


def weight_sqnr(real: np.ndarray, integers: np.ndarray, scale: np.ndarray) -> float:
    """Signal to noise in dB of integers * scale against real weights (out, ...); infinite if there is no error."""
    real = real.reshape(len(real), -1)
    error = np.square(integers.reshape(len(real), -1) * scale[:, None] - real).sum()
    return math.inf if error == 0 else 10 * math.log10(max(np.square(real).sum(), 1e-300) / error)


def inspect(graph: ir.Graph, model=None, accumulator_bits: int = 28) -> list:
    """One dict a layer with weights: name, op, shape, formats, scales, chosen_by, saturation, sqnr_db, gaussian_db,
    accumulator_bits, headroom_bits, integers.

    Parameters
    ----------
    graph : the integer graph.
    model : the quantized torch model it was exported from; with it the real weights are known, so sqnr_db and chosen_by.
    accumulator_bits : of the engine, for the headroom.

    SQNR compares the exported integers with the trained weights, so snapping is in it.
    """
    reach = bounds(graph)
    nodes = [node for node in graph.nodes if isinstance(node, ir.Conv2d | ir.Linear)]
    layers = _layers(model, nodes)
    found = []
    for node, layer in zip(nodes, layers):
        weight, form = node.weight, node.weight_format
        ends = np.abs(weight) >= max(abs(form.min), form.max) if form.bits > 1 else np.zeros(1)
        scale = np.asarray(node.weight_scale, np.float64)
        entry = {
            "name": node.name, "op": type(node).__name__, "shape": list(weight.shape), "weights": str(form),
            "input": str(graph[node.inputs[0]].format), "output": str(node.format), "output_scale": float(node.scale),
            "scale_least": float(scale.min()), "scale_greatest": float(scale.max()),
            "saturation": float(ends.mean()), "zeros": float((weight == 0).mean()),
            "gaussian_db": gaussian_sqnr(form), "accumulator_bits": int(reach[node.name].bits),
            "headroom_bits": accumulator_bits - int(reach[node.name].bits), "integers": weight.reshape(-1),
            "form": form, "chosen_by": None, "sqnr_db": None,
        }
        if layer is not None:
            real = layer.weight.detach().double().cpu().numpy()
            entry["sqnr_db"] = weight_sqnr(real, weight, scale)
            entry["chosen_by"] = _chosen_by(layer.weight_quantizer)
        found.append(entry)
    return found


def last_layer(graph: ir.Graph) -> dict:
    """format and scale (real, of one step) of the graph's output; largest and share, what rounding can move it by (see
    `esbflow.lowering.last_layer.rounding_error`), None where a quantizer of the model's own gave it its scale. Of several
    outputs {name: the same of each}."""
    errors, unknown = graph.info.get("output_error", {}), {"largest": None, "share": None}
    found = {name: {"format": str(node.format), "scale": float(node.scale),
                    **(errors.get(name, unknown) if graph.outputs else errors or unknown)}
             for name, node in graph.results.items()}
    return found if graph.outputs else found[graph.output.name]


def said_of_last_layer(found: dict) -> str:
    """The same as a sentence, or one a line for each of several outputs.

    >>> said_of_last_layer({"format": "s32", "scale": 0.001, "largest": 0.0125, "share": 0.0002})
    'output: s32 in steps of 0.001; rounding moves it by at most 0.0125, no channel by more than 0.02 % of its largest value'
    """
    if "format" not in found:
        return "\n".join(f"{name}, {said_of_last_layer(one)}" for name, one in found.items())
    step = f"output: {found['format']} in steps of {found['scale']:.3g}"
    if found["largest"] is None:
        return step
    return (f"{step}; rounding moves it by at most {found['largest']:.3g}, no channel by more than "
            f"{100 * found['share']:.2g} % of its largest value")


def _layers(model, nodes: list) -> list:
    """The torch layer of each node; None for all where they do not match one to one."""
    if model is None:
        return [None] * len(nodes)
    modules = dict(model.named_modules())
    layers = [modules[node.target] for node in model.graph.nodes
              if node.op == "call_module" and hasattr(modules[node.target], "weight")
              and getattr(modules[node.target], "weight", None) is not None and modules[node.target].weight.dim() >= 2]
    if [tuple(layer.weight.shape) for layer in layers] != [tuple(node.weight.shape) for node in nodes]:
        return [None] * len(nodes)
    return [layer if hasattr(layer, "weight_quantizer") else None for layer in layers]


def _chosen_by(quantizer) -> str:
    how = getattr(quantizer, "scale_mode", None)
    name = type(quantizer).__name__.removesuffix("Quantizer")
    return f"{name}, {how}" if how else name


def warnings(entries: list) -> list:
    """Sentences about layers that may lose accuracy or do not fit."""
    said = []
    for e in entries:
        if e["weights"] not in ("bin", "esb2.0", "s2") and e["saturation"] > SATURATED:
            said.append(f"{e['name']}: {100 * e['saturation']:.1f} % of the weights are at the end levels; the scale is "
                        "small for them")
        if e["sqnr_db"] is not None and e["gaussian_db"] is not None and e["sqnr_db"] < e["gaussian_db"] - 3:
            said.append(f"{e['name']}: {e['sqnr_db']:.1f} dB, {e['gaussian_db'] - e['sqnr_db']:.1f} dB below what "
                        f"{e['weights']} reaches on Gaussian weights; try a refined scale or one a channel")
        if e["headroom_bits"] < 0:
            said.append(f"{e['name']}: its accumulator needs {e['accumulator_bits']} bits, the engine has fewer")
    return said


def histogram_line(integers: np.ndarray, form: Format, width: int = 33) -> str:
    """A histogram of integers as a line of blocks, from the format's smallest to its largest level.

    With no more levels than characters each level gets one, so levels that are not there leave no gap.

    >>> histogram_line(np.array([-1, 0, 0, 0, 0, 1]), Format.parse("esb2.0"))
    '▂█▂'
    """
    levels = form.levels if form.bits <= 16 else np.array([form.min, form.max])
    if len(levels) <= width:
        counts = np.array([(integers == level).sum() for level in levels])
    else:
        largest = max(1, int(np.abs(integers).max()))
        counts = np.histogram(integers, bins=width, range=(-largest - 0.5, largest + 0.5))[0]
    top = max(1, counts.max())
    return "".join(BLOCKS[math.ceil(8 * count / top)] for count in counts)
