"""Tuning a quantized network on unlabelled images until its tensors are near those of the real network.

Weights, scales and batch norms learn together, straight through the rounding, from the squared error of every stored tensor
and of the outputs. Sources: Hubara et al., "Accurate Post Training Quantization With Small Calibration Sets", ICML 2021,
section 3 (weights and scales learn by gradient from real outputs); Li et al., "BRECQ", ICLR 2021, section 3.2 (errors of
blocks, or of the whole network). All blocks learn at once here, each seeing the errors of those before it.
"""

import math

import numpy as np
import torch
from torch import fx

from esbflow.quant.base import Quantizer
from esbflow.training.loop import device_of, inputs

BATCH = 50
RATE = 2e-3
"""Of Adam, relative to the root mean square of each parameter, at the start; it falls as a half cosine."""


def reconstruct(model: fx.GraphModule, real: fx.GraphModule, images: np.ndarray, mean, std, epochs: int,
                report=None) -> None:
    """Tune a calibrated model in place; statistics of its batch norms stay, and so do dropouts' zeros.

    Parameters
    ----------
    real : the real network with the same names of nodes, as `real_layers` gives it.
    images : uint8 (n, c, h, w), sequences or rows.
    report : called with the number of epochs done and the loss; or None. The loss is the squared error relative to the
        tensor's square, the mean of all tensors plus that of the outputs.
    """
    device, random = device_of(model), np.random.default_rng(0)
    model.eval()
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.train()
    names = compared(model, real)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam([{"params": [p], "lr": RATE * max(float(p.detach().square().mean().sqrt()), 1e-3)}
                                  for p in parameters])
    steps = math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(epochs):
        total = 0.0
        for chosen in np.array_split(random.permutation(len(images)), steps):
            x = inputs(images[chosen], mean, std, device)
            with torch.no_grad():
                wanted = _tensors(real, x, names)
            found = _tensors(model, x, names)
            errors = [_error(found[name], wanted[name]) for name in names]
            loss = sum(errors) / len(errors) + errors[-1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if report:
            report(epoch + 1, total / len(images))
    model.eval()


def compared(model: fx.GraphModule, real: fx.GraphModule) -> list:
    """Names of the nodes that both networks have and that the quantized one stores, in order, the outputs last."""
    modules, known = dict(model.named_modules()), {node.name for node in real.graph.nodes}
    names = {}
    for node in model.graph.nodes:
        if node.op == "output" or node.op == "call_module" and isinstance(modules[node.target], Quantizer):
            for read in node.all_input_nodes:
                if read.op != "placeholder" and read.name in known:
                    names.pop(read.name, None)
                    names[read.name] = None
    return list(names)


def _tensors(network: fx.GraphModule, x: torch.Tensor, names: list) -> dict:
    """{name: tensor} of nodes, and of the outputs that leave the network."""
    found = {}

    class Recorded(fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if node.name in names:
                found[node.name] = result
            return result

    Recorded(network).run(x)
    return found


def _error(found, wanted) -> torch.Tensor:
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=1e-12)
