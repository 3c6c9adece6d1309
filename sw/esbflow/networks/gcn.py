"""The graph convolutional network of Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks",
ICLR 2017: two layers, 16 hidden units, dropout 0.5; Adam 0.01, weight decay 5e-4 on the first layer, 200 epochs.
"""

from typing import ClassVar

import torch
from torch import nn

from esbflow.networks.message_passing import GraphNetwork, Topology, linear


class GCN(GraphNetwork):
    """(nodes, features) -> scores (nodes, classes).

    A layer is D^-1/2 (A + I) D^-1/2 (X W) + bias. X W is scaled by D^-1/2 before it is stored, so that what neighbours read
    is summed as it is; with one range a tensor, that is a sum of codes.
    """

    POINTS: ClassVar = {"layer1_input": "input", "layer1_product": "aggregation",
              "layer2_input": "combination", "layer2_product": "aggregation"}
    PRODUCTS: ClassVar = {"lin1": "layer1_input", "lin2": "layer2_input"}

    def __init__(self, features: int, classes: int, hidden: int = 16):
        super().__init__()
        self.lin1, self.lin2 = linear(features, hidden, False), linear(hidden, classes, False)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(classes))
        self.widths = dict(zip(self.POINTS, (features, hidden, hidden, classes)))

    def decayed(self) -> list:
        """Parameters with weight decay."""
        return [self.lin1.weight]

    def forward(self, x: torch.Tensor, topology: Topology) -> torch.Tensor:
        hidden = torch.relu(self._aggregate("layer1_product", self.combine("lin1", x, topology.rows), topology) + self.bias1)
        return self._aggregate("layer2_product", self.combine("lin2", hidden, topology.rows), topology) + self.bias2

    def _aggregate(self, point: str, product: torch.Tensor, topology: Topology) -> torch.Tensor:
        stored = self.store(point, product * topology.inverse_root, topology.rows)
        return topology.add_neighbours(stored) * topology.inverse_root
