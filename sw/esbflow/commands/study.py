"""esbflow study: one kind of network, trained in real numbers and at low bits, and a record of what it reaches."""

import importlib
import time
from pathlib import Path

from esbflow.commands.common import JSON_HELP, print_table, say, show
from esbflow.files import check_folder, check_writable
from esbflow.training.machine_options import add_machine


def add_parser(commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "study", help="measure text, saliency or citation networks, methods, learned bits",
        description="Trains, exports, runs the integers, and records what they reach. docs/accuracy.md lists the records.")
    studies = parser.add_subparsers(dest="study", required=True, metavar="NAME")
    _add_text(studies)
    _add_saliency(studies)
    _add_citations(studies)
    _add_lottery(studies)
    _add_methods(studies)
    _add_codebooks(studies)
    parser.set_defaults(run=run)


def _add_text(studies) -> None:
    parser = studies.add_parser("text", help="sentences, by a convolutional network")
    parser.add_argument("--data", default="imdb", help="imdb or thucnews, from ESBFLOW_DATA (default imdb)")
    _add_formats(parser, "esb2.0", "u4")
    parser.add_argument("--sentences", type=int, help="only so many of each part, for a trial")
    _add_stages(parser)
    _add_places(parser, "graph.npz, host.npz")
    _add_table(parser)


def _add_saliency(studies) -> None:
    parser = studies.add_parser("saliency", help="salient objects in pictures, by a U-Net")
    _add_formats(parser, "vecq:2", "u8")
    parser.add_argument("--pictures", type=int, help="only so many of each part, for a trial")
    _add_stages(parser)
    parser.add_argument("--draw", type=Path, metavar="FILE.png", help="draw a few pictures, masks and maps")
    _add_places(parser, "graph.npz")


def _add_citations(studies) -> None:
    parser = studies.add_parser("citations", help="nodes of citation graphs, by a GCN or an AGNN")
    parser.add_argument("--data", default="cora", help="cora or citeseer, from ESBFLOW_DATA/planetoid (default cora)")
    parser.add_argument("--network", default="gcn", help="gcn or agnn (default gcn)")
    parser.add_argument("--seeds", type=int, default=10, help="how many trainings (default 10)")
    parser.add_argument("--bits", type=int, default=4, help="of all stored features but the input's (default 4)")
    parser.add_argument("--weights", default="esb4.1", help="a weight format or method (default esb4.1)")
    parser.add_argument("--ranges", default="node", help="what shares a range: tensor, bucket or node (default node)")
    parser.add_argument("--search", action="store_true", help="select the bits of each tensor automatically first")
    parser.add_argument("--drop", type=float, metavar="POINTS",
                        help="that a setting which --search selects may cost on the validation nodes (default 0.5)")
    parser.add_argument("--epochs", type=int, help="of each stage (default 200 in real numbers, 100 quantized)")
    _add_places(parser, "integer graphs of seed 0")
    _add_table(parser)


def _add_lottery(studies) -> None:
    parser = studies.add_parser(
        "lottery", help="bits that SRQ learned, trained from scratch, against one width in all layers",
        description="All trainings of a seed start from the same weights and see the same images.")
    parser.add_argument("recipe", nargs="?", default="tfc-mnist-w2a2",
                        help="whose network, images and schedule are taken (default tfc-mnist-w2a2)")
    parser.add_argument("--seeds", type=int, default=5, help="how many times (default 5)")
    parser.add_argument("--penalty", type=float, default=0.005,
                        help="of the bits that are learned: the larger, the fewer (default 0.005)")
    parser.add_argument("--images", type=int, help="train on so many only, for a trial")
    parser.add_argument("--epochs", type=int, help="of each training, instead of the recipe's")
    parser.add_argument("--rate", type=float, help="of learning, instead of that of the recipe's low-bit stage")
    _add_places(parser, "")
    _add_table(parser)


def _add_methods(studies) -> None:
    parser = studies.add_parser("methods", help="one network for images, by many methods",
                                description="Runs whose records are there are left out.")
    parser.add_argument("network", help="lenet5, resnet20, resnet56, vgg-small, cifarnet, vgg7, cnv, lfc or tfc")
    parser.add_argument("--only", metavar="RUN", help="one run of the study, such as vecq2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of the low-bit stage, instead of the study's")
    add_machine(parser)
    _add_places(parser, "what `esbflow train` writes, for each run", Path("build/studies"), Path("docs/results"))


def _add_codebooks(studies) -> None:
    parser = studies.add_parser("codebooks", help="size and speed of codebooks on this CPU, beside dense weights")
    parser.add_argument("network", help="of the registry, such as resnet20")
    parser.add_argument("--weights", default="pq:256,9", help="a method that has a codebook (default pq:256,9)")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def _add_formats(parser, weights: str, activations: str) -> None:
    parser.add_argument("--weights", default=weights, help=f"a weight format or method (default {weights})")
    parser.add_argument("--activations", default=activations,
                        help=f"an activation format or method (default {activations})")


def _add_stages(parser) -> None:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of each stage, instead of the study's")
    parser.add_argument("--float", dest="floats", type=Path, metavar="FILE",
                        help="the network in real numbers: read if it is there, written if not, so that several methods "
                             "start from the same")
    parser.add_argument("--control", action="store_true",
                        help="train the network in real numbers on as long as the low-bit one, to compare")


def _add_places(parser, written: str, out: Path | None = None, results: Path | None = None) -> None:
    said = [f" (default {place})" if place else "" for place in (out, results)]
    parser.add_argument("--out", type=Path, metavar="DIR", default=out,
                        help=f"write {written and written + ' there, and '}checkpoints{'' if written else ' there'} from "
                             f"which an interrupted run goes on{said[0]}")
    parser.add_argument("--results", type=Path, metavar="DIR", default=results, help=f"write the record there{said[1]}")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def _add_table(parser) -> None:
    parser.add_argument("--table", type=Path, metavar="DIR", help="only print the records of DIR as a Markdown table")


def run(arguments) -> None:
    """Carry the command out; raises UserError for bad input."""
    module = importlib.import_module(f"esbflow.studies.{arguments.study}")  # here: they need torch, and help is quick
    if getattr(arguments, "table", None):
        print(module.table(arguments.table))
        return
    for name in ("out", "results"):
        if getattr(arguments, name, None):
            check_folder(getattr(arguments, name))
    for name in ("draw", "floats"):
        if getattr(arguments, name, None):
            check_writable(getattr(arguments, name))
    began = time.monotonic()
    result = module.study(
        arguments, None if arguments.json else lambda text: say(f"[{time.monotonic() - began:6.1f} s] {text}"))
    show(arguments, result, lambda found: print_table(f"study {arguments.study}", ("", ""), _rows(found)))


def _rows(found: dict) -> list:
    """Numbers and words of a record, and those one level further in where it is all they are."""
    rows = []
    for name, value in found.items():
        if name == "written":
            rows += [(f"wrote {path}", f"{top1:.2f} %") for path, top1 in value.items()]
        elif not isinstance(value, (dict, list)):
            rows.append((name, f"{value:,}" if isinstance(value, int) else value))
    return rows
