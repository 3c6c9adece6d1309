"""Cross-layer equalization: channels that a ReLU lies between share their range with the layer that reads them.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1. A
ReLU commutes with positive factors, so that dividing a channel where it is made and multiplying where it is read changes
nothing in real numbers. The weights of all channels of the reading layer then use the scale that they share.
"""

import torch
from torch import fx, nn

from esbflow.quant.layers import CONVOLUTIONS, SelectChannels
from esbflow.quant.trace import clip_limit, kind_of

ROUNDS = 10
"""A layer between two others belongs to two pairs."""
LIMIT = 100.0
"""No factor is beyond it, or below one over it."""
_KEEPING = ("relu", "maxpool", "avgpool", "pass", "pad", "upsample")
"""Kinds of nodes that factors of channels go through."""


@torch.no_grad()
def equalize(traced: fx.GraphModule) -> int:
    """Equalize a traced model in real numbers (`real_layers`) in place. Returns how many pairs of layers it has found.

    A pair is a convolution or linear layer, perhaps with its batch norm, and the only layer that reads it, with a ReLU and
    pools between them. ReLU6 ends no pair, since its limit would have to be one a channel.
    """
    modules = dict(traced.named_modules())
    pairs = [pair for pair in (_pair(node, modules) for node in traced.graph.nodes if _is_layer(node, modules)) if pair]
    for _ in range(ROUNDS):
        for first, norm, second in pairs:
            _balance(first, norm, second)
    return len(pairs)


def _is_layer(node, modules) -> bool:
    module = modules.get(node.target) if node.op == "call_module" else None
    return isinstance(module, (*CONVOLUTIONS, nn.Linear)) and not isinstance(module, SelectChannels)


def _pair(node, modules):
    first, norm = modules[node.target], None
    while len(node.users) == 1:
        reader = next(iter(node.users))
        kind, module = kind_of(reader, modules), modules.get(reader.target) if reader.op == "call_module" else None
        if _is_layer(reader, modules):
            called = [n.target for n in reader.graph.nodes if n.op == "call_module"]
            alone = all(called.count(name) == 1 for name, m in modules.items() if m is module or m is first)
            fits = module.weight[0].numel() * _groups(module) % len(first.weight) == 0
            return (first, norm, module) if alone and fits else None
        if kind == "norm" and norm is None and node.op == "call_module" and modules[node.target] is first:
            norm = module
            if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.weight is None or not norm.track_running_stats:
                return None
        elif kind not in _KEEPING or (kind == "relu" and clip_limit(reader, module) is not None):
            return None
        node = reader
    return None


def _groups(layer) -> int:
    return getattr(layer, "groups", 1)


def _by_channel(layer, channels):
    """A view (groups, outputs, channels, ...) of the weights, channels those of the input."""
    return layer.weight.view(_groups(layer), len(layer.weight) // _groups(layer), channels // _groups(layer), -1)


def _balance(first, norm, second):
    channels = len(first.weight)
    made = first.weight.flatten(1).abs().amax(1)
    if norm is not None:
        made = made * norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    read = _by_channel(second, channels).abs().amax((1, 3)).flatten()
    factor = (made / read).sqrt()
    factor = torch.where((made > 0) & (read > 0), factor, torch.ones_like(factor)).clamp(1 / LIMIT, LIMIT)
    for values in ((norm.weight, norm.bias) if norm is not None else (first.weight, first.bias)):
        if values is not None:
            values /= factor.reshape(-1, *[1] * (values.dim() - 1))
    _by_channel(second, channels).mul_(factor.reshape(_groups(second), 1, -1, 1))
