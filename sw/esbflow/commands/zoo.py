"""esbflow zoo: the trained models that ship with esbflow."""

from esbflow.commands.common import JSON_HELP, print_table, show
from esbflow.files import write_whole


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("zoo", help="list the trained models, or copy one",
                                 description="Wherever a command takes a graph.npz, zoo:NAME works too.")
    parser.add_argument("name", nargs="?", help="the model to copy")
    parser.add_argument("--out", metavar="FILE", help="where to copy its graph (default NAME.npz)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbflow import zoo

    if arguments.name:
        content = _copied(arguments)
        show(arguments, content, lambda c: print(f"wrote {c['file']}"))
        return
    show(arguments, zoo.entries(), lambda found: print_table(
        "models: use them as zoo:NAME",
        ("name", "network", "data", "W/A bits", "top-1 %, integers", "bytes of weights", "made by"),
        [(name, r["network"], r["data"], f"{r['weights_bits']:g}/{r['activation_bits']}", f"{r['top1_integer_graph']:.2f}",
          f"{r['bytes']:,}", r["command"]) for name, r in found.items()]))


def _copied(arguments) -> dict:
    from pathlib import Path

    from esbflow import zoo

    source, target = zoo.graph_path(arguments.name), Path(arguments.out or f"{arguments.name}.npz")
    write_whole(target, source.read_bytes())
    return {"file": str(target), **zoo.entries()[arguments.name]}
