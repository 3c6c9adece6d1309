"""CNV for CIFAR-10: 64C3-64C3-MP-128C3-128C3-MP-256C3-256C3-512-512-10, no padding, with batch norms.

Source: Umuroglu et al., "FINN: A Framework for Fast, Scalable Binarized Neural Network Inference", FPGA 2017, section 6, the
network that FINN and its successors are measured on. There activations are the signs of what the norms give; here a ReLU
follows each norm, so that one bit means 0 or a step. Exports of the original are imported as they are (docs/interchange.md).
"""

import torch
from torch import nn


class CNV(nn.Module):
    """(n, 3, 32, 32) -> (n, classes)."""

    shape = (3, 32, 32)

    def __init__(self, classes: int = 10):
        super().__init__()
        layers, channels = [], 3
        for width, pooled in ((64, True), (128, True), (256, False)):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers += [nn.MaxPool2d(2)] if pooled else []
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(256, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(),
                                        nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(),
                                        nn.Linear(512, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
