"""CifarNet: 32C5-MP-32C5-AP-64C5-AP-FC10, the larger of Caffe's two examples for CIFAR-10, all pools 3x3 of stride 2.

Source: Krizhevsky's cuda-convnet, "18 % error" layers, as Caffe's example `cifar10_full`. Where that normalises responses
over neighbouring pixels, which divides by data and has no integer form, a batch norm stands before the ReLU, behind each
convolution. Its pools reach over the lower right edge; these start a pixel before the upper left one, to maps of the same
size.
"""

import torch
from torch import nn


class CifarNet(nn.Module):
    """(n, 3, 32, 32) -> (n, classes)."""

    shape = (3, 32, 32)

    def __init__(self, classes: int = 10):
        super().__init__()
        layers, channels = [], 3
        for width, pool in ((32, nn.MaxPool2d), (32, nn.AvgPool2d), (64, nn.AvgPool2d)):
            layers += [nn.Conv2d(channels, width, 5, padding=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                       pool(3, 2, padding=1)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(64 * 4 * 4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))
