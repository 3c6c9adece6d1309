"""esbflow compile: an integer graph to a program for one engine."""

from esbflow.commands.common import JSON_HELP, add_engine, engine_of, load_graph, positive, show


def add_parser(commands) -> None:
    parser = commands.add_parser("compile", help="compile a model for an engine")
    parser.add_argument("model", help="an integer graph, graph.npz")
    add_engine(parser)
    parser.add_argument("--batch", type=positive, default=1, help="images of one run (default 1)")
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    from esbflow.compiler.pipeline import compile_graph
    from esbflow.graph.bounds import check

    config = engine_of(arguments)
    graph = load_graph(arguments.model)
    check(graph, config.accumulator_width)
    program = compile_graph(graph, config, arguments.batch)
    path = program.save(arguments.out)
    content = {"out": str(path), "engine": config.name, "batch": arguments.batch,
               "instructions": len(program.instructions), "weight_bytes": int(program.weights.nbytes),
               "regions": program.meta["regions"], "layers": program.meta["layers"]}
    show(arguments, content, lambda c: print(
        f"{c['out']}: {len(c['layers'])} layers, {c['instructions']} instructions, {c['weight_bytes']} bytes of weights"))
