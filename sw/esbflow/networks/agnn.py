"""The attention network of Thekumparampil et al., "Attention-based Graph Neural Network for Semi-supervised Learning", 2018:
16 hidden units, two propagation layers of which the first has no parameter, dropout 0.5; Adam 0.01, weight decay 5e-4.
The layout is that of SGQuant's published example.
"""

from typing import ClassVar

import torch
from torch import nn

from esbflow.networks.message_passing import GraphNetwork, Topology, linear


class AGNN(GraphNetwork):
    """(nodes, features) -> scores (nodes, classes).

    A propagation is h_i <- sum_j softmax_j(beta * cos(h_i, h_j)) h_j over the neighbours j of i and i itself.
    """

    POINTS: ClassVar = {"layer1_input": "input", "prop1_features": "aggregation", "prop1_attention": "attention",
              "prop2_features": "aggregation", "prop2_attention": "attention", "layer2_input": "combination"}
    PRODUCTS: ClassVar = {"lin1": "layer1_input", "lin2": "layer2_input"}

    def __init__(self, features: int, classes: int, hidden: int = 16):
        super().__init__()
        self.lin1, self.lin2 = linear(features, hidden, True), linear(hidden, classes, True)
        self.register_buffer("beta1", torch.ones(()))
        self.beta2 = nn.Parameter(torch.ones(()))
        self.widths = dict(zip(self.POINTS, (features, hidden, 1, hidden, 1, hidden)))

    def decayed(self) -> list:
        """Parameters with weight decay."""
        return list(self.parameters())

    def forward(self, x: torch.Tensor, topology: Topology) -> torch.Tensor:
        hidden = torch.relu(self.combine("lin1", x, topology.rows))
        hidden = self._propagate("prop1", hidden, self.beta1, topology)
        hidden = self._propagate("prop2", hidden, self.beta2, topology)
        return self.combine("lin2", hidden, topology.rows)

    def _propagate(self, name: str, x: torch.Tensor, beta: torch.Tensor, topology: Topology) -> torch.Tensor:
        x = self.store(f"{name}_features", x, topology.rows)
        unit = nn.functional.normalize(x, dim=1)  # a node whose features are all zero has cosine 0 with all
        cosine = (unit[topology.target] * unit[topology.source]).sum(dim=1, keepdim=True)
        attention = self.store(f"{name}_attention", topology.softmax(beta * cosine), topology.edge_rows)
        return topology.weigh_neighbours(attention, x)
