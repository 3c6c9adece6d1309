"""VGG-small for CIFAR-10: 128C3-128C3-MP-256C3-256C3-MP-512C3-512C3-MP-FC10, with batch norms; VGG7-64 is half as wide.

Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, cut down as in
Zhang et al., "LQ-Nets", ECCV 2018, section 5.1, the usual network for low-bit CIFAR-10. VGG7-64 is that of Gong et al.,
"muL2Q", IJCNN 2019, table II: widths 64, 128, 256 and a hidden layer of 1024 neurons, half of them left out in training.
"""

import torch
from torch import nn


class VGGSmall(nn.Module):
    """(n, 3, h, w) -> (n, classes), 32x32 by default; h and w are multiples of 8."""

    shape = (3, 32, 32)

    def __init__(self, classes: int = 10, size: int = 32, width: int = 128, hidden: int | None = None):
        super().__init__()
        layers, channels = [], 3
        for out in (width, 2 * width, 4 * width):
            for _ in range(2):
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        features = channels * (size // 8) ** 2
        self.classifier = nn.Linear(features, classes) if hidden is None else nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
