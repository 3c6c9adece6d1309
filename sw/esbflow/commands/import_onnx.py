"""esbflow import: a quantized ONNX or QONNX model of another tool to an integer graph."""

import argparse

from esbflow.commands.common import JSON_HELP, show
from esbflow.commands.model_files import other_tools
from esbflow.errors import UserError


def _numbers(text: str) -> tuple:
    """An argparse type: numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between them, not {text!r}") from None


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("import", help="import a quantized ONNX or QONNX model",
                                 description="The model's input is taken as (pixel / 255 * pixel-max - mean) / std.")
    parser.add_argument("model", help="MODEL.onnx: ONNX with QuantizeLinear and DequantizeLinear, or QONNX")
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument("--name", help="of the graph (default: the file's)")
    parser.add_argument("--mean", type=_numbers, default=(0.0,), metavar="M[,M...]",
                        help="subtracted from the image, one number or one a channel (default 0)")
    parser.add_argument("--std", type=_numbers, default=(1.0,), metavar="S[,S...]",
                        help="divides it after that (default 1)")
    parser.add_argument("--pixel-max", type=float, metavar="X",
                        help="value of the brightest pixel, for example 255 (default 1, or what the file says)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbflow.graph.bounds import bounds
    from esbflow.graph.file import save
    from esbflow.interchange.onnx_import import import_onnx
    from esbflow.reports.inspection import last_layer

    way = other_tools(arguments.model, (".onnx",))
    if way:
        raise UserError(way)
    graph = import_onnx(arguments.model, arguments.name, arguments.mean, arguments.std, arguments.pixel_max)
    path = save(graph, arguments.out)
    content = {"out": str(path), "name": graph.name, "nodes": len(graph.nodes), "notes": graph.info["notes"],
               "accumulator_bits": {name: bound.bits for name, bound in bounds(graph).items()}, "output": last_layer(graph)}
    show(arguments, content, _print)


def _print(content: dict) -> None:
    from esbflow.reports.inspection import said_of_last_layer

    bits = max(content["accumulator_bits"].values(), default=0)
    print(f"{content['out']}: {content['nodes']} nodes, accumulators of {bits} bits")
    print(said_of_last_layer(content["output"]))
    for note in content["notes"]:
        print(f"note: {note}")
