"""esbflow run: a network on the integer graph, the compiled RTL, or a board; compared value for value."""

import time
from pathlib import Path

import numpy as np

from esbflow.commands.common import (
    JSON_HELP,
    UserError,
    add_engine,
    engine_of,
    load_data,
    load_graph,
    positive,
    print_table,
    progress_bar,
    show,
)

BACKENDS = ("golden", "rtl", "board")


def add_parser(commands) -> None:
    parser = commands.add_parser("run", help="run images through a network",
                                 description="golden: the integer graph; rtl: compiled RTL behind the PYNQ driver on the "
                                             "simulated board; board: a real one.")
    parser.add_argument("model", help="an integer graph, graph.npz")
    add_engine(parser)
    parser.add_argument("--backend", choices=BACKENDS, default="golden")
    parser.add_argument("--data", default="mnist", help="mnist, cifar10, digits, or an .npz with `images` (and `labels`)")
    parser.add_argument("--images", type=positive, default=100)
    parser.add_argument("--batch", type=positive, default=8, help="images of one run on the engine (default 8)")
    parser.add_argument("--overlay", metavar="FILE.bit", help="the bitstream to load, for --backend board")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run)


def run(arguments) -> None:
    config = engine_of(arguments)
    graph = load_graph(arguments.model)
    images, labels = load_data(arguments.data, arguments.images)
    if arguments.backend == "board" and not arguments.overlay:
        raise UserError("--backend board needs --overlay FILE.bit; no bitstream comes with the project")
    with progress_bar(f"run on {arguments.backend}", len(images), arguments.json) as update:
        content = run_images(graph, config, images, labels, arguments.backend, arguments.batch, arguments.overlay, update)
    show(arguments, content, _print)


def run_images(graph, config, images, labels, backend: str, batch: int, overlay: str | None = None,
               progress=None) -> dict:
    """Run images and compare with the integer graph; the fields of `esbflow run --json`."""
    from esbflow.graph.doubts import unmoved, warn
    from esbflow.graph.execute import execute
    from esbflow.graph.macs import macs_per_image

    expected = execute(graph, images)
    warn(unmoved(graph, images))
    content = {"model": graph.name, "backend": backend, "images": len(images),
               "macs_per_image": macs_per_image(graph)}
    if backend == "golden":
        outputs = expected
        content.update(mismatches=0, values=int(expected.size), cycles_per_image=None, utilization=None,
                       sim_cycles_per_second=None)
    else:
        outputs, measured = _on_engine(graph, config, images, batch, overlay, progress)
        cycles = measured.pop("cycles") / len(images)
        content.update(
            engine=config.name, batch=batch, mismatches=int((outputs != expected).sum()), values=int(expected.size),
            cycles_per_image=cycles, utilization=content["macs_per_image"] / (cycles * config.macs_per_cycle), **measured)
    content["top1"] = None if labels is None else 100 * float(
        (outputs.reshape(len(outputs), -1).argmax(axis=1) == labels).mean())
    return content


def _on_engine(graph, config, images, batch, overlay, progress):
    from esbflow.compiler.pipeline import compile_graph
    from esbflow.graph.bounds import check

    check(graph, config.accumulator_width)
    program = compile_graph(graph, config, batch)
    if overlay is None:
        from esbsim.board import write_overlay  # importing it makes the simulated board PYNQ's device

        overlay = write_overlay(config, Path("build") / "overlay" / f"{config.hash:016x}")
    import pynq

    from esbflow.runtime import pynq_driver

    pynq_driver.bind(config)
    driver = pynq.Overlay(str(overlay)).esb_engine_0
    driver.load(program)
    began = time.monotonic()
    result = driver.run(images, progress)
    seconds = time.monotonic() - began
    layers = [{"name": first["name"], **{
        key: sum(run[i][key] for run in result.layers) / len(images) for key in first if key != "name"}}
        for i, first in enumerate(result.layers[0])]
    return np.asarray(result.outputs), {
        "cycles": result.cycles, "seconds": seconds, "sim_cycles_per_second": result.cycles / seconds, "layers": layers}


def _print(content: dict) -> None:
    rows = [("images", content["images"])]
    if content["top1"] is not None:
        rows.append(("top-1 %", f"{content['top1']:.2f}"))
    rows.append(("values that differ from the integer graph", f"{content['mismatches']} of {content['values']:,}"))
    if content["cycles_per_image"]:
        rows += [("cycles an image", f"{content['cycles_per_image']:,.0f}"),
                 ("MACs an image", f"{content['macs_per_image']:,}"),
                 ("use of the array %", f"{100 * content['utilization']:.1f}"),
                 ("clock cycles simulated a second", f"{content['sim_cycles_per_second']:,.0f}")]
    print_table(f"{content['model']} on {content['backend']}", ("", ""), rows)
