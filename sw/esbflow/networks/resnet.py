"""ResNet-18 and ResNet-50 for ImageNet, with torchvision's names of parameters, so that its checkpoints load.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.1; the stride of a bottleneck is at
its 3x3 convolution, as torchvision has it. torchvision itself is not used: the package for the pinned torch is linked
against CUDA's libraries and does not import where torch is built for CPUs only.
"""

import torch
from torch import nn


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)


def _downsample(in_channels: int, channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(_conv(in_channels, channels, 1, stride), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, width, 3, stride), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample = _downsample(in_channels, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class ImageNetResNet(nn.Module):
    """(n, 3, h, w) -> (n, classes), h and w at least 32. `width` is that of the first stage."""

    shape = (3, 224, 224)

    def __init__(self, block: type, blocks: tuple, classes: int = 1000, width: int = 64):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        channels = width
        for i, count in enumerate(blocks):
            stage = []
            for k in range(count):
                stage.append(block(channels, width, 2 if i and not k else 1))
                channels = width * block.expansion
            width *= 2
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ResNet18(ImageNetResNet):
    """(n, 3, 224, 224) -> (n, 1000)."""

    def __init__(self, classes: int = 1000, width: int = 64):
        super().__init__(BasicBlock, (2, 2, 2, 2), classes, width)


class ResNet50(ImageNetResNet):
    """(n, 3, 224, 224) -> (n, 1000)."""

    def __init__(self, classes: int = 1000, width: int = 64):
        super().__init__(Bottleneck, (3, 4, 6, 3), classes, width)
