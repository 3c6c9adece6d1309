"""esbflow train: from images to an integer graph by a named recipe."""

from esbflow.commands.common import JSON_HELP, positive, print_table, show
from esbflow.engines import DEFAULT_ENGINE
from esbflow.errors import BadValue
from esbflow.files import check_writable
from esbflow.training.machine_options import add_machine, said_of_machine


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("train", help="train a network by a recipe and export it",
                                 description="Writes model.pt, graph.npz and metrics.json into --out.")
    parser.add_argument("recipe", help="a named recipe, such as resnet20-cifar10-w4a4")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--epochs", type=positive, help="of each stage, instead of the recipe's")
    parser.add_argument("--batch", type=positive, help="images a step at low bits, instead of the recipe's")
    parser.add_argument("--rate", type=float, help="learning rate at low bits, instead of the recipe's")
    parser.add_argument("--sharpness", type=float, metavar="RADIUS",
                        help="of sharpness-aware minimization (0: without)")
    for name, example in (("weights", "vecq:4"), ("activations", "u4"), ("first-weights", "s8"), ("last-weights", "s8")):
        parser.add_argument(f"--{name}", metavar="FORMAT", help=f"a format or method such as {example}")
    parser.add_argument("--scale-mode", metavar="MODE",
                        help="scales: closed_form, laplace, refined, learned, pow2")
    parser.add_argument("--power-of-two", action="store_true", default=None,
                        help="scales of powers of two, for requantizers that shift")
    add_machine(parser)
    parser.add_argument("--overrides", metavar="FILE", help="weights of single layers, by `esbflow search`")
    parser.add_argument("--float", dest="float_model", metavar="FILE", help="start from the float.pt of an earlier run")
    parser.add_argument("--teacher-cache", metavar="FILE", help="keep the teacher's outputs there for later runs")
    parser.add_argument("--engine", default=DEFAULT_ENGINE, metavar="NAME",
                        help=f"whose cycles learned bits cost (default {DEFAULT_ENGINE})")
    parser.add_argument("--results", metavar="FILE", help="write a record for the accuracy ledger there")
    parser.add_argument("--images", type=positive, help="train on so many images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    instead = parser.add_argument_group("with --post-training, instead of training at low bits")
    instead.add_argument("--post-training", type=positive, metavar="IMAGES", help="calibrate on so many, without labels")
    instead.add_argument("--rounding", metavar="HOW", help="of weights: outputs (GPTQ, the default) or nearest")
    instead.add_argument("--ranges", metavar="HOW", help="of activations: error (the default), or a percentile")
    instead.add_argument("--equalize", action="store_true", help="share ranges of channels between layers first")
    instead.add_argument("--tune", type=positive, metavar="TIMES", help="tune weights and scales, so many passes")
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    from esbflow.training import distributed
    from esbflow.training.api import named, train_network

    distributed.start()
    recipe = named(arguments.recipe).changed(
        arguments.rate, arguments.batch, arguments.sharpness, scale_mode=arguments.scale_mode,
        power_of_two=arguments.power_of_two, weights=arguments.weights, activations=arguments.activations,
        first_weights=arguments.first_weights, last_weights=arguments.last_weights,
        overrides=_overrides(arguments.overrides))
    if arguments.results:
        check_writable(arguments.results)
    metrics = train_network(recipe, arguments.out, arguments.epochs, arguments.seed, train_images=arguments.images,
                            resume=arguments.resume, progress=not arguments.json, float_model=arguments.float_model,
                            post_training=arguments.post_training, how=_how(arguments), device=arguments.device,
                            precision=arguments.precision, compiled=arguments.compile, teacher_cache=arguments.teacher_cache,
                            engine=arguments.engine)
    if arguments.results:
        _write_record(arguments, metrics)
    show(arguments, metrics, lambda m: print_table(
        f"{m['network']} on {m['images']} test images of {m['data']}, {m['seconds']} s", ("computed in", "top-1 %"),
        [("real numbers", f"{m['float_top1']:.2f}"), ("fake quantization", f"{m['fake_quant_top1']:.2f}"),
         ("integers", f"{m['graph_top1']:.2f}")]))


def _how(arguments):
    """What the options say of training nothing."""
    from esbflow.training.post_training import PostTraining

    names = ("rounding", "ranges", "equalize", "tune")
    said = {name: getattr(arguments, name) for name in names if getattr(arguments, name)}
    if said and not arguments.post_training:
        raise BadValue(f"--{next(iter(said))} is for --post-training; give the number of images with it")
    if said.get("ranges", "error") != "error":
        try:
            said["ranges"] = float(said["ranges"])
        except ValueError:
            pass  # refused below, by what it is
    return PostTraining(**said)


def _overrides(path: str | None) -> tuple | None:
    """{layer: weights} of a JSON file as a recipe has it."""
    if path is None:
        return None
    import json
    from pathlib import Path

    try:
        content = json.loads(Path(path).read_text())
        found = tuple(content.get("weights", content).items())
        if not found or not all(isinstance(text, str) for _, text in found):
            raise TypeError("it names none")
        return found
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError, TypeError) as error:
        raise BadValue(f"{path} is no JSON object of layers and weights ({error}); `esbflow search` writes one") from None


def _write_record(arguments, metrics: dict) -> None:
    from pathlib import Path

    from esbflow.training import record

    said = {name: getattr(arguments, name) for name in (
        "epochs", "batch", "rate", "sharpness", "weights", "activations", "first_weights", "last_weights", "scale_mode",
        "power_of_two", "overrides", "post_training", "rounding", "ranges", "equalize", "tune", "images")}
    said.update(said_of_machine(arguments.device, arguments.precision, arguments.compile))
    said["seed"] = arguments.seed or None
    said["float"] = arguments.float_model
    said["engine"] = arguments.engine if arguments.engine != DEFAULT_ENGINE else None
    command = record.command_line(f"esbflow train {arguments.recipe}", **said)
    record.write(Path(arguments.results), record.of_training(metrics, command, metrics["seconds"] / 60, arguments.device))
