"""Train graph networks on citation graphs in real numbers and by SGQuant, and write the results.

    python -m esbflow.training.graphs --data cora --network gcn --seeds 10 --out docs/results
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from esbflow.networks.agnn import AGNN
from esbflow.networks.gcn import GCN
from esbflow.networks.message import Topology
from esbflow.training.graph_data import GraphData

NETWORKS = {"gcn": GCN, "agnn": AGNN}


@dataclass(frozen=True)
class GraphSchedule:
    """Adam on the whole graph. The state of the epoch with the best validation accuracy is kept, of equals the one with the
    least loss.

    Raises
    ------
    ValueError
        if a number is out of range, naming it.
    """

    epochs: int = 200
    rate: float = 0.01
    weight_decay: float = 5e-4

    def __post_init__(self):
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")
        if not self.rate > 0:
            raise ValueError(f"the learning rate must be positive, not {self.rate}")


def train_graph(network: nn.Module, data: GraphData, topology: Topology, schedule: GraphSchedule, seed: int = 0,
                report=None) -> nn.Module:
    """Train in place. `report(done, total, loss)` is called after every epoch.

    Raises
    ------
    ValueError
        if the loss is no longer finite.
    """
    torch.manual_seed(seed)
    x = network.read(torch.from_numpy(data.features), topology)
    labels, train, val = (torch.from_numpy(a) for a in (data.labels, data.train, data.val))
    decayed = network.decayed()
    known = {id(p) for p in decayed}
    optimizer = torch.optim.Adam(
        [{"params": decayed, "weight_decay": schedule.weight_decay},
         {"params": [p for p in network.parameters() if id(p) not in known], "weight_decay": 0.0}], lr=schedule.rate)
    best, state = (-1.0, 0.0), None
    for epoch in range(schedule.epochs):
        network.train()
        loss = F.cross_entropy(network(x, topology)[train], labels[train])
        if not torch.isfinite(loss):
            raise ValueError("the loss is not finite; use a smaller learning rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.eval()
        with torch.no_grad():
            scores = network(x, topology)[val]
        reached = (float((scores.argmax(dim=1) == labels[val]).float().mean()), -float(F.cross_entropy(scores, labels[val])))
        if reached > best:
            best, state = reached, copy.deepcopy(network.state_dict())
        if report:
            report(epoch + 1, schedule.epochs, float(loss.detach()))
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: GraphData, topology: Topology, part: str = "test") -> float:
    """Top-1 in percent on the nodes of a part of the split, in eval mode."""
    network.eval()
    nodes = getattr(data, part)
    scores = network(network.read(torch.from_numpy(data.features), topology), topology)
    return 100 * float((scores.argmax(dim=1).numpy()[nodes] == data.labels[nodes]).mean())
