"""Training of networks that classify the nodes of one graph, all nodes at once."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from esbflow.errors import BadValue
from esbflow.networks.message_passing import Topology
from esbflow.studies.citation_data import GraphData
from esbflow.training.run_state import checksum, run_of
from esbflow.training.trainer import Trainer


@dataclass(frozen=True)
class GraphSchedule:
    """Adam on the whole graph. Every `every` epochs and at the end the network is validated; the state of the best accuracy
    is kept, of equals the one with the least loss.

    Raises
    ------
    ValueError
        if a number is out of range, naming it.
    """

    epochs: int = 200
    rate: float = 0.01
    weight_decay: float = 5e-4
    every: int = 1

    def __post_init__(self):
        if self.epochs < 1 or self.every < 1:
            raise BadValue(f"epochs and every must be at least 1, not {self.epochs} and {self.every}")
        if not self.rate > 0:
            raise BadValue(f"the learning rate must be positive, not {self.rate}")


def train_graph(network: nn.Module, data: GraphData, topology: Topology, schedule: GraphSchedule, seed: int = 0,
                report=None, stored: torch.Tensor | None = None, teacher: torch.Tensor | None = None,
                checkpoint: Path | None = None, origin: str = "") -> nn.Module:
    """Train in place.

    Parameters
    ----------
    report : called as report(done, total, loss) after every epoch.
    stored : what network.read() gives, if the caller has it.
    teacher : probabilities (nodes, classes) that a network of real numbers gives. The loss is then the mean of the labels'
        on the training nodes and of the cross entropy to these on all nodes, which needs no label.
    checkpoint : the trained state is written there, and a run that finds its own need not train. `origin` says what else
        tells it from others.

    Raises
    ------
    ValueError
        if the loss is no longer finite, or the checkpoint is of another run.
    """
    trainer = _Trainer(network, data, topology, schedule, seed, report, stored, teacher)
    return trainer.carry_out(checkpoint, checkpoint and run_of(
        network, schedule, seed, data.features, data.labels, split=checksum(data.train, data.val), origin=origin))


class _Trainer(Trainer):
    """Adam on all nodes at once. A training takes seconds, so all epochs are one unit."""

    def __init__(self, network, data, topology, schedule, seed, report, stored, teacher):
        super().__init__(network, [schedule.epochs], seed, report)
        self.stored, self.data, self.topology, self.schedule, self.teacher = stored, data, topology, schedule, teacher
        decayed = network.decayed()
        known = {id(p) for p in decayed}
        self.optimizer = torch.optim.Adam(
            [{"params": decayed, "weight_decay": schedule.weight_decay},
             {"params": [p for p in network.parameters() if id(p) not in known], "weight_decay": 0.0}], lr=schedule.rate)
        self.best, self.kept = (-1.0, 0.0), None

    def begin(self, unit: int) -> None:
        torch.manual_seed(self.seed)
        features = torch.from_numpy(self.data.features)
        self.x = self.model.read(features, self.topology) if self.stored is None else self.stored
        self.labels, self.train, self.val = (
            torch.from_numpy(part) for part in (self.data.labels, self.data.train, self.data.val))

    def batches(self, unit: int, random):
        for _ in range(self.schedule.epochs):
            self.model.train()
            yield self.x

    def loss(self, batch) -> torch.Tensor:
        scores = self.model(batch, self.topology)
        loss = F.cross_entropy(scores[self.train], self.labels[self.train])
        return loss if self.teacher is None else (loss + F.cross_entropy(scores, self.teacher)) / 2

    def step(self, unit: int, index: int) -> None:
        self.optimizer.step()
        if (index + 1) % self.schedule.every == 0 or index + 1 == self.schedule.epochs:
            self._validate()

    @torch.no_grad()
    def _validate(self) -> None:
        """Keep the state if it is the best so far."""
        self.model.eval()
        scores, labels = self.model(self.x, self.topology)[self.val], self.labels[self.val]
        reached = (float((scores.argmax(dim=1) == labels).float().mean()), -float(F.cross_entropy(scores, labels)))
        if reached > self.best:
            self.best, self.kept = reached, copy.deepcopy(self.model.state_dict())

    def end(self, unit: int) -> None:
        self.model.load_state_dict(self.kept)

    def finish(self) -> None:
        self.model.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: GraphData, topology: Topology, part: str = "test",
             stored: torch.Tensor | None = None) -> float:
    """Top-1 in percent on the nodes of a part of the split, in eval mode."""
    network.eval()
    nodes = getattr(data, part)
    stored = network.read(torch.from_numpy(data.features), topology) if stored is None else stored
    scores = network(stored, topology)
    return 100 * float((scores.argmax(dim=1).numpy()[nodes] == data.labels[nodes]).mean())
