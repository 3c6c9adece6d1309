"""Studies: one network under many methods, a record in docs/results for each. What docs/accuracy.md is made of.

    python -m esbflow.training.studies lenet5 --out build/studies --results docs/results
    python -m esbflow.training.studies resnet20 --only vecq4 --results docs/results

A run whose record is there is skipped, an interrupted one goes on from its last epoch, and all runs of a study share the
network that was trained in real numbers and the answers of their teacher.
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

from esbflow.training import record
from esbflow.training.api import named, train_network
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
))
STUDIES = {"lenet5": LENET5, "resnet20": RESNET20}


def recipe_of(study: Study, run: Run) -> TrainingRecipe:
    """The training recipe of one run. Where a study quantizes all layers alike, first and last included, so does the run."""
    recipe = named(study.recipe)
    alike = recipe.quant.first_weights == recipe.quant.weights
    recipe = recipe.changed(study.rate, weights=run.weights, activations=run.activations,
                            first_weights=run.weights if alike else None, last_weights=run.weights if alike else None,
                            **dict(run.options))
    return replace(recipe, low_bit=replace(recipe.low_bit, epochs=study.epochs))


def carry_out(name: str, out: Path, results: Path, only: str | None = None, seed: int = 0, progress: bool = True) -> list:
    """Do the runs whose records are missing; returns the records' paths.

    Raises
    ------
    ValueError
        for an unknown study or run, naming those there are.
    """
    if name not in STUDIES:
        raise ValueError(f"no study named {name!r}; there are {', '.join(STUDIES)}")
    study = STUDIES[name]
    runs = [run for run in study.runs if only in (None, run.name)]
    if not runs:
        raise ValueError(f"study {name} has no run {only!r}; it has {', '.join(run.name for run in study.runs)}")
    written = []
    for run in runs:
        path = results / f"{name}-{run.name}.json"
        if not path.exists():
            record.write(path, _measured(name, study, run, out, seed, progress))
            written.append(path)
    return written


def _measured(name, study, run, out, seed, progress) -> dict:
    began, folder = time.monotonic(), out / f"{name}-{run.name}"
    recipe = recipe_of(study, run)
    float_model = out / f"{name}-float.pt"
    metrics = train_network(recipe, folder, seed=seed, resume=True, progress=progress,
                            float_model=float_model if float_model.exists() else None,
                            teacher_cache=out / f"{name}-teacher.sqlite")
    if not float_model.exists():
        (folder / "float.pt").replace(float_model)
    command = f"python -m esbflow.training.studies {name} --only {run.name}"
    return record.of_training(metrics, command, (time.monotonic() - began) / 60)


def main(arguments: list | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="train one network by many methods and record what they reach")
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--only", metavar="RUN", help="one run of the study")
    parser.add_argument("--out", type=Path, default=Path("build/studies"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    for path in carry_out(given.study, given.out, given.results, given.only, given.seed):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
