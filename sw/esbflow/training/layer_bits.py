"""Which weights each layer gets under a budget of engine cycles or of bytes: the most accuracy for the hardware.

For each layer and candidate the loss on calibration images is measured with only that layer at the candidate and all others
at the finest one, and the network so changed is compiled: what it saves is the compiler's exact cycle count or the bytes its
methods store, not a count of bits, which means little to an engine where weights of two to four bits all take one pass.
Then layers are made cheaper in the order of least loss for what they save (a greedy knapsack over measured sensitivities, as
in Dong et al., "HAWQ-V2", NeurIPS 2020, which estimates them), and what the budget leaves over is given back.

LUTs belong to the engine, not to a layer: `engine_within` takes the fastest of several engines that fits.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.compiler.cycles import count_cycles
from esbflow.compiler.pipeline import compile_graph
from esbflow.engine_config import EngineConfig
from esbflow.errors import BadValue
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.bit_costs import trial
from esbflow.training.loop import checked_images, normalise
from esbflow.training.record import model_bytes

CANDIDATES = ("esb2.0", "esb3.1", "esb4.1", "s8")
"""From cheap to dear."""
BUDGETS = ("cycles", "bytes")


@dataclass(frozen=True)
class Point:
    """What one choice of weights costs: loss on the calibration images, cycles an image, bytes of weights."""

    loss: float
    cycles: float
    bytes: int


@dataclass(frozen=True)
class Choice:
    """The result: a recipe with an override a layer, the texts by layer, and what the compiled network costs."""

    recipe: Recipe
    weights: dict
    point: Point


class BitSearch:
    """Measures a trained model once; `within` then answers for any budget.

    Parameters
    ----------
    model : a trained network in real numbers; left as it is.
    recipe : everything but the weights of single layers.
    images, labels : a few hundred, for the losses: uint8 (n, c, h, w), int64 (n,).
    config : the engine.
    candidates : texts of weights, from cheap to dear.
    report : called with a sentence a layer, or None.

    Raises
    ------
    ValueError
        if there are no images or fewer than two candidates.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, images: np.ndarray, labels: np.ndarray, config: EngineConfig,
                 candidates: tuple = CANDIDATES, report=None):
        images = checked_images(model, images, "measure losses on")
        if len(candidates) < 2:
            raise BadValue("a search needs at least two candidates for the weights")
        self.model, self.recipe, self.config, self.candidates = model, recipe, config, tuple(candidates)
        self.images, self.labels = images, labels
        plain = quantize(copy.deepcopy(model), recipe)
        self.layers = [name for name, module in plain.named_modules() if hasattr(module, "weight_quantizer")]
        self.finest = dict.fromkeys(self.layers, candidates[-1])
        self.base = self.measure(self.finest)
        self.points = {(name, candidates[-1]): self.base for name in self.layers}
        for name in self.layers:
            for text in candidates[:-1]:
                self.points[name, text] = self.measure(self.finest | {name: text})
            if report:
                losses = ", ".join(f"{text} {self.points[name, text].loss:.4f}" for text in candidates)
                report(f"loss with {name} at {losses}")

    @torch.no_grad()
    def measure(self, weights: dict) -> Point:
        """Quantize with these weights {layer: text}, calibrate, and compile: exact costs of the whole network."""
        recipe = self._recipe(weights)
        model, _, program = trial(self.model, recipe, self.images, self.config)
        scores = torch.cat([model(normalise(self.images[i:i + 200], recipe.mean, recipe.std))
                            for i in range(0, len(self.images), 200)])
        loss = float(F.cross_entropy(scores, torch.as_tensor(self.labels)))
        return Point(loss, count_cycles(program).total, model_bytes(model))

    def within(self, budget: float, of: str = "cycles") -> Choice:
        """The choice of least loss whose compiled cost is at most `budget`.

        Raises
        ------
        ValueError
            if `of` is neither "cycles" nor "bytes", or even the cheapest weights cost more.
        """
        if of not in BUDGETS:
            raise BadValue(f"a budget is of {' or '.join(BUDGETS)}, not of {of!r}")
        weights, point = dict(self.finest), self.base
        while getattr(point, of) > budget:
            step = self._cheapest_step(weights, of)
            if step is None:
                least = getattr(self.measure(weights), of)
                raise BadValue(f"the cheapest weights still cost {least:,.0f} {of}; the budget is {budget:,.0f}")
            weights[step[0]] = step[1]
            if self._estimated(weights, of) <= budget or self._cheapest_step(weights, of) is None:
                point = self.measure(weights)
        weights, point = self._give_back(weights, point, budget, of)
        return Choice(self._recipe(weights), weights, point)

    def _recipe(self, weights: dict) -> Recipe:
        return replace(self.recipe, overrides=tuple(weights.items()) + self.recipe.overrides)

    def _estimated(self, weights: dict, of: str) -> float:
        """The base's cost less what each layer saves alone: exact for bytes, nearly so for cycles."""
        saved = sum(getattr(self.base, of) - getattr(self.points[name, text], of) for name, text in weights.items())
        return getattr(self.base, of) - saved

    def _cheapest_step(self, weights: dict, of: str) -> tuple | None:
        """(layer, cheaper text) of least added loss for what it saves; None if nothing saves."""
        best, least = None, None
        for name, text in weights.items():
            present = self.points[name, text]
            for other in self.candidates[:self.candidates.index(text)]:
                point = self.points[name, other]
                saved = getattr(present, of) - getattr(point, of)
                if saved <= 0:
                    continue
                price = (point.loss - present.loss) / saved
                if least is None or price < least:
                    best, least = (name, other), price
        return best

    def _give_back(self, weights: dict, point: Point, budget: float, of: str) -> tuple:
        """Finer weights wherever the budget still allows them, the layers that lose most first."""
        order = sorted(weights, key=lambda name: self.points[name, weights[name]].loss, reverse=True)
        for name in order:
            for text in reversed(self.candidates[self.candidates.index(weights[name]) + 1:]):
                finer = weights | {name: text}
                if self.points[name, text].loss < self.points[name, weights[name]].loss and self._estimated(
                        finer, of) <= budget:
                    found = self.measure(finer)
                    if getattr(found, of) <= budget and found.loss <= point.loss:
                        weights, point = finer, found
                        break
        return weights, point


def engine_within(graph, engines: dict, luts: int) -> str:
    """The name of the engine that runs a graph in the fewest cycles with at most so many LUTs.

    engines : {name: (EngineConfig, LUTs)}.

    Raises
    ------
    ValueError
        if no engine is small enough, naming the smallest.
    """
    fitting = {name: config for name, (config, size) in engines.items() if size <= luts}
    if not fitting:
        smallest = min(engines, key=lambda name: engines[name][1])
        raise BadValue(f"no engine has {luts:,} LUTs or fewer; the smallest, {smallest}, has {engines[smallest][1]:,}")
    return min(fitting, key=lambda name: count_cycles(compile_graph(graph, fitting[name])).total)
