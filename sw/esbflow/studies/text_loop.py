"""Training of text networks: Adam on sentences of vocabulary numbers, seeded; accuracy in real numbers and in integers."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from esbflow.errors import BadValue
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.networks.text_cnn import TextCNN
from esbflow.quant.activation import InputQuantizer
from esbflow.quant.base import Quantizer
from esbflow.quant.text_input import LARGEST, SentenceInput


@dataclass(frozen=True)
class TextSchedule:
    """Adam, the learning rate falling as a half cosine to zero.

    Raises
    ------
    ValueError
        if a number is out of range, naming it.
    """

    epochs: int = 4
    batch: int = 64
    rate: float = 1e-3

    def __post_init__(self):
        if self.epochs < 1 or self.batch < 1:
            raise BadValue(f"epochs and batch must be at least 1, not {self.epochs} and {self.batch}")
        if not self.rate > 0:
            raise BadValue(f"the learning rate must be positive, not {self.rate}")


def train_text(model: TextCNN, numbers: np.ndarray, labels: np.ndarray, schedule: TextSchedule, seed: int = 0,
               report=None) -> TextCNN:
    """Train in place, embedding and network; numbers int32 (n, length), labels int64 (n,). `report(done, total, loss)` is
    called after every step.

    Raises
    ------
    ValueError
        if there are no sentences, or the loss is no longer finite.
    """
    if len(numbers) == 0:
        raise BadValue("there are no sentences to train on")
    steps = math.ceil(len(numbers) / schedule.batch)
    total, done = steps * schedule.epochs, 0
    optimizer = torch.optim.Adam(model.parameters(), lr=schedule.rate)
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    limit = next((LARGEST * q.real_scale() for q in quantizers if isinstance(q, InputQuantizer)), None)
    model.train()
    for epoch in range(schedule.epochs):
        torch.manual_seed(seed * 1000 + epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(numbers))
        for quantizer in quantizers:
            quantizer.forget()
        for chosen in np.array_split(order, steps):
            for quantizer in quantizers:
                quantizer.advance(done / total)
            optimizer.param_groups[0]["lr"] = schedule.rate * 0.5 * (1 + math.cos(math.pi * done / total))
            loss = F.cross_entropy(model(torch.from_numpy(numbers[chosen])), torch.from_numpy(labels[chosen]))
            penalties = [term for term in (quantizer.penalty() for quantizer in quantizers) if term is not None]
            loss = loss + sum(penalties) if penalties else loss
            if not torch.isfinite(loss):
                raise BadValue(f"the loss is {loss.item()} in epoch {epoch}: training has diverged; lower the rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if limit is not None:
                # The host has one byte a value: what it cannot hold must not train.
                with torch.no_grad():
                    model.embedding.weight.clamp_(-limit, limit)
            done += 1
            if report:
                report(done, total, float(loss.detach()))
    for quantizer in quantizers:
        quantizer.advance(1.0)
    return model.eval()


@torch.no_grad()
def text_accuracy(model: TextCNN, numbers: np.ndarray, labels: np.ndarray, batch: int = 250) -> float:
    """Top-1 in percent, in eval mode; of a quantized network by fake quantization.

    Raises
    ------
    ValueError
        if there are no sentences.
    """
    _some(numbers)
    was_training, right = model.training, 0
    model.eval()
    for i in range(0, len(numbers), batch):
        scores = model(torch.from_numpy(numbers[i:i + batch]))
        right += int((scores.argmax(dim=1).numpy() == labels[i:i + batch]).sum())
    model.train(was_training)
    return 100 * right / len(numbers)


def graph_accuracy(graph: ir.Graph, host: SentenceInput, numbers: np.ndarray, labels: np.ndarray, batch: int = 250) -> float:
    """Top-1 in percent of the executed integer graph, the first of equal outputs counts.

    Raises
    ------
    ValueError
        if there are no sentences.
    """
    _some(numbers)
    right = 0
    for i in range(0, len(numbers), batch):
        scores = execute(graph, host.images(numbers[i:i + batch])).reshape(len(numbers[i:i + batch]), -1)
        right += int((scores.argmax(axis=1) == labels[i:i + batch]).sum())
    return 100 * right / len(numbers)


def _some(numbers) -> None:
    if len(numbers) == 0:
        raise BadValue("there are no sentences to evaluate on")
