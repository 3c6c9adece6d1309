"""Quantized lottery tickets: bit-widths that SRQ learned, trained from scratch with those bits, against one width for all.

    esbflow study lottery tfc-mnist-w2a2 --seeds 5 --results docs/results

Lee et al. (ICCV 2021, arXiv 1911.12990) say that learning a network's widths beats the same widths, fixed from the start.
The name comes of Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019. So each seed trains, from the same initial
weights, for as many steps and with the same images in the same order:

- `real`: the network in real numbers;
- `learned`: srq:8,learn, which fixes the bits after 70 % of training;
- `ticket`: each layer has the bits learned there, from the first step on;
- `fixed`: all layers have one width, once the largest with at most the ticket's mean bits a weight and once the next one.

The record is DIR/lottery-NETWORK-DATA.json. Top-1 is that of the integer graph.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from esbflow.errors import BadValue
from esbflow.graph.execute import execute
from esbflow.networks.registry import network as registered
from esbflow.quant.export import export
from esbflow.quant.methods.srq import LEAST_BITS, SRQWeightQuantizer
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.studies.progress import steps
from esbflow.training import record
from esbflow.training.api import named, top1
from esbflow.training.data import load_images
from esbflow.training.loop import Schedule, evaluate, train
from esbflow.training.recipes import TrainingRecipe

BITS = 8
"""Of the widest grid, from which learning starts."""
PENALTY = 0.005
"""By which a layer of mean size pays for the sum of P(gate > 0) of its shells; others pay by their weights."""


class Lottery:
    """The trainings of one seed.

    Parameters
    ----------
    recipe : names the network, the images and the schedule; it must train in real numbers first.
    penalty : of learned bits. images : so many to train on, for trials.
    epochs, rate : of each training, in place of those of the recipe's stage in real numbers and at low bits.
    out : a folder for checkpoints, from which an interrupted study goes on; `finish` removes them.

    Raises
    ------
    ValueError
        for an unknown recipe, one that starts from public weights, or a number out of range.
    DataUnavailable
        if the images are not at hand.
    """

    def __init__(self, recipe: str | TrainingRecipe, penalty: float = PENALTY, epochs: int | None = None,
                 rate: float | None = None, images: int | None = None, out: Path | None = None, say=None):
        recipe = named(recipe)
        if not isinstance(recipe.real, Schedule):
            raise BadValue(f"a lottery trains from scratch, and {recipe.network}'s recipe starts from public weights; "
                           "take one that does not, such as tfc-mnist-w2a2")
        if not 0 < penalty < np.inf:
            raise BadValue(f"the penalty must be positive, not {penalty:g}")
        self.recipe, self.penalty, self.out, self.say = recipe, penalty, out, say
        # At the rate of the stage in real numbers, 0.05, one of 15 trainings of TFC came to nothing.
        given = {name: value for name, value in (("epochs", epochs), ("rate", rate)) if value is not None}
        self.schedule = replace(recipe.real, **{"rate": recipe.low_bit.rate, **given})
        self.images, self.labels = load_images(recipe.data, "train", images)
        self.test, self.answers = load_images(recipe.data, "test")

    def quant(self, weights: str = f"srq:{BITS},learn", widths: dict | None = None) -> Recipe:
        """All layers by SRQ, those of `widths` ({layer: bits}) with bits of their own."""
        return replace(self.recipe.quant, weights=weights, first_weights=weights, last_weights=weights, input_bits=8,
                       activations="u4", overrides=tuple((name, f"srq:{bits}") for name, bits in (widths or {}).items()))

    def trained(self, seed: int, kind: str, quant: Recipe | None):
        """The network from the seed's initial weights, in real numbers without a recipe."""
        torch.manual_seed(seed)
        model = registered(self.recipe.network)()
        if quant:
            model = quantize(model, quant)
            self._weigh(model)
        torch.manual_seed(seed)  # what gates and dropped neurons draw
        mean = dict(mean=self.recipe.quant.mean, std=self.recipe.quant.std)
        return train(model, self.images, self.labels, self.schedule, **mean, seed=seed,
                     checkpoint=self.out / f"{seed}-{kind}.ckpt" if self.out else None,
                     report=steps(self.say, f"seed {seed}, {kind}", 500))

    def _weigh(self, model) -> None:
        """A bit costs a layer by its weights, as the bytes of the network do."""
        layers = quantized_layers(model)
        mean = sum(layer.weight.numel() for layer in layers.values()) / len(layers)
        for layer in layers.values():
            quantizer = layer.weight_quantizer
            quantizer.penalty_rate, quantizer.cost = self.penalty, layer.weight.numel() / mean

    def measured(self, seed: int, kind: str, quant: Recipe) -> dict:
        """What a quantized training reaches: top-1 in percent on integers and in fake quantization, widths, bytes."""
        model = self.trained(seed, kind, quant)
        widths = {name: layer.weight_quantizer.form.bits for name, layer in quantized_layers(model).items()}
        graph = export(model, self.recipe.network, self.images.shape[1:])
        reached = top1(execute(graph, self.test), self.answers)
        if self.say:
            self.say(f"seed {seed}, {kind}: {reached:.2f} % with {' '.join(map(str, widths.values()))} bits")
        return {"top1": round(reached, 2),
                "fake": round(evaluate(model, self.test, self.answers, self.recipe.quant.mean, self.recipe.quant.std), 2),
                "widths": widths, "bits": round(mean_bits(model), 3), "bytes": record.model_bytes(model)}

    def play(self, seed: int) -> dict:
        """All trainings of a seed: {kind: what it reaches}."""
        normal = self.recipe.quant.mean, self.recipe.quant.std
        real = self.trained(seed, "real", None)
        learned = self.measured(seed, "learned", self.quant())
        ticket = self.measured(seed, "ticket", self.quant(widths=learned["widths"]))
        below = max(LEAST_BITS, int(learned["bits"]))
        return {"real": {"top1": round(evaluate(real, self.test, self.answers, *normal), 2)}, "learned": learned,
                "ticket": ticket, "fixed": [self.measured(seed, f"fixed{bits}", self.quant(f"srq:{bits}"))
                                            for bits in (below, min(BITS, below + 1))]}

    def finish(self) -> None:
        """Remove the checkpoints: every training is done."""
        for path in self.out.glob("*-*.ckpt") if self.out else ():
            path.unlink()


def quantized_layers(model) -> dict:
    """{name: layer} of the layers whose weights SRQ quantizes."""
    return {name: module for name, module in model.named_modules()
            if isinstance(getattr(module, "weight_quantizer", None), SRQWeightQuantizer)}


def mean_bits(model) -> float:
    """Bits a weight over all layers."""
    layers = quantized_layers(model).values()
    return (sum(layer.weight.numel() * layer.weight_quantizer.form.bits for layer in layers)
            / sum(layer.weight.numel() for layer in layers))


def run(recipe: str = "tfc-mnist-w2a2", seeds: int = 5, penalty: float = PENALTY, epochs: int | None = None,
        rate: float | None = None, images: int | None = None, out: Path | None = None, say=None) -> dict:
    """Play seeds 0 .. seeds - 1; returns the record, whose accuracies are the ticket's, means over the seeds, and whose
    `plays` are those of each seed. Arguments and errors are those of `Lottery`.
    """
    if seeds < 1:
        raise BadValue(f"the number of seeds must be at least 1, not {seeds}")
    began, lottery = time.monotonic(), Lottery(recipe, penalty, epochs, rate, images, out, say)
    plays = [lottery.play(seed) for seed in range(seeds)]
    lottery.finish()
    command = record.command_line(f"esbflow study lottery {recipe}", seeds=seeds, epochs=epochs, rate=rate, images=images,
                                  penalty=penalty if penalty != PENALTY else None)
    return {"method": f"srq:{BITS},learn", "network": lottery.recipe.network, "data": lottery.recipe.data,
            "weights_bits": _mean(plays, "ticket", "bits", 3), "activations": "u4", "activation_bits": 4,
            "top1_integer_graph": _mean(plays, "ticket", "top1", 2),
            "top1_fake_quantization": _mean(plays, "ticket", "fake", 2), "top1_float": _mean(plays, "real", "top1", 2),
            "images": len(lottery.test),
            "bytes": round(_mean(plays, "ticket", "bytes", 0)), "epochs": lottery.schedule.epochs,
            "rate": lottery.schedule.rate, "penalty": penalty, "seed": 0, "seeds": seeds, "plays": plays, "command": command,
            "hardware": record.hardware(), "minutes": round((time.monotonic() - began) / 60, 1)}


def _mean(plays: list, kind: str, what: str, digits: int) -> float:
    return round(float(np.mean([play[kind][what] for play in plays])), digits)


ROWS = (("real", "real numbers"), ("learned", "bits learned while training"), ("ticket", "those bits, from scratch"),
        (0, "one width, not above their mean"), (1, "one width, a bit more"))
"""Keys of a play, or places in its `fixed`."""


def table(folder: Path) -> str:
    """The records of a folder as the Markdown table of docs/method_results.md."""
    lines = ["| network, data | training | bits by layer | bits a weight | bytes | top-1 %, each seed | median |",
             "|---|---|---|--:|--:|--:|--:|"]
    for path in sorted(folder.glob("lottery-*.json")):
        found = json.loads(path.read_text())
        for kind, words in ROWS:
            plays = [play["fixed"][kind] if isinstance(kind, int) else play[kind] for play in found["plays"]]
            tops = [play["top1"] for play in plays]
            widths = sorted({"-".join(map(str, play["widths"].values())) for play in plays if "widths" in play})
            bits, size = ("32", "") if kind == "real" else (
                f"{np.mean([play['bits'] for play in plays]):.2f}", f"{np.mean([play['bytes'] for play in plays]):,.0f}")
            name = f"[{found['network']}, {found['data']}](results/{path.name})"
            lines.append(f"| {name} | {words} | {', '.join(widths)} | {bits} | {size} | "
                         f"{' '.join(f'{top:.2f}' for top in tops)} | {np.median(tops):.2f} |")
    return "\n".join(lines)


def study(given, say=None) -> dict:
    """What `esbflow study lottery` does with its options: `run`, and the record written into the folder `results`."""
    result = run(given.recipe, given.seeds, given.penalty, given.epochs, given.rate, given.images, given.out, say)
    if given.results:
        record.write(given.results / f"lottery-{result['network']}-{result['data']}.json", result)
    return result
