"""esbflow compile: an integer graph to a program for one engine."""

from esbflow.commands.common import CHANNELS_LAST_HELP, JSON_HELP, add_engine, engine_of, load_graph, positive, show


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("compile", help="compile a model for an engine")
    parser.add_argument("model", help="an integer graph, graph.npz")
    add_engine(parser)
    parser.add_argument("--batch", type=positive, default=1, help="images of one run (default 1)")
    parser.add_argument("--channels-last", action="store_true", help=CHANNELS_LAST_HELP)
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbflow.compiler.images import said_of_input
    from esbflow.split.program import SplitProgram, compile_split

    config = engine_of(arguments)
    program = compile_split(load_graph(arguments.model), config, arguments.batch, arguments.channels_last)
    split = isinstance(program, SplitProgram)
    programs = program.programs if split else [program]
    path = program.save(arguments.out)
    regions = [one.meta["regions"] for one in programs]
    content = {"out": str(path), "engine": config.name, "batch": arguments.batch,
               "instructions": sum(len(one.instructions) for one in programs),
               "weight_bytes": sum(int(one.weights.nbytes) for one in programs),
               "regions": regions if split else regions[0], "layers": program.meta["layers"],
               "channels_last": arguments.channels_last, "input": None if split else said_of_input(program)}
    if split:
        content["host"] = [{"name": part.node.name, "operator": type(part.node).__name__, "why": part.why}
                           for part in program.parts if part.node is not None]
    show(arguments, content, _print)


def _print(content: dict) -> None:
    print(f"{content['out']}: {len(content['layers'])} layers, {content['instructions']} instructions, "
          f"{content['weight_bytes']} bytes of weights")
    if content["input"]:
        print(f"input: {content['input']}")
    for node in content.get("host", ()):
        print(f"host: {node['operator']} {node['name']} ({node['why']})")
