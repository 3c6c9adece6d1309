"""esbflow demo: the whole way, from images to a network on the cycle-accurate engine, and a report of it."""

import time
from pathlib import Path

from esbflow import children
from esbflow.commands.common import (
    JSON_HELP,
    add_engine,
    engine_of,
    positive,
    print_table,
    progress_bar,
    resources_of,
    say,
    show,
)
from esbflow.files import check_writable, write_json


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "demo", help="train, export, generate, compile, run on the compiled RTL, report",
        description="LeNet-5 on MNIST with ESB(4,1) weights and 4-bit activations; without MNIST a smaller network on "
                    "scikit-learn's digits. Writes graph.npz, engine.v, program.npz, report.json and report.html.")
    add_engine(parser)
    parser.add_argument("--out", default="build/demo", metavar="DIR")
    parser.add_argument("--images", type=positive, default=200, help="test images on the compiled RTL (default 200)")
    parser.add_argument("--zoo", metavar="NAME", help="start from a trained model of `esbflow zoo` instead of training one")
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    content = demo(engine_of(arguments), Path(arguments.out), arguments.images, arguments.batch, arguments.seed,
                   arguments.json, arguments.zoo)
    show(arguments, content, print_demo)


def demo(config, out: Path, images: int, batch: int, seed: int = 0, quiet: bool = False, zoo: str | None = None) -> dict:
    """Do it all, but for the training if a model of the zoo is named; returns what is written to report.json."""
    from esbflow.commands.run import run_images
    from esbflow.compiler.pipeline import compile_graph
    from esbflow.graph.file import load
    from esbflow.reports.estimate import estimate
    from esbflow.reports.html import write_report
    from esbflow.training.data import load_images

    began = time.monotonic()
    tell = (lambda _: None) if quiet else say
    check_writable(out / "report.json")
    tell(f"meanwhile, generate engine {config.name}, synthesize it and build its simulator (minutes the first time)")
    with children.pool(1) as beside:
        hardware = beside.submit(_hardware, config, out)
        data, metrics = _from_zoo(zoo, out) if zoo else _train(out, seed, quiet, tell)
        graph = load(out / "graph.npz")

        tell(f"compile the network for engine {config.name}")
        program = compile_graph(graph, config, batch)
        program.save(out / "program.npz")
        resources = hardware.result()
    planned = estimate(graph, config, batch, resources=resources, program=program)

    tell(f"run {images} test images on the compiled RTL, through PYNQ on the simulated ZCU102")
    test, labels = load_images(data, "test", images)
    with progress_bar("images", len(test), quiet) as update:
        ran, _ = run_images(graph, config, test, labels, "rtl", batch, progress=update)
    content = {**planned, **ran, "layers": planned["layers"], "measured_layers": ran["layers"],
               **_top1_on(out, graph, test, labels),
               "training": metrics, "demo_seconds": round(time.monotonic() - began, 1)}
    path = write_json(out / "report.json", content)
    write_report(content, graph, out / "report.html", model=out / "model.pt")
    tell(f"wrote {path} and {out / 'report.html'}")
    return content


def _hardware(config, out):
    """engine.v, and the engine's resources; its simulator is built, so that it is at hand later."""
    from esbhw import generate
    from esbsim.engine import engine_library

    generate.write(config, out)
    resources = resources_of(config, quiet=True)  # training has the progress bar
    engine_library(config)
    return resources


def _train(out, seed, quiet, tell):
    from esbflow.training.api import train_network
    from esbflow.training.data import DataUnavailable
    from esbflow.training.recipes import RECIPES

    name = "lenet5-mnist"
    try:
        tell("train LeNet-5 on MNIST: in real numbers, then with ESB(4,1) weights and 4-bit activations")
        return RECIPES[name].data, train_network(name, out, seed=seed, resume=True, progress=not quiet)
    except DataUnavailable as error:
        tell(f"{error}; going on with scikit-learn's 8x8 digits and a smaller network")
        return RECIPES["digits"].data, train_network("digits", out, seed=seed, resume=True, progress=not quiet)


def _from_zoo(name, out) -> tuple:
    """Put a trained graph where training would have put it; (data set, what its record says)."""
    from esbflow import zoo

    out.mkdir(parents=True, exist_ok=True)
    (out / "graph.npz").write_bytes(zoo.graph_path(name).read_bytes())
    for stale in ("model.pt", "float.pt"):
        (out / stale).unlink(missing_ok=True)
    record = zoo.entries()[name]
    return record["data"], {"float_top1": record["top1_float"], "fake_quant_top1": record["top1_fake_quantization"],
                            "graph_top1": record["top1_integer_graph"], "images": record["images"]}


def _top1_on(out, graph, images, labels) -> dict:
    """Top-1 on the same images: real numbers and fake quantization (if the models are there), integer graph."""
    from esbflow.graph.execute import execute
    from esbflow.quant.recipe import recipe_of
    from esbflow.training.api import load_float_model, load_model, top1
    from esbflow.training.loop import evaluate

    found = {"float_top1": None, "fake_quant_top1": None, "graph_top1": top1(execute(graph, images), labels)}
    if (out / "model.pt").exists():
        model = load_model(out / "model.pt")
        recipe, _ = recipe_of(model)
        scale = recipe.mean, recipe.std
        found["float_top1"] = evaluate(load_float_model(out / "float.pt"), images, labels, *scale)
        found["fake_quant_top1"] = evaluate(model, images, labels, *scale)
    return found


def print_demo(content: dict) -> None:
    """The table of the README."""
    from esbflow.reports.demo_table import HEADER, rows

    print_table(f"{content['model']} on {content['engine']}", HEADER, rows(content))
