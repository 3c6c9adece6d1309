"""What the commands of methods with a training of their own share: from images to integer graph, and a record of it.

The record is a file as record.py writes them.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from esbflow.graph.execute import execute
from esbflow.graph.file import save
from esbflow.quant.convert import quantize
from esbflow.quant.export import export
from esbflow.quant.recipe import Recipe
from esbflow.training import record
from esbflow.training.api import NETWORKS, load_float_model, load_weights, save_float_model, save_model, top1
from esbflow.training.data import load_images
from esbflow.training.loop import Schedule, evaluate, train


@dataclass(frozen=True)
class Measured:
    """A training that is measured: real numbers first, then `low_bit(model, teacher, images, labels, **options)`.

    real : the schedule of the first stage, or None with `start`, the name of trained weights under ESBFLOW_DATA/weights.
    low_bit : trains in place; options are mean, std, seed, checkpoint and report.
    weight_bits : model -> bits a weight as the method counts them.
    module, arguments : the command that starts it.
    """

    method: str
    module: str
    network: str
    data: str
    quant: Recipe
    low_bit: Callable
    weight_bits: Callable
    real: Schedule | None = None
    start: str | None = None
    arguments: tuple = ()


def run(what: Measured, out: Path, real: Path | None = None, results: Path | None = None, seed: int = 0,
        report=print) -> dict:
    """Train, export, evaluate on all test images; writes float.pt, model.pt, graph.npz and metrics.json into `out`.

    real : float.pt of an earlier run, which saves the first stage. results : where else to write the record. An
    interrupted run goes on from the checkpoints in `out`, to the same result; the minutes in its record are None, as
    those before are not known. They are processor time. `report(text)` is called now and then.
    """
    quant, began = what.quant, time.process_time()
    checkpoints = [out / "real.ckpt", out / "low_bit.ckpt"]
    resumed = any(path.exists() for path in checkpoints)
    images, labels = load_images(what.data, "train")
    test, test_labels = load_images(what.data, "test")
    stages = dict(mean=quant.mean, std=quant.std)
    out.mkdir(parents=True, exist_ok=True)
    if real:
        model = load_float_model(real)
    else:
        torch.manual_seed(seed)
        model = NETWORKS[what.network]()
    if not real and what.start:
        load_weights(model, what.start)
    elif not real:
        train(model, images, labels, what.real, **stages, seed=seed, checkpoint=checkpoints[0],
              report=_now_and_then("real numbers", report))
    save_float_model(model, what.network, out / "float.pt")
    float_top1 = evaluate(model, test, test_labels, **stages)
    report(f"real numbers: {float_top1:.2f} %")
    teacher = copy.deepcopy(model)
    model = quantize(model, quant)
    what.low_bit(model, teacher, images, labels, **stages, seed=seed + 1, checkpoint=checkpoints[1],
                 report=_now_and_then(what.method, report))
    model.eval()
    graph = export(model, what.network, images.shape[1:])
    words = ["python -m", what.module, *what.arguments, "--out", f"build/{out.name}"]
    words += ["--float", f"build/{real.parent.name}/{real.name}"] if real else []
    words += ["--seed", str(seed)] if seed else []
    result = {
        "method": what.method, "network": what.network, "data": what.data, "weights_bits": round(what.weight_bits(model), 3),
        "activation_bits": record.activation_bits(model),
        "top1_integer_graph": round(top1(execute(graph, test), test_labels), 2),
        "top1_float": round(float_top1, 2), "images": len(test),
        "bytes": record.model_bytes(model), "seed": seed, "command": " ".join(words), "hardware": record.hardware(),
        "minutes": None if resumed else round((time.process_time() - began) / 60, 1)}
    graph.info.update(result)
    save(graph, out / "graph.npz")
    save_model(model, quant, what.network, out / "model.pt")
    for path in (out / "metrics.json", results):
        if path:
            record.write(path, result)
    for path in checkpoints:
        path.unlink(missing_ok=True)
    report(json.dumps(result))
    return result


def command(trainings: dict, description: str, arguments: list | None = None) -> dict:
    """The command line of a method: `trainings` by name, the first is the default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("training", nargs="?", choices=list(trainings), default=next(iter(trainings)))
    parser.add_argument("--out", type=Path, required=True, help="folder for model, graph and metrics")
    parser.add_argument("--float", type=Path, dest="real", help="float.pt of an earlier run, instead of training it")
    parser.add_argument("--results", type=Path, help="write the record there too")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    return run(trainings[given.training], given.out, given.real, given.results, given.seed)


def _now_and_then(title: str, report):
    """Every hundredth step's number and the mean loss since the last."""
    losses = []

    def step(done, total, loss):
        losses.append(loss)
        if done % 100 == 0 or done == total:
            report(f"{title}: step {done} of {total}, loss {sum(losses) / len(losses):.4f}")
            losses.clear()

    return step
