"""esbflow export: a trained model.pt to an integer graph."""

from esbflow.commands.common import JSON_HELP, show


def add_parser(commands) -> None:
    parser = commands.add_parser("export", help="export a trained model to an integer graph")
    parser.add_argument("model", help="model.pt, as `esbflow train` writes it")
    parser.add_argument("--out", required=True, metavar="FILE.npz")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    import torch

    from esbflow.graph.bounds import bounds
    from esbflow.graph.file import save
    from esbflow.quant.export import export
    from esbflow.training.api import NETWORKS, load_model

    model = load_model(arguments.model)
    network = torch.load(arguments.model, weights_only=True)["network"]
    graph = export(model, network, NETWORKS[network].shape)
    path = save(graph, arguments.out)
    content = {"out": str(path), "name": graph.name, "nodes": len(graph.nodes),
               "accumulator_bits": {name: bound.bits for name, bound in bounds(graph).items()}}
    show(arguments, content, lambda c: print(f"{c['out']}: {c['nodes']} nodes, accumulators of "
                                             f"{max(c['accumulator_bits'].values())} bits"))
