"""Networks of sequences: of radio signals and of raw sound.

Sources: VGG10 is O'Shea, Roy & Clancy, "Over-the-Air Deep Learning Based Radio Signal Classification", IEEE JSTSP 12(1),
2018, table III, with batch norms, as FINN's example of radio signals has it; M5 is Dai et al., "Very Deep Convolutional
Neural Networks for Raw Waveforms", ICASSP 2017, table 1.
"""

import itertools

import torch
from torch import nn


def _block(channels: int, out: int, kernel: int, stride: int, padding: int, pool: int) -> list:
    conv = nn.Conv1d(channels, out, kernel, stride, padding, bias=False)
    return [conv, nn.BatchNorm1d(out), nn.ReLU(), nn.MaxPool1d(pool)]


class VGG10(nn.Module):
    """(n, 2, length), in phase and in quadrature, -> (n, classes); 1,024 samples, or another length of which 128 is a
    divisor."""

    shape = (2, 1024)

    def __init__(self, classes: int = 24, length: int = 1024, width: int = 64):
        super().__init__()
        layers = [layer for i in range(7) for layer in _block(width if i else 2, width, 3, 1, 1, 2)]
        self.features = nn.Sequential(*layers)
        hidden = (nn.Linear(width * (length // 128), 128, bias=False), nn.Linear(128, 128, bias=False))
        self.classifier = nn.Sequential(*(layer for linear in hidden for layer in (linear, nn.BatchNorm1d(128), nn.ReLU())),
                                        nn.Linear(128, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class M5(nn.Module):
    """(n, 1, length) of sound at 8 kHz, 4 seconds by default, -> (n, classes); any length from 1,104 samples."""

    shape = (1, 32000)

    def __init__(self, classes: int = 10, width: int = 128):
        super().__init__()
        widths = (width, width, 2 * width, 4 * width)
        layers = _block(1, width, 80, 4, 38, 4)
        for channels, out in itertools.pairwise(widths):
            layers += _block(channels, out, 3, 1, 1, 4)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean(dim=2))
