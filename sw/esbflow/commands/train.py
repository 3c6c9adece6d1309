"""esbflow train: from images to an integer graph by a named recipe."""

from esbflow.commands.common import JSON_HELP, positive, print_table, show


def add_parser(commands) -> None:
    parser = commands.add_parser("train", help="train a network by a recipe and export it",
                                 description="Writes model.pt, graph.npz and metrics.json into --out.")
    parser.add_argument("recipe", help="lenet5-mnist or digits")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--epochs", type=positive, help="of each stage, instead of the recipe's")
    parser.add_argument("--images", type=positive, help="train on so many images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    from esbflow.training.api import train_network

    metrics = train_network(arguments.recipe, arguments.out, arguments.epochs, arguments.seed,
                            train_images=arguments.images, resume=arguments.resume, progress=not arguments.json)
    show(arguments, metrics, lambda m: print_table(
        f"{m['network']} on {m['images']} test images of {m['data']}, {m['seconds']} s", ("computed in", "top-1 %"),
        [("real numbers", f"{m['float_top1']:.2f}"), ("fake quantization", f"{m['fake_quant_top1']:.2f}"),
         ("integers", f"{m['graph_top1']:.2f}")]))
