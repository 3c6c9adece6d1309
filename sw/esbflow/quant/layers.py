"""Convolution and linear layers whose weights pass through a quantizer."""

import torch
from torch import nn
from torch.nn import functional as F

from esbflow.lowering.nodes import choice
from esbflow.quant.base import Quantizer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def padding_in_numbers(conv: nn.Module) -> tuple[int, ...] | None:
    """Zeros on each side, for each axis, also for "same" and "valid"; None where the sides would differ.

    >>> padding_in_numbers(nn.Conv2d(1, 1, (3, 5), padding="same", dilation=(1, 2)))
    (1, 4)
    """
    if conv.padding == "valid":
        return (0,) * len(conv.kernel_size)
    if conv.padding != "same":
        return tuple(conv.padding)
    spans = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation)]
    return None if any(span % 2 for span in spans) else tuple(span // 2 for span in spans)


class _QuantConv:
    """A convolution with a weight quantizer; bias stays real until export."""

    weight_quantizer: Quantizer

    @classmethod
    def from_float(cls, conv: nn.Module, quantizer: Quantizer) -> nn.Module:
        """Share the parameters of `conv`."""
        layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, padding_in_numbers(conv),
                    conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode, device="meta")
        layer.weight, layer.bias = conv.weight, conv.bias
        layer.weight_quantizer = quantizer
        quantizer.prepare(layer.weight)
        return layer.train(conv.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """nn.Conv1d with a weight quantizer."""


class QuantConv2d(_QuantConv, nn.Conv2d):
    """nn.Conv2d with a weight quantizer."""


class QuantLinear(nn.Linear):
    """nn.Linear with a weight quantizer."""

    weight_quantizer: Quantizer

    @classmethod
    def from_float(cls, linear: nn.Linear, quantizer: Quantizer) -> "QuantLinear":
        """Share the parameters of `linear`."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.weight_quantizer = quantizer
        quantizer.prepare(layer.weight)
        return layer.train(linear.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


QUANTIZED = {nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}
"""What becomes of torch's layers with weights."""


class SelectChannels(nn.Conv2d):
    """A 1x1 convolution of zeros and ones that never trains: ResNet's parameter-free shortcut.

    Output channel o is input channel source[o], or zero where that is negative. On the engine it keeps the integers,
    format and scale of its input.
    """

    def __init__(self, source: list, in_channels: int, stride: int = 1):
        super().__init__(in_channels, len(source), 1, stride=stride, bias=False)
        del self.weight
        self.register_buffer("weight", torch.from_numpy(choice(source, in_channels)).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.dim() == 4 else super().forward(x.unsqueeze(2)).squeeze(2)


class PositivePart(nn.Module):
    """max(x, 0) of a stored tensor, whose integers, scale and positive levels stay what they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu()
