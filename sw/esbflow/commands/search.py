"""esbflow search: the weights of each layer that lose least under a budget of engine cycles or bytes."""

from esbflow.commands.common import (
    JSON_HELP,
    add_engine,
    engine_of,
    load_data,
    positive,
    print_table,
    resources_of,
    say,
    show,
)
from esbflow.errors import BadValue
from esbflow.files import check_writable, write_json


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "search", help="choose each layer's weights under a budget of engine cycles or bytes",
        description="Measures a trained network on a few images, compiles each choice, and writes the weights of each layer "
                    "for `esbflow train --overrides`.")
    parser.add_argument("recipe", help="one with trained weights, or any with --float")
    parser.add_argument("--float", dest="float_model", metavar="FILE", help="float.pt of an earlier run")
    parser.add_argument("--network", metavar="MODULE:FACTORY", help="a network of your own, not the recipe's")
    parser.add_argument("--data", metavar="FILE.npz", help="`images` and `labels` to measure on")
    parser.add_argument("--budget", type=float, required=True,
                        help="at most 1: a share of what the finest weights cost; above 1: cycles an image, or bytes")
    parser.add_argument("--of", choices=("cycles", "bytes"), default="cycles")
    parser.add_argument("--candidates", default="esb2.0 esb3.1 esb4.1 s8", help="texts of weights, from cheap to dear")
    parser.add_argument("--images", type=positive, default=300, help="training images to measure on (default 300)")
    parser.add_argument("--out", required=True, metavar="FILE")
    add_engine(parser)
    parser.add_argument("--luts", type=positive, metavar="N",
                        help="instead of --engine: the fastest of at most N LUTs")
    parser.add_argument("--engines", default="tiny4x4 small8x16 base16x16", metavar="NAMES",
                        help="for --luts: names or paths of engine.json")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbflow.networks.registry import network
    from esbflow.training.api import load_float_model, load_weights, named
    from esbflow.training.data import load_images
    from esbflow.training.layer_bits import BitSearch

    recipe = named(arguments.recipe)
    if arguments.float_model:
        model = load_float_model(arguments.float_model, arguments.network or recipe.network)
    elif recipe.start and not arguments.network:
        model = network(recipe.network)()
        load_weights(model, recipe.start)
    else:
        what = arguments.network or f"recipe {arguments.recipe}"
        raise BadValue(f"{what} starts from nothing; give a trained network with --float")
    if arguments.budget <= 0:
        raise BadValue(f"the budget must be positive, not {arguments.budget:g}")
    images, labels = (load_data(arguments.data, arguments.images) if arguments.data else
                      load_images(recipe.data, "train", arguments.images))
    if labels is None:
        raise BadValue(f"{arguments.data} has no labels, by which losses are measured; put an array `labels` into it")
    check_writable(arguments.out)
    config = _within_luts(arguments, model, recipe.quant, images) if arguments.luts else engine_of(arguments)
    search = BitSearch(model.eval(), recipe.quant, images, labels, config,
                       tuple(arguments.candidates.split()), None if arguments.json else say)
    finest = getattr(search.base, arguments.of)
    budget = arguments.budget * finest if arguments.budget <= 1 else arguments.budget
    choice = search.within(budget, arguments.of)
    content = {"recipe": arguments.recipe, "engine": config.name, "of": arguments.of, "budget": budget,
               "weights": choice.weights, "cycles": choice.point.cycles, "bytes": choice.point.bytes,
               "loss": choice.point.loss, "finest": vars(search.base)}
    write_json(arguments.out, content)
    show(arguments, content, lambda c: print_table(
        f"{c['cycles']:,} cycles an image, {c['bytes']:,} bytes, loss {c['loss']:.4f} (all at the finest: "
        f"{search.base.cycles:,}, {search.base.bytes:,}, {search.base.loss:.4f})", ("layer", "weights"),
        list(c["weights"].items())))


def _within_luts(arguments, model, recipe, images):
    """The engine that --luts leaves, by open synthesis and the cycles of the network as the recipe has it."""
    import copy

    from esbflow.engines import engine
    from esbflow.quant.export import export
    from esbflow.quant.quantize import quantize
    from esbflow.training.layer_bits import engine_within
    from esbflow.training.loop import calibrate

    configs = {name: engine(name) for name in arguments.engines.split()}
    if not configs:
        raise BadValue("--engines names no engine to choose from")
    sizes = {name: (config, resources_of(config, arguments.json).lut) for name, config in configs.items()}
    low = calibrate(quantize(copy.deepcopy(model).eval(), recipe), images, recipe.mean, recipe.std)
    name = engine_within(export(low, "search", images.shape[1:]), sizes, arguments.luts)
    if not arguments.json:
        say(f"{name}: {sizes[name][1]:,} LUTs by open synthesis")
    return configs[name]
