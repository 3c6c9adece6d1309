"""VGG-small for CIFAR-10: 128C3-128C3-MP-256C3-256C3-MP-512C3-512C3-MP-FC10, with batch norms.

Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, cut down as in
Zhang et al., "LQ-Nets", ECCV 2018, section 5.1, the usual network for low-bit CIFAR-10.
"""

import torch
from torch import nn


class VGGSmall(nn.Module):
    """(n, 3, h, w) -> (n, classes), 32x32 by default; h and w are multiples of 8."""

    shape = (3, 32, 32)

    def __init__(self, classes: int = 10, size: int = 32):
        super().__init__()
        layers, channels = [], 3
        for width in (128, 256, 512):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (size // 8) ** 2, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
