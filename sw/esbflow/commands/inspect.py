"""esbflow inspect: formats, scales, errors, saturation and accumulators of each layer."""

from pathlib import Path

from esbflow.commands.common import JSON_HELP, add_engine, add_own_network, engine_of, load_graph, print_table, show
from esbflow.errors import BadValue
from esbflow.files import write_whole


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "inspect", help="what quantization has done to each layer",
        description="MODEL is a model.pt (real weights are known: SQNR and how scales were chosen are shown), a graph.npz "
                    "or zoo:NAME. With --formats BITS no model is needed: formats are compared.")
    parser.add_argument("model", nargs="?", help="model.pt, graph.npz or zoo:NAME")
    add_own_network(parser)
    parser.add_argument("--html", metavar="FILE", help="write histograms with the levels drawn in")
    parser.add_argument("--formats", type=int, metavar="BITS",
                        help="list every ESB format of up to so many bits: error, multiplier, shift, accumulator, LUTs")
    add_engine(parser)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    if arguments.formats:
        _formats(arguments)
        return
    if not arguments.model:
        raise BadValue("give a model to inspect, or --formats BITS")
    from esbflow.reports.inspection import inspect, last_layer, warnings

    graph, model = _open(arguments.model, arguments.network)
    entries = inspect(graph, model, engine_of(arguments).accumulator_width)
    if arguments.html:
        _write_html(Path(arguments.html), graph, entries)
    host = _on_host(graph, engine_of(arguments))
    way = None if host else _way_of_input(graph, engine_of(arguments))
    plain = [{key: value for key, value in e.items() if key not in ("integers", "form")} for e in entries]
    show(arguments, {"model": graph.name, "layers": plain, "output": last_layer(graph), "host": host, "input": way,
                     "warnings": warnings(entries)},
         lambda content: _print(graph, entries, content))


def _on_host(graph, config) -> list:
    """What the host computes of a graph, between programs of an engine."""
    from esbflow.split.partition import split

    return [{"name": part.node.name, "operator": type(part.node).__name__, "why": part.why}
            for part in split(graph, config).parts if part.node is not None]


def _way_of_input(graph, config) -> str | None:
    """Which way images go to the first layer on an engine, in a run of one; None if the network does not fit it."""
    from esbflow.compiler.errors import CompileError
    from esbflow.compiler.images import BY_HOST, NO_BUFFER, said_of_input
    from esbflow.compiler.pipeline import compile_graph

    if not config.image_beats:
        return BY_HOST.format(NO_BUFFER.format(config.name))
    try:
        return said_of_input(compile_graph(graph, config))
    except CompileError:
        return None


def _open(name, network):
    if not str(name).endswith(".pt"):
        return load_graph(name), None
    from esbflow.training.api import export_model

    return export_model(name, network)


def _print(graph, entries, content) -> None:
    from esbflow.reports.inspection import histogram_line, said_of_last_layer

    def decibels(value):
        return "" if value is None else f"{value:.1f}"

    print_table(
        f"{graph.name}: weights, and what they meet",
        ("layer", "weights", "in -> out", "scale", "by", "SQNR dB", "Gaussian", "at ends %", "acc bits", "headroom",
         "levels"),
        [(e["name"], e["weights"] if len(e["weights"]) < 12 else f"{e['form'].codes} levels",
          f"{e['input']} -> {e['output']}",
          f"{e['scale_least']:.3g}..{e['scale_greatest']:.3g}", e["chosen_by"] or "", decibels(e["sqnr_db"]),
          decibels(e["gaussian_db"]), f"{100 * e['saturation']:.1f}", e["accumulator_bits"], e["headroom_bits"],
          histogram_line(e["integers"], e["form"])) for e in entries])
    way = [f"input: {content['input']}"] if content["input"] else []
    host = [f"host: {part['operator']} {part['name']} ({part['why']})" for part in content["host"]]
    for sentence in (said_of_last_layer(content["output"]), *way, *host, *content["warnings"]):
        print(sentence)


def _write_html(path: Path, graph, entries) -> None:
    from html import escape

    from esbflow.reports import plots

    layers = [(e["name"], e["integers"], e["form"], None) for e in entries]
    rows = "".join(f"<tr><td>{escape(e['name'])}</td><td>{escape(e['weights'][:24])}</td><td>{e['chosen_by'] or ''}</td>"
                   f"<td>{'' if e['sqnr_db'] is None else format(e['sqnr_db'], '.1f')}</td>"
                   f"<td>{100 * e['saturation']:.1f}</td><td>{e['accumulator_bits']}</td></tr>" for e in entries)
    page = (f"<!doctype html><meta charset='utf-8'><title>{escape(graph.name)}</title><h1>{escape(graph.name)}</h1>"
            "<table border='1' cellpadding='4'><tr><th>layer<th>weights<th>scale by<th>SQNR dB<th>at ends %"
            f"<th>accumulator bits</tr>{rows}</table>{plots.weight_histograms(layers)}")
    write_whole(path, page)


def _formats(arguments) -> None:
    from esbflow.reports.formats import list_formats

    show(arguments, {"formats": list_formats(arguments.formats)}, lambda content: print_table(
        f"ESB(b, k) up to {arguments.formats} bits: weights against 4-bit activations, 576 products a sum",
        ("format", "levels", "MSE, Gaussian", "SQNR dB", "Laplace", "multiplier", "shift", "largest product",
         "accumulator bits", "LUT, formula", "best"),
        [(f["format"], f["levels"], f"{f['gaussian']:.4e}", f"{f['sqnr_db']:.2f}", f"{f['laplace']:.4e}", f["multiplier"],
          f["shift"], f["largest_product"], f["accumulator_bits"], f["lut"], f["best"]) for f in content["formats"]]))
