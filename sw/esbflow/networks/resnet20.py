"""ResNet-20, 32, 44, 56 and 110 for CIFAR-10, with shortcuts that have no weights (option A).

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2. Names of parameters are those of
the checkpoints in circulation (conv1, bn1, layer1.0.conv1, ..., linear).
"""

import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.quant.layers import SelectChannels


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a wider block takes every second pixel and pads channels on both sides."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        side = (channels - in_channels) // 2
        source = [-1] * side + list(range(in_channels)) + [-1] * (channels - in_channels - side)
        self.shortcut = SelectChannels(source, in_channels, stride) if stride != 1 or side else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut(x)
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nn.Module):
    """(n, 3, 32, 32) -> (n, classes). `depth` is 6*k + 2 for k blocks a stage.

    Raises
    ------
    ValueError
        for another depth.
    """

    shape = (3, 32, 32)

    def __init__(self, depth: int = 20, classes: int = 10):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise BadValue(f"a CIFAR-10 ResNet has a depth of 6*k + 2, such as 20, 32 or 56, not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(in_channels, channels, stride, blocks):
        return nn.Sequential(BasicBlock(in_channels, channels, stride),
                             *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.pool(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(torch.flatten(x, 1))


class ResNet20(ResNet):
    """(n, 3, 32, 32) -> (n, 10)."""

    def __init__(self, classes: int = 10):
        super().__init__(20, classes)
