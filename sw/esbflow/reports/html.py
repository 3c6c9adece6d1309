"""A report.json as one page that needs nothing else: no script, no file beside it, no network."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from esbflow.errors import BadValue
from esbflow.files import write_whole
from esbflow.graph import ir
from esbflow.reports import plots
from esbflow.reports.lost import REASONS, largest
from esbflow.reports.page import PAGE

COLUMNS = ("lut", "lutram", "pairs", "ff", "carry8", "bram36", "dsp", "latches")
NEEDED = ("model", "engine", "clock_mhz", "layers")


def write_report(report: dict, graph: ir.Graph, path, model=None) -> Path:
    """Write the page; `report` is what `esbflow demo` or `esbflow estimate --json` gives.

    Parameters
    ----------
    report : figures that are missing are left out of the page.
    graph : the integer graph that it speaks of, for the weights.
    model : the model.pt from which it was exported; with it, weights before rounding are drawn too.

    Raises
    ------
    ValueError
        if `report` is not a report of a network on an engine.
    """
    missing = [name for name in NEEDED if name not in report]
    if missing:
        raise BadValue(f"the report has no {missing[0]!r}; make one with `esbflow demo` or `esbflow estimate --json`")
    cycles, source = spent_cycles(report)
    blocks = dict(report.get("resources", {}).get("blocks", {}))
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(PAGE).render(
        report=report, summary=_summary(report), headline=headline(report), columns=COLUMNS,
        weights=Markup(plots.weight_histograms(weight_layers(graph, model))) if weight_layers(graph) else "",
        cycles=Markup(plots.layer_cycles(cycles)) if cycles else "", cycles_from=source,
        resources=Markup(plots.resource_split(blocks)) if blocks else "",
        reasons=REASONS if all("lost" in layer for layer in report["layers"]) else {}, largest=largest,
        blocks=[*blocks.items(), ("whole engine", report["resources"])] if blocks else [])
    path = Path(path)
    return write_whole(path, page)


def weight_layers(graph: ir.Graph, model=None) -> list:
    """(name, integers, Format, real weights in steps or None) of each layer with weights."""
    nodes = [node for node in graph.nodes if isinstance(node, (ir.Conv2d, ir.Linear))]
    real = _weights_before_rounding(model) if model is not None and Path(model).exists() else []
    if [weights.size for weights in real] != [node.weight.size for node in nodes]:
        real = [None] * len(nodes)  # another model's file, or one whose layers the exporter has split
    return [(node.name, np.asarray(node.weight).reshape(-1), node.weight_format, weights)
            for node, weights in zip(nodes, real)]


def _weights_before_rounding(model) -> list:
    """Each quantized layer's trained weights divided by their scale, in the order of the network."""
    from esbflow.training.api import load_model  # here: a page of a graph alone needs no torch

    layers = [module for module in load_model(model).modules() if hasattr(module, "weight_quantizer")]
    return [(layer.weight / layer.weight_quantizer.scale(layer.weight)).detach().numpy().reshape(-1) for layer in layers]


class SpentCycles(NamedTuple):
    """(layer, {what: cycles an image}) of each layer, and a sentence that says where that is from."""

    layers: list[tuple[str, dict]]
    source: str


def spent_cycles(report: dict) -> SpentCycles:
    """([(layer, {what: cycles an image})], where that is from): the engine's counters, else the cycle model."""
    keys = [key for key, _, _ in plots.SPENT]
    measured = report.get("measured_layers")
    layers = []
    if measured:
        for layer in measured:
            spent = {key: layer.get(key if key == "compute" else f"stall_{key}", 0) for key in keys}
            layers.append((layer["name"], _with_rest(spent, layer["cycles"])))
        return SpentCycles(layers, "Counted by the engine, per image, averaged over all runs.")
    for layer in report["layers"]:
        spent = {key: layer["cycles_by_reason"].get(key, 0) for key in keys}
        layers.append((layer["name"], _with_rest(spent, layer["cycles"])))
    return SpentCycles(layers, "From the cycle model, per image, for ideal memory.")


def _with_rest(spent: dict, total: float) -> dict:
    return {**spent, "rest": max(0.0, total - sum(spent.values()))}


def headline(report: dict) -> list:
    """Rows of the first table: name, value, how, bad."""
    training = report.get("training", {})
    images = report.get("images")
    rows = [
        _row(f"top-1 of real numbers, {images} images", report.get("float_top1"), "{:.2f} %", "PyTorch"),
        _row("top-1 of fake quantization", report.get("fake_quant_top1"), "{:.2f} %", "PyTorch"),
        _row("top-1 of the integer graph", report.get("graph_top1"), "{:.2f} %", "NumPy, exact integers"),
        _row("top-1 of the engine", report.get("top1"), "{:.2f} %", "compiled RTL behind the PYNQ driver"),
        _row("output values that differ from the integer graph", report.get("mismatches"), "{:,}",
             f"all {report.get('values', 0):,} compared", bad=bool(report.get("mismatches"))),
        _row(f"top-1 of the integer graph, {training.get('images', 0):,} images", training.get("graph_top1"), "{:.2f} %",
             "NumPy, exact integers"),
        _row("cycles an image", report.get("cycles_per_image"), "{:,.0f}",
             f"batches of {report.get('batch', 1)}, from doorbell to done"),
        _row("multiply-accumulates an image", report.get("macs_per_image"), "{:,}", "useful ones, from the graph"),
        _row("use of the array", _percent(report.get("utilization")), "{:.1f} %", "useful MACs / (lanes x cycles)"),
        _row("frames/s", report.get("frames_per_second"), "{:,.0f}", f"cycles at {report['clock_mhz']} MHz"),
        _row("GOPS, useful", report.get("gops"), "{:.1f}", "2 operations a MAC"),
        _row("GOPS, peak", report.get("gops_peak"), "{:.1f}", "2 x lanes x clock"),
        _row("LUT", report.get("lut"), "{:,}", "Yosys"),
        _row("FF", report.get("ff"), "{:,}", "Yosys"),
        _row("BRAM36", report.get("bram"), "{:g}", "Yosys"),
        _row("DSP", report.get("dsp"), "{}", "Yosys, inference left on", bad=bool(report.get("dsp"))),
        _row("GOPS/kLUT, useful", report.get("gops_per_klut"), "{:.2f}", "with Yosys's LUTs"),
        _row("GOPS/kLUT, peak", report.get("gops_peak_per_klut"), "{:.2f}", "with Yosys's LUTs"),
        _row("clock cycles simulated a second", report.get("sim_cycles_per_second"), "{:,.0f}", "this machine"),
    ]
    return [row for row in rows if row]


def _row(name: str, value, form: str, how: str, bad: bool = False):
    return None if value is None else {"name": name, "value": form.format(value), "how": how, "bad": bad}


def _percent(value):
    return None if value is None else 100 * value


def _summary(report: dict) -> str:
    if report.get("mismatches") == 0 and report.get("backend") == "rtl":
        return (f"{report['images']} images ran through the PYNQ driver on a simulated ZCU102 whose logic is the generated "
                f"RTL; all {report['values']:,} output values equal the integer graph's.")
    if report.get("mismatches"):
        return f"{report['mismatches']:,} output values differ from the integer graph: the engine or its driver is wrong."
    return "An estimate: nothing was run."
