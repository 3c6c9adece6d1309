"""Rounding the weights of a layer so that its outputs, not its weights, stay near: one column after the other.

Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", ICLR 2023,
algorithm 1, with columns in the order of falling activity. Weights are not fitted to the real network's outputs from the
noisy inputs of the quantized one (Li et al., "GPTAQ", ICML 2025): at 4-bit activations that shrinks them, and cost
ResNet-20 1.1 dB of its logits.
"""

import torch
from torch import nn
from torch.nn import functional as F

from esbflow.quant.base import round_to_levels

DAMPING = 0.01
"""Added to the diagonal of the inputs' second moments, relative to its mean."""
COLUMNS = 100_000
"""Patches of the inputs that the moments are taken over."""
BLOCK = 64
"""Columns whose errors reach the rest of the matrix together."""
STRETCHES = (1.0, 0.93, 0.86, 1.07)
"""Scales tried for each row, relative to that of least error of the weights."""
POWERS = (1.0, 0.5, 2.0)
"""The same where scales are powers of two."""


def moments(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The covariance (groups, n, n) float64 of the patches of a layer's inputs; n is the length of a weight row. Their mean
    does not matter: what it adds to an output, a bias or a batch norm takes away."""
    step = max(1, _patches(layer, inputs[:1]).shape[2] * len(inputs) // COLUMNS)
    gram, mean, count = 0, 0, 0
    for part in inputs.split(50):
        x = _patches(layer, part)[:, :, ::step].double()
        gram, mean, count = gram + x @ x.mT, mean + x.sum(2), count + x.shape[2]
    mean = mean / count
    return gram / count - mean[:, :, None] * mean[:, None]


def _patches(layer, x):
    """(groups, n, patches): what a row of weights is multiplied with."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).T[None]
    size, stride, padding, dilation = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    if len(size) == 1:
        x, size, stride, padding, dilation = x[:, :, None], (1, *size), (1, *stride), (0, *padding), (1, *dilation)
    columns = F.unfold(x, size, dilation, padding, stride)
    return columns.unflatten(1, (layer.groups, -1)).movedim(0, 2).flatten(2)


def rounded(layer: nn.Module, gram: torch.Tensor) -> torch.Tensor:
    """Weights of the layer's shape, levels times a scale a row, that change its outputs little."""
    quantizer, weight = layer.weight_quantizer, layer.weight.detach()
    groups, size = len(gram), gram.shape[1]
    rows = weight.reshape(groups, -1, size).double()
    scale = quantizer.integers(weight).scale.double().expand(len(weight), *[1] * (weight.dim() - 1)).reshape(groups, -1, 1)
    mean = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-20)
    damped = gram + DAMPING * mean[:, None, None] * torch.eye(size, dtype=gram.dtype, device=gram.device)
    order = damped.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)
    damped = damped.gather(1, order[:, :, None].expand_as(damped)).gather(2, order[:, None].expand_as(damped))
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    columns = order[:, None].expand_as(rows)
    rows, best, least = rows.gather(2, columns), None, None
    for stretch in POWERS if getattr(quantizer, "power_of_two", False) else STRETCHES:
        found = _by_columns(rows, scale * stretch, inverse, quantizer.form)
        error = ((found - rows) @ damped * (found - rows)).sum(2, keepdim=True)
        best = found if best is None else torch.where(error < least, found, best)
        least = error if least is None else torch.minimum(error, least)
    return torch.empty_like(best).scatter(2, columns, best).reshape(weight.shape).to(weight.dtype)


def _by_columns(rows, scale, inverse, form):
    """Levels times scale: each column's rounding error is made good by the columns behind it."""
    rows, found = rows.clone(), torch.empty_like(rows)
    for start in range(0, rows.shape[2], BLOCK):
        stop = min(start + BLOCK, rows.shape[2])
        errors = torch.empty_like(rows[:, :, start:stop])
        for i in range(start, stop):
            found[:, :, i:i + 1] = round_to_levels(rows[:, :, i:i + 1] / scale, form) * scale
            errors[:, :, i - start] = (rows[:, :, i] - found[:, :, i]) / inverse[:, i, i, None]
            rows[:, :, i:stop] -= errors[:, :, i - start, None] * inverse[:, None, i, i:stop]
        rows[:, :, stop:] -= errors @ inverse[:, start:stop, stop:]
    return found


def round_weights(layer: nn.Module, inputs: torch.Tensor) -> None:
    """Round the weights of a layer in place; `inputs` are what it gets.

    A layer whose quantizer does not keep rounded weights as they are (its scale comes from their deviation, say) is left.
    """
    quantizer, weight = layer.weight_quantizer, layer.weight
    if not quantizer.grid or not inputs.any():
        return
    found = rounded(layer, moments(layer, inputs))
    if torch.allclose(quantizer(found), found, rtol=1e-4, atol=1e-6 * float(found.abs().max())):
        weight.copy_(found)
