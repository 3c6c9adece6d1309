"""esbflow run: a network on the integer graph, the compiled RTL, or a board; compared value for value."""

import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esbflow.commands.common import (
    CHANNELS_LAST_HELP,
    JSON_HELP,
    add_engine,
    engine_of,
    load_data,
    load_graph,
    positive,
    print_table,
    progress_bar,
    show,
)
from esbflow.commands.connect import connect
from esbflow.errors import UserError
from esbflow.files import check_writable, whole
from esbflow.maps import as_maps
from esbflow.runtime.errors import InputError
from esbflow.runtime.program_file import FORMAT, holds, load_program, outputs_of

BACKENDS = ("golden", "rtl", "board", "serial")
BATCH = 8


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser("run", help="run images through a network",
                                 description="golden: the integer graph; rtl: compiled RTL behind the PYNQ driver; board: "
                                             "a real board; serial: one without a processor, over its serial port.")
    parser.add_argument("model", help="graph.npz, zoo:NAME, or what `esbflow compile` wrote")
    add_engine(parser)
    parser.add_argument("--backend", choices=BACKENDS, default="golden")
    parser.add_argument("--data", default="mnist", help="mnist, cifar10, digits, or an .npz with `images`")
    parser.add_argument("--images", type=positive, default=100)
    parser.add_argument("--batch", type=positive, metavar="N",
                        help="images of one run on the engine (default 8)")
    parser.add_argument("--channels-last", action="store_true", help=CHANNELS_LAST_HELP)
    parser.add_argument("--overlay", metavar="FILE.bit", help="the bitstream to load, for --backend board")
    parser.add_argument("--port", metavar="PATH", help="for --backend serial: as /dev/ttyUSB0, or `simulated`")
    parser.add_argument("--record", metavar="FILE.jsonl", help="for board and serial: write down every access")
    parser.add_argument("--top", type=positive, metavar="K", help="print the K classes of largest output of each image")
    parser.add_argument("--outputs", metavar="FILE", help="write all outputs: .npy, or .npz with their step and classes")
    parser.add_argument("--waves", metavar="FILE.vcd", help="for --backend rtl: waves, by a slower simulator")
    parser.add_argument("--waves-cycles", metavar="FIRST:LAST", help="of these cycles only; one end may be missing")
    parser.add_argument("--waves-blocks", metavar="NAMES", help="of these blocks only, as drain,array.column_0")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(run=run, engine=None)


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    graph, program = _model(arguments.model)
    config = _engine(arguments, program)
    images, labels = load_data(arguments.data, arguments.images)
    if arguments.backend == "board" and not arguments.overlay:
        raise UserError("--backend board needs --overlay FILE.bit; no bitstream comes with the project")
    if arguments.backend == "serial" and not arguments.port:
        raise UserError("--backend serial needs --port PATH, the board's serial port; or --port simulated")
    if arguments.record and arguments.backend not in ("board", "serial"):
        raise UserError("--record writes down what a board answers; use it with --backend board or serial")
    if arguments.outputs and Path(arguments.outputs).suffix not in (".npy", ".npz"):
        raise UserError(f"--outputs {arguments.outputs} must end in .npy or .npz")
    if program is not None:
        if arguments.backend == "golden":
            raise UserError(f"{arguments.model} is a compiled program: give --backend rtl or board, or its integer graph")
        if arguments.batch not in (None, program.meta["batch"]):
            raise UserError(f"{arguments.model} runs {program.meta['batch']} images at a time; leave --batch out, or "
                            "compile the graph again")
    if arguments.channels_last and (program is not None or arguments.backend == "golden"):
        raise UserError("--channels-last says how a graph is compiled: use it with an integer graph and an engine; a "
                        "compiled program knows how it takes images")
    several = graph.outputs if graph is not None else program.meta.get("outputs")
    if several and (arguments.top or str(arguments.outputs).endswith(".npy")):
        raise UserError(f"{arguments.model} has {len(several)} outputs: leave --top out, and write --outputs FILE.npz")
    for path in (arguments.outputs, arguments.record):
        if path:
            check_writable(path)
    port, waves = arguments.port if arguments.backend == "serial" else None, _waves(arguments)
    with progress_bar(f"run on {arguments.backend}", len(images), arguments.json) as update:
        content, outputs = run_images(graph, config, images, labels, arguments.backend, arguments.batch or BATCH,
                                      arguments.overlay, update, program, port, arguments.record, waves,
                                      arguments.channels_last)
    if arguments.top:
        content["classes"] = classes(outputs, arguments.top).tolist()
    if arguments.outputs:
        results = outputs_of(program.meta) if graph is None else graph.results
        scales = {name: one["scale"] if graph is None else one.scale for name, one in results.items()}
        content["outputs"] = str(_save(Path(arguments.outputs), outputs, scales))
    show(arguments, content, _print)


def _waves(arguments):
    """esbsim.waves.Waves of the options, or None."""
    if not arguments.waves:
        if arguments.waves_cycles or arguments.waves_blocks:
            raise UserError("--waves-cycles and --waves-blocks choose from --waves; give it too")
        return None
    if arguments.backend != "rtl":
        raise UserError("--waves needs --backend rtl: only the simulated engine has waves")
    from esbsim.waves import Waves

    ends = (arguments.waves_cycles or "0:").split(":")
    if len(ends) != 2 or not all(end.isdecimal() or not end for end in ends):
        raise UserError(f"--waves-cycles takes FIRST:LAST, such as 1000:3000, not {arguments.waves_cycles}")
    blocks = tuple(arguments.waves_blocks.split(",")) if arguments.waves_blocks else ()
    return Waves(check_writable(arguments.waves), (int(ends[0] or 0), int(ends[1]) if ends[1] else None), blocks)


def classes(outputs: np.ndarray, count: int) -> np.ndarray:
    """int64 (n, count or fewer): the classes of the largest outputs (n, classes, ...) first; of equal ones the lowest.

    >>> classes(np.array([[3, 9, 9, 1]]), 3)
    array([[1, 2, 0]])
    """
    flat = outputs.reshape(len(outputs), -1)
    return np.argsort(-flat, axis=1, kind="stable")[:, :count]


class RunResult(NamedTuple):
    """Fields of `esbflow run --json`, and integer outputs (n, c, h, w), of several outputs {name: those}."""

    content: dict
    outputs: np.ndarray | dict


def run_images(graph, config, images, labels, backend: str, batch: int = BATCH, overlay: str | None = None,
               progress=None, program=None, port: str | None = None, record: str | None = None, waves=None,
               channels_last: bool = False) -> RunResult:
    """(fields of `esbflow run --json`, integer outputs (n, c, h, w) or {name: those} of several) of images run on one of
    BACKENDS.

    The engine's outputs are compared with those of the integer graph. With a `program` and no `graph` there is nothing to
    compare with, and `mismatches` is None, as it is for the integer graph itself. `parts`, of a network that the host has a
    share of, says what ran where.
    """
    from esbflow.graph.doubts import unmoved, warn
    from esbflow.graph.execute import execute
    from esbflow.graph.macs import macs_per_image

    expected = None
    if graph is not None:
        expected = execute(graph, images)
        warn(unmoved(graph, images))
        content = {"model": graph.name, "macs_per_image": macs_per_image(graph)}
    else:
        content = {"model": program.meta["name"], "macs_per_image": sum(layer["macs"] for layer in program.meta["layers"])}
    content.update(backend=backend, images=len(images), mismatches=None, values=None, cycles_per_image=None,
                   utilization=None, sim_cycles_per_second=None)
    if backend == "golden":
        outputs = expected
    else:
        if program is None:
            program = _compile(graph, config, batch, channels_last)
        outputs, measured = _on_engine(program, connect(config, overlay, port, record, waves), _as_taken(program, images),
                                       progress)
        if waves is not None:
            from esbsim.board import board

            board().simulator.trace(None)  # ends the file
        cycles = measured.pop("cycles") / len(images)
        content.update(
            engine=config.name, batch=program.meta["batch"], input=_said_of_input(program), cycles_per_image=cycles,
            utilization=content["macs_per_image"] / (cycles * config.macs_per_cycle), **measured)
        content["lost"] = _lost(program, config, content["layers"], cycles)
        if expected is not None:
            several = isinstance(outputs, dict)
            pairs = [(expected[name], outputs[name]) for name in outputs] if several else [(expected, outputs)]
            content.update(mismatches=sum(int((a != b).sum()) for a, b in pairs), values=sum(a.size for a, _ in pairs))
    content["top1"] = None
    if labels is not None and not isinstance(outputs, dict):
        content["top1"] = 100 * float((classes(outputs, 1)[:, 0] == labels).mean())
    return RunResult(content, outputs)


def _lost(program, config, layers: list, cycles: float) -> dict:
    """Where an image's cycles went, by the engine's counters; puts each layer's share into the layer too."""
    from esbflow.reports.lost import lost_cycles, network_total

    batch = program.meta["batch"]
    own_rounds = config.rounds(batch, program.meta.get("stripes", False)) / batch
    for meta, layer in zip(program.meta["layers"], layers):
        spent = {key.removeprefix("stall_"): value for key, value in layer.items()}
        layer["lost"] = lost_cycles(meta, spent, layer["cycles"], config, 1, own_rounds)
    return network_total(layers, cycles)


def _model(path):
    """(integer graph, None), or (None, program) where the file is one; (graph, program) where the host has a share of it."""
    from esbflow.split.program import is_split, load_split

    if holds(path, FORMAT):
        return None, load_program(path)
    if is_split(path):
        program = load_split(path)
        return program.graph, program
    return load_graph(path), None


def _engine(arguments, program):
    """The engine that was asked for; a program's own where none was."""
    if program is None:
        return engine_of(arguments)
    if arguments.engine is not None and (asked := engine_of(arguments)).hash != program.config.hash:
        raise UserError(f"{arguments.model} is for engine {program.config.name}, not {asked.name}; leave --engine out, or "
                        "compile the graph for that engine")
    return program.config


def _save(path: Path, outputs, scales: dict) -> Path:
    """Write outputs. Of several an array each under its name, and its step under NAME.scale."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        if path.suffix == ".npy":
            np.save(file, outputs)
        elif isinstance(outputs, dict):
            # Not np.savez: its own parameters would be names that no output may have.
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, array in {**outputs, **{f"{name}.scale": scale for name, scale in scales.items()}}.items():
                    with archive.open(f"{name}.npy", "w") as entry:
                        np.lib.format.write_array(entry, np.asanyarray(array))
        else:
            np.savez_compressed(file, outputs=outputs, scale=next(iter(scales.values())),
                                classes=classes(outputs, outputs[0].size))
    return path


def _compile(graph, config, batch, channels_last):
    from esbflow.split.program import compile_split

    return compile_split(graph, config, batch, channels_last)


def _said_of_input(program):
    """Which way images go to the first layer; None of a network that the host has a share of."""
    from esbflow.compiler.images import said_of_input

    return said_of_input(program) if "input" in program.meta else None


def _as_taken(program, images: np.ndarray) -> np.ndarray:
    """Images (n, c, h, w) in the order of axes that the program takes."""
    given = program.meta.get("input", {})
    if not given.get("channels_last"):
        return images
    return np.ascontiguousarray(np.moveaxis(as_maps(images, tuple(given["shape"]), InputError), 1, 3))


def _on_engine(program, driver, images, progress):
    from esbflow.split.driver import SplitEngine
    from esbflow.split.program import SplitProgram

    if isinstance(program, SplitProgram):
        driver = SplitEngine(getattr(driver, "engine", driver))
    driver.load(program)
    began = time.monotonic()
    result = driver.run(images, progress)
    seconds = time.monotonic() - began
    layers = [{"name": first["name"], **{
        key: sum(run[i][key] for run in result.layers) / len(images) for key in first if key != "name"}}
        for i, first in enumerate(result.layers[0])]
    parts = getattr(result, "parts", None)
    return result.outputs, {
        **({"parts": parts} if parts else {}), "cycles": result.cycles, "seconds": seconds,
        "sim_cycles_per_second": result.cycles / seconds, "layers": layers}


def _print(content: dict) -> None:
    from esbflow.reports.lost import largest

    rows = [("images", content["images"])]
    if content["top1"] is not None:
        rows.append(("top-1 %", f"{content['top1']:.2f}"))
    if content["mismatches"] is not None:
        rows.append(("values that differ from the integer graph", f"{content['mismatches']} of {content['values']:,}"))
    if content["cycles_per_image"]:
        if content["input"]:
            rows.append(("input", content["input"]))
        rows += [("cycles an image", f"{content['cycles_per_image']:,.0f}"),
                 ("MACs an image", f"{content['macs_per_image']:,}"),
                 ("use of the array %", f"{100 * content['utilization']:.1f}"),
                 ("lost to, %", largest(content["lost"], content["cycles_per_image"])),
                 ("clock cycles simulated a second", f"{content['sim_cycles_per_second']:,.0f}")]
    print_table(f"{content['model']} on {content['backend']}", ("", ""), rows)
    if "parts" in content:
        count = content["images"]
        print_table("what ran where, for each image", ("where", "name", "what", "cycles", "ms", "why on the host"),
                    [(part["where"], part["name"], part["operator"],
                      f"{part['cycles'] / count:,.0f}" if part["cycles"] else "",
                      f"{1000 * part['seconds'] / count:.3g}", part["why"]) for part in content["parts"]])
    if "classes" in content:
        print_table("largest outputs first", ("image", "classes"),
                    [(i, " ".join(map(str, best))) for i, best in enumerate(content["classes"])])
    if "outputs" in content:
        print(content["outputs"])
