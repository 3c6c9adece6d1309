"""Studies: one network under many methods, a record in docs/results for each. What docs/accuracy.md is made of.

    esbflow study methods lenet5 --out build/studies --results docs/results
    esbflow study methods resnet20 --only vecq4 --results docs/results
    esbflow study methods vgg-small --device cuda --precision bfloat16 --compile

A run whose record is there is skipped, an interrupted one goes on from its last epoch, and all runs of a study share the
network that was trained in real numbers and the answers of their teacher.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from esbflow.errors import BadValue
from esbflow.suggest import nearest
from esbflow.training import record
from esbflow.training.api import named, train_network
from esbflow.training.machine_options import said_of_machine
from esbflow.training.recipes import TrainingRecipe


@dataclass(frozen=True)
class Run:
    """One entry: `name` of the record, texts of weights and activations, what else differs from the study's recipe."""

    name: str
    weights: str
    activations: str
    options: tuple = ()


@dataclass(frozen=True)
class Study:
    """Runs on one recipe; `epochs` and `rate` of the low-bit stage."""

    recipe: str
    epochs: int
    rate: float
    runs: tuple


# The widths of LQ-Nets' tables, weights-activations; 8 bits stand for activations that were not quantized.
LQNETS = (*(Run(f"lqnets{w}-{a}", f"lqnets:{w}", f"lqnets:{a}") for w, a in ((1, 2), (2, 2), (3, 3))),
          *(Run(f"lqnets{w}-8", f"lqnets:{w}", "u8") for w in (1, 2, 3)))
LENET5 = Study("lenet5-mnist", 3, 0.01, (
    Run("ul2q1", "ul2q:1", "u8"), Run("ul2q2", "ul2q:2", "u8"), Run("ul2q4", "ul2q:4", "u8"), Run("ul2q8", "ul2q:8", "u8"),
    Run("vecq1", "vecq:1", "u8"), Run("vecq2", "vecq:2", "u8"), Run("esb2", "esb2.0", "u8"), Run("esb2-2", "esb2.0", "u2"),
    Run("lqnets1", "lqnets:1", "u8"), Run("lqnets2-2", "lqnets:2", "lqnets:2"), Run("sq-binary", "sq:binary", "u8"),
    Run("sq-twn", "sq:twn", "u8"), Run("srq2", "srq:2", "srq:2"), Run("srq4", "srq:4", "srq:4"),
    Run("srq8", "srq:8", "srq:8"),
    Run("srq-drop2", "srq:2,drop", "u8"), Run("srq-learn", "srq:8,learn", "u8"), Run("binary", "binary", "u8"),
    Run("twn", "twn", "u8"), Run("dorefa1", "dorefa:1", "u8"), Run("lsq2", "lsq:s2", "u2"), Run("pact2", "esb2.0", "pact:2"),
    Run("pot2", "pot:2", "u8"), Run("apot2", "apot:2", "u8"), Run("esb4-4", "esb4.1", "u4"),
))
RESNET20 = Study("resnet20-cifar10-w4a4", 3, 0.01, (
    Run("ul2q4", "ul2q:4", "u4"), Run("vecq4", "vecq:4", "u4"), Run("lqnets3-4", "lqnets:3", "u4"),
    Run("lsq4", "lsq:s4", "u4"),
    Run("pact4", "esb4.1", "pact:4"), Run("dorefa4", "dorefa:4", "u4"), Run("pot4", "pot:4", "u4"),
    Run("apot4", "apot:4", "u4"),
    Run("srq4", "srq:4", "u4"), Run("uniform4", "uniform:4", "u4"), Run("sq-twn", "sq(ramped,linear):twn", "u4"),
    Run("twn", "twn", "u4"), Run("binary", "binary", "u4"), Run("lqnets4-4", "lqnets:4", "lqnets:4"),
    *LQNETS, Run("apot3", "apot:3", "pact:3"), Run("apot2", "apot:2", "pact:2"),
))
# What stochastic quantization was published on: ternary and binary weights, with it and without.
RESNET56 = Study("resnet56-cifar10-w2a8", 3, 0.01, (
    Run("sq-twn", "sq(ramped,linear):twn", "u8"), Run("twn", "twn", "u8"),
    Run("sq-binary", "sq(ramped,linear):binary", "u8"), Run("binary", "binary", "u8"),
))
VGG_SMALL = Study("vgg-small-cifar10-w2a2", 60, 0.02, (Run("esb2-2", "esb2.0", "pact:2"), *LQNETS))
# What muL2Q was published on.
UL2Q = tuple(Run(f"ul2q{bits}", f"ul2q:{bits}", "u8") for bits in (1, 2, 4, 8))
CIFARNET = Study("cifarnet-cifar10-w2a8", 6, 0.02, UL2Q)
VGG7 = Study("vgg7-64-cifar10-w2a8", 4, 0.01, UL2Q)
# The networks of FINN, as Brevitas' examples train them.
CNV = Study("cnv-cifar10-w2a2", 8, 0.02, (
    Run("w2a2", "esb2.0", "u2"), Run("w1a2", "binary", "u2"), Run("w1a1", "binary", "u1")))
LFC = Study("lfc-mnist-w1a1", 16, 0.02, (
    Run("w1a1", "binary", "u1"), Run("w1a2", "binary", "u2", (("input_bits", 2),))))
TFC = Study("tfc-mnist-w2a2", 16, 0.02, (Run("w2a2", "esb2.0", "u2"),))
STUDIES = {"lenet5": LENET5, "resnet20": RESNET20, "resnet56": RESNET56, "vgg-small": VGG_SMALL, "cifarnet": CIFARNET,
           "vgg7": VGG7, "cnv": CNV, "lfc": LFC, "tfc": TFC}


def recipe_of(study: Study, run: Run) -> TrainingRecipe:
    """The training recipe of one run. First and last layer are quantized like all others where the study does so."""
    recipe = named(study.recipe)
    alike = {field: run.weights for field in ("first_weights", "last_weights")
             if getattr(recipe.quant, field) == recipe.quant.weights}
    recipe = recipe.changed(study.rate, weights=run.weights, activations=run.activations, **alike, **dict(run.options))
    return replace(recipe, low_bit=recipe.low_bit.with_epochs(study.epochs))


def carry_out(name: str, out: Path, results: Path, only: str | None = None, seed: int = 0, progress: bool = True,
              epochs: int | None = None, device: str | None = None, precision: str = "float32",
              compiled: bool = False) -> list:
    """Do the runs whose records are missing; returns the records' paths.

    `epochs` are those of the low-bit stage, in place of the study's; `device`, `precision` and `compiled` are as in
    `train_network`.

    Raises
    ------
    ValueError
        for an unknown study or run, naming those there are.
    """
    if name not in STUDIES:
        raise BadValue(f"no study named {name!r}; there are {', '.join(STUDIES)}{nearest(name, STUDIES)}")
    study = STUDIES[name] if epochs is None else replace(STUDIES[name], epochs=epochs)
    runs = [run for run in study.runs if only in (None, run.name)]
    if not runs:
        known = [run.name for run in study.runs]
        raise BadValue(f"study {name} has no run {only!r}; it has {', '.join(known)}{nearest(only, known)}")
    written, machine = [], dict(device=device, precision=precision, compiled=compiled)
    for run in runs:
        path = results / f"{name}-{run.name}.json"
        if not path.exists():
            record.write(path, _measured(name, run, recipe_of(study, run), out, seed, progress, machine))
            written.append(path)
    return written


def _measured(name, run, recipe, out, seed, progress, machine) -> dict:
    began, folder = time.monotonic(), out / f"{name}-{run.name}"
    float_model = out / f"{name}-float.pt"
    metrics = train_network(recipe, folder, seed=seed, resume=True, progress=progress,
                            float_model=float_model if float_model.exists() else None,
                            teacher_cache=out / f"{name}-teacher.sqlite", **machine)
    if not float_model.exists():
        (folder / "float.pt").replace(float_model)
    epochs = recipe.low_bit.epochs
    command = record.command_line(
        f"esbflow study methods {name} --only {run.name}", seed=seed or None,
        epochs=epochs if epochs != STUDIES[name].epochs else None, **said_of_machine(**machine))
    return record.of_training(metrics, command, (time.monotonic() - began) / 60, machine["device"])


def study(given, say=None) -> dict:
    """What `esbflow study methods` does with its options; says which records were written, and what they reach."""
    written = carry_out(given.network, given.out, given.results, given.only, given.seed, say is not None, given.epochs,
                        given.device, given.precision, given.compile)
    return {"study": given.network, "written": {str(path): json.loads(path.read_text())["top1_integer_graph"]
                                                for path in written}}
