"""Sharpness-aware minimization on quantized weights: the gradient is taken where the loss is worst nearby.

Sources: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021, equation 2 and
algorithm 1; Liu et al., "Sharpness-aware Quantization for Deep Neural Networks", 2021, who move the quantized weights rather
than those that are trained, since a small move of the latter changes few levels.
"""

import contextlib
import copy

import torch
from torch import nn

from esbflow.quant.base import across_ranks
from esbflow.quant.layers import QUANTIZED


class SharpnessAware:
    """Moves all quantized weights of a model by `radius` (their L2 norm, together) along the gradient of a loss.

    A step costs a second forward and backward pass. In a process group all ranks move along the gradient of the whole batch.
    Batch norms take their statistics from the first pass only.

    >>> from esbflow.quant.layers import QuantLinear
    >>> from esbflow.quant.methods.registry import weight_quantizer
    >>> layer = QuantLinear.from_float(nn.Linear(2, 1, bias=False), weight_quantizer("s8"))
    >>> sharp, x = SharpnessAware(layer, 0.5), torch.tensor([[3.0, 4.0]])
    >>> with sharp:
    ...     before = layer(x)
    ...     with sharp.moved(before.sum()):
    ...         after = layer(x)
    >>> round((after - before).item(), 4)  # 0.5 along (3, 4) / 5
    2.5
    """

    def __init__(self, model: nn.Module, radius: float):
        self.radius = radius
        layers = [module for module in model.modules() if isinstance(module, tuple(QUANTIZED.values()))]
        self._quantizers = [layer.weight_quantizer for layer in layers]
        self._norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
        self._weights, self._moves = {}, {}

    def __enter__(self) -> "SharpnessAware":
        self._hooks = [quantizer.register_forward_hook(self._watch) for quantizer in self._quantizers]
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()
        self._weights.clear()

    @contextlib.contextmanager
    def moved(self, loss: torch.Tensor):
        """Within, passes of the model are with moved weights. `loss` is that of the pass just before."""
        gradients = [across_ranks(gradient) for gradient in torch.autograd.grad(loss, list(self._weights.values()))]
        length = torch.sqrt(sum(gradient.square().sum() for gradient in gradients)) + 1e-12
        self._moves = {quantizer: gradient * (self.radius / length) for quantizer, gradient in zip(self._weights, gradients)}
        before = [(norm, norm.momentum, copy.deepcopy(norm.num_batches_tracked)) for norm in self._norms]
        for norm in self._norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            self._moves = {}
            for norm, momentum, count in before:
                norm.momentum = momentum
                if count is not None:
                    norm.num_batches_tracked.copy_(count)

    def _watch(self, quantizer, inputs, weights):
        if quantizer in self._moves:
            return weights + self._moves[quantizer]
        if weights.requires_grad:
            self._weights[quantizer] = weights
        return weights
