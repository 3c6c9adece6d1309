"""esbflow export: a trained model.pt to an integer graph, or a model to QONNX."""

from esbflow.commands.common import JSON_HELP, add_own_network, load_graph, show
from esbflow.commands.model_files import other_tools
from esbflow.errors import UserError


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("export", help="export a trained model to an integer graph or to QONNX")
    parser.add_argument("model", help="model.pt, as `esbflow train` writes it; for qonnx also graph.npz")
    add_own_network(parser)
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--format", choices=("graph", "qonnx"), default="graph",
                        help="graph: the integer graph, .npz (default); qonnx: .onnx with Quant and FloatQuant nodes")
    parser.add_argument("--rounding", choices=("ROUND", "FLOOR"), default="ROUND",
                        help="of QONNX's Quant nodes: ties to even (default), or half a step added and rounded down")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbflow.graph.bounds import bounds
    from esbflow.graph.file import save
    from esbflow.reports.inspection import last_layer

    graph = _graph(arguments)
    if arguments.format == "qonnx":
        from esbflow.interchange.qonnx_export import export_qonnx

        path = export_qonnx(graph, arguments.out, arguments.rounding)
    else:
        path = save(graph, arguments.out)
    content = {"out": str(path), "name": graph.name, "nodes": len(graph.nodes),
               "accumulator_bits": {name: bound.bits for name, bound in bounds(graph).items()}, "output": last_layer(graph)}
    show(arguments, content, _print)


def _print(content: dict) -> None:
    from esbflow.reports.inspection import said_of_last_layer

    print(f"{content['out']}: {content['nodes']} nodes, accumulators of {max(content['accumulator_bits'].values())} bits")
    print(said_of_last_layer(content["output"]))


def _graph(arguments):
    if arguments.format == "qonnx" and str(arguments.model).endswith(".npz"):
        return load_graph(arguments.model)
    from esbflow.training.api import export_model

    if way := other_tools(arguments.model, (".pt", ".pth")):
        raise UserError(way)
    return export_model(arguments.model, arguments.network).graph
