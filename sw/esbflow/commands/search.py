"""esbflow search: the weights of each layer that lose least under a budget of engine cycles or bytes."""

from pathlib import Path

from esbflow.commands.common import JSON_HELP, add_engine, engine_of, positive, print_table, show
from esbflow.files import write_json


def add_parser(commands) -> None:
    parser = commands.add_parser(
        "search", help="choose each layer's weights under a budget of engine cycles or bytes",
        description="Measures a trained network on a few images, compiles each choice, and writes the weights of each layer "
                    "for `esbflow train --overrides`.")
    parser.add_argument("recipe", help="a named recipe that starts from trained weights, or any with --float")
    parser.add_argument("--float", dest="float_model", metavar="FILE", help="float.pt of an earlier run")
    parser.add_argument("--budget", type=float, required=True,
                        help="at most 1: a share of what the finest weights cost; above 1: cycles an image, or bytes")
    parser.add_argument("--of", choices=("cycles", "bytes"), default="cycles")
    parser.add_argument("--candidates", default="esb2.0 esb3.1 esb4.1 s8", help="texts of weights, from cheap to dear")
    parser.add_argument("--images", type=positive, default=300, help="training images to measure on (default 300)")
    parser.add_argument("--out", required=True, metavar="FILE")
    add_engine(parser)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    from esbflow.training.api import NETWORKS, load_float_model, load_weights, named
    from esbflow.training.data import load_images
    from esbflow.training.layer_bits import BitSearch

    recipe = named(arguments.recipe)
    if arguments.float_model:
        model = load_float_model(arguments.float_model)
    elif recipe.start:
        model = NETWORKS[recipe.network]()
        load_weights(model, recipe.start)
    else:
        raise ValueError(f"recipe {arguments.recipe} starts from nothing; give a trained network with --float")
    if arguments.budget <= 0:
        raise ValueError(f"the budget must be positive, not {arguments.budget:g}")
    images, labels = load_images(recipe.data, "train", arguments.images)
    search = BitSearch(model.eval(), recipe.quant, images, labels, engine_of(arguments),
                       tuple(arguments.candidates.split()), None if arguments.json else print)
    finest = getattr(search.base, arguments.of)
    budget = arguments.budget * finest if arguments.budget <= 1 else arguments.budget
    choice = search.within(budget, arguments.of)
    content = {"recipe": arguments.recipe, "engine": engine_of(arguments).name, "of": arguments.of, "budget": budget,
               "weights": choice.weights, "cycles": choice.point.cycles, "bytes": choice.point.bytes,
               "loss": choice.point.loss, "finest": vars(search.base)}
    path = Path(arguments.out)
    write_json(path, content)
    show(arguments, content, lambda c: print_table(
        f"{c['cycles']:,} cycles an image, {c['bytes']:,} bytes, loss {c['loss']:.4f} (all at the finest: "
        f"{search.base.cycles:,}, {search.base.bytes:,}, {search.base.loss:.4f})", ("layer", "weights"),
        list(c["weights"].items())))
