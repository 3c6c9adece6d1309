"""A U-Net for saliency: one logit a pixel.

Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, figure 1, with
padded convolutions, batch norms, nearest upsampling in place of transposed convolutions, and narrower.
"""

import torch
from torch import nn


class Twice(nn.Sequential):
    """Two 3x3 convolutions with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int):
        layers = []
        for source in (in_channels, channels):
            layers += [nn.Conv2d(source, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """(n, 3, h, w) -> (n, 1, h, w), 96x96 by default; h and w are multiples of 2**(len(widths) - 1)."""

    shape = (3, 96, 96)

    def __init__(self, classes: int = 1, widths: tuple = (16, 32, 64, 128)):
        super().__init__()
        self.down = nn.ModuleList(Twice(i, o) for i, o in zip((3, *widths), widths))
        self.pool = nn.MaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.up = nn.ModuleList(Twice(below + skip, skip) for below, skip in zip(widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, stage in enumerate(self.down):
            x = stage(self.pool(x) if i else x)
            skips.append(x)
        skips.pop()
        for stage in self.up:
            x = stage(torch.cat([skips.pop(), self.upsample(x)], dim=1))
        return self.head(x)
