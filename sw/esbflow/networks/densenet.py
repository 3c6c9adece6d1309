"""DenseNet-121, with torchvision's names of parameters, so that its checkpoints load.

Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, table 1 (growth 32, BC).
"""

from collections import OrderedDict

import torch
from torch import nn


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; reads all that the block has made so far."""

    def __init__(self, in_channels: int, growth: int):
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(in_channels), nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(4 * growth), nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list) -> torch.Tensor:
        x = self.relu1(self.norm1(torch.cat(features, 1)))
        return self.conv2(self.relu2(self.norm2(self.conv1(x))))


class DenseBlock(nn.ModuleDict):
    """(n, c, h, w) -> (n, c + layers*growth, h, w)."""

    def __init__(self, in_channels: int, layers: int, growth: int):
        super().__init__({f"denselayer{i + 1}": DenseLayer(in_channels + i * growth, growth) for i in range(layers)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """(n, 3, h, w) -> (n, classes), h and w at least 32."""

    shape = (3, 224, 224)

    def __init__(self, classes: int = 1000, blocks: tuple = (6, 12, 24, 16), growth: int = 32):
        super().__init__()
        channels = 2 * growth
        layers = OrderedDict(conv0=nn.Conv2d(3, channels, 7, 2, 3, bias=False), norm0=nn.BatchNorm2d(channels),
                             relu0=nn.ReLU(), pool0=nn.MaxPool2d(3, 2, 1))
        for i, count in enumerate(blocks, 1):
            layers[f"denseblock{i}"] = DenseBlock(channels, count, growth)
            channels += count * growth
            if i < len(blocks):
                layers[f"transition{i}"] = nn.Sequential(OrderedDict(
                    norm=nn.BatchNorm2d(channels), relu=nn.ReLU(),
                    conv=nn.Conv2d(channels, channels // 2, 1, bias=False), pool=nn.AvgPool2d(2)))
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)
        self.relu, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.pool(self.relu(self.features(x))), 1))
