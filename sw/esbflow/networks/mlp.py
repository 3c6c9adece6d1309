"""Three hidden layers of equal width with batch norms for MNIST: TFC, SFC and LFC, of 64, 256 and 1024 neurons.

Source: Umuroglu et al., "FINN: A Framework for Fast, Scalable Binarized Neural Network Inference", FPGA 2017, section 6 (SFC
and LFC; TFC came with Brevitas' examples). Activations there are signs; here a ReLU follows each norm, as in cnv.py.
"""

import torch
from torch import nn


class MLP(nn.Module):
    """(n, 1, 28, 28) -> (n, classes), with a fifth of all neurons left out at random in training, the image's among them."""

    shape = (1, 28, 28)

    def __init__(self, width: int = 1024, classes: int = 10):
        super().__init__()
        layers, inputs = [nn.Flatten(), nn.Dropout(0.2)], 784
        for _ in range(3):
            layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)
