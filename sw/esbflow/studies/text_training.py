"""Training of text networks: Adam on sentences of vocabulary numbers, seeded; accuracy in real numbers and in integers."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from esbflow.errors import BadValue
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.networks.text_cnn import TextCNN
from esbflow.quant.activation import InputQuantizer
from esbflow.quant.text_input import LARGEST, SentenceInput
from esbflow.training.run_state import run_of
from esbflow.training.trainer import Trainer, half_cosine, step_at


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
               report=None, checkpoint: Path | None = None) -> TextCNN:
    """Train in place, embedding and network; numbers int32 (n, length), labels int64 (n,). `report(done, total, loss)` is
    called after every step. With `checkpoint`, the state after each epoch is written there, and a run that finds its own
    goes on.

    Raises
    ------
    ValueError
        if there are no sentences, the loss is no longer finite, or the checkpoint is of another run.
    """
    if len(numbers) == 0:
        raise BadValue("there are no sentences to train on")
    trainer = _Trainer(model, numbers, labels, schedule, seed, report)
    return trainer.carry_out(checkpoint, checkpoint and run_of(model.sentence, schedule, seed, numbers, labels))


class _Trainer(Trainer):
    """Adam on shuffled sentences."""

    def __init__(self, model, numbers, labels, schedule, seed, report):
        self.epoch_steps = math.ceil(len(numbers) / schedule.batch)
        super().__init__(model, [self.epoch_steps] * schedule.epochs, seed, report)
        self.numbers, self.labels, self.schedule = numbers, labels, schedule
        self.optimizer = torch.optim.Adam(model.parameters(), lr=schedule.rate)
        self.limit = next((LARGEST * q.real_scale() for q in self.quantizers if isinstance(q, InputQuantizer)), None)

    def start(self) -> None:
        self.model.train()

    def batches(self, unit: int, random: np.random.Generator):
        for chosen in np.array_split(random.permutation(len(self.numbers)), self.epoch_steps):
            yield torch.from_numpy(self.numbers[chosen]), torch.from_numpy(self.labels[chosen])

    def loss(self, batch) -> torch.Tensor:
        numbers, labels = batch
        return F.cross_entropy(self.model(numbers), labels)

    def step(self, unit: int, index: int) -> None:
        part = (unit * self.epoch_steps + index) / sum(self.lengths)
        step_at(self.optimizer, self.schedule.rate * half_cosine(part))
        if self.limit is not None:
            # The host has one byte a value: what it cannot hold must not train.
            with torch.no_grad():
                self.model.embedding.weight.clamp_(-self.limit, self.limit)

    def finish(self) -> None:
        self.model.eval()


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
