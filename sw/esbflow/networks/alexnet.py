"""AlexNet in its one-column form, with torchvision's names of parameters, so that its checkpoints load.

Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
"""

import torch
from torch import nn


class AlexNet(nn.Module):
    """(n, 3, 224, 224) -> (n, classes). `width` is that of the two hidden fully connected layers."""

    shape = (3, 224, 224)

    def __init__(self, classes: int = 1000, width: int = 4096):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(6)  # does nothing to images of 224x224
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(256 * 6 * 6, width), nn.ReLU(),
            nn.Dropout(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
