"""LeNet-5 as Caffe made it known: 20 and 50 convolutions of 5x5, 500 and 10 neurons, here with ReLU after each.

Source: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, with the widths of Caffe's example.
"""

import torch
from torch import nn


class LeNet5(nn.Module):
    """(n, 1, 28, 28) -> (n, 10)."""

    shape = (1, 28, 28)

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.relu3 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.pool2 = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)


class CaffeLeNet(nn.Module):
    """(n, 1, 28, 28) -> (n, 10). Layers and names of Caffe's example: one ReLU only, after `ip1`.

    Its published weights take pixels / 256: a recipe's mean 0 and std 256/255.
    """

    shape = (1, 28, 28)

    def __init__(self, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.ip1 = nn.Linear(50 * 4 * 4, 500)
        self.relu1 = nn.ReLU()
        self.ip2 = nn.Linear(500, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool2(self.conv2(self.pool1(self.conv1(x))))
        return self.ip2(self.relu1(self.ip1(torch.flatten(x, 1))))
