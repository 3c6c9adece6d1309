"""MobileNetV2, with torchvision's names of parameters, so that its checkpoints load.

Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2.
"""

import torch
from torch import nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks, stride of the first block."""


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(channels), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Wider by 1x1, depthwise 3x3, narrower by 1x1 without ReLU; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int):
        super().__init__()
        width = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == channels
        wider = [] if expansion == 1 else [_conv(in_channels, width, 1)]
        self.conv = nn.Sequential(*wider, _conv(width, width, 3, stride, width),
                                  nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """(n, 3, h, w) -> (n, classes), h and w at least 32."""

    shape = (3, 224, 224)

    def __init__(self, classes: int = 1000):
        super().__init__()
        layers, channels = [_conv(3, 32, 3, 2)], 32
        for expansion, width, count, stride in STAGES:
            for k in range(count):
                layers.append(InvertedResidual(channels, width, 1 if k else stride, expansion))
                channels = width
        self.features = nn.Sequential(*layers, _conv(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean([2, 3]))
