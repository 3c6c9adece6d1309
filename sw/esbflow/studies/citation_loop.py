"""Training of networks that classify the nodes of one graph, all nodes at once."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from esbflow.errors import BadValue
from esbflow.networks.message_passing import Topology
from esbflow.studies.citation_data import GraphData


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
                report=None, stored: torch.Tensor | None = None, teacher: torch.Tensor | None = None) -> nn.Module:
    """Train in place.

    Parameters
    ----------
    report : called as report(done, total, loss) after every epoch.
    stored : what network.read() gives, if the caller has it.
    teacher : probabilities (nodes, classes) that a network of real numbers gives. The loss is then the mean of the labels'
        on the training nodes and of the cross entropy to these on all nodes, which needs no label.

    Raises
    ------
    ValueError
        if the loss is no longer finite.
    """
    torch.manual_seed(seed)
    x = network.read(torch.from_numpy(data.features), topology) if stored is None else stored
    labels, train, val = (torch.from_numpy(a) for a in (data.labels, data.train, data.val))
    decayed = network.decayed()
    known = {id(p) for p in decayed}
    optimizer = torch.optim.Adam(
        [{"params": decayed, "weight_decay": schedule.weight_decay},
         {"params": [p for p in network.parameters() if id(p) not in known], "weight_decay": 0.0}], lr=schedule.rate)
    best, state = (-1.0, 0.0), None
    for epoch in range(schedule.epochs):
        network.train()
        scores = network(x, topology)
        loss = F.cross_entropy(scores[train], labels[train])
        if teacher is not None:
            loss = (loss + F.cross_entropy(scores, teacher)) / 2
        if not torch.isfinite(loss):
            raise BadValue("the loss is not finite; use a smaller learning rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if report:
            report(epoch + 1, schedule.epochs, float(loss.detach()))
        if (epoch + 1) % schedule.every and epoch + 1 < schedule.epochs:
            continue
        network.eval()
        with torch.no_grad():
            scores = network(x, topology)[val]
        reached = (float((scores.argmax(dim=1) == labels[val]).float().mean()), -float(F.cross_entropy(scores, labels[val])))
        if reached > best:
            best, state = reached, copy.deepcopy(network.state_dict())
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: GraphData, topology: Topology, part: str = "test",
             stored: torch.Tensor | None = None) -> float:
    """Top-1 in percent on the nodes of a part of the split, in eval mode."""
    network.eval()
    nodes = getattr(data, part)
    stored = network.read(torch.from_numpy(data.features), topology) if stored is None else stored
    scores = network(stored, topology)
    return 100 * float((scores.argmax(dim=1).numpy()[nodes] == data.labels[nodes]).mean())
