"""Tuning a quantized network on unlabelled images until its tensors are near those of the real network.

Weights, scales and batch norms learn together, straight through the rounding, from the squared error of every stored tensor
and of the outputs. Sources: Hubara et al., "Accurate Post Training Quantization With Small Calibration Sets", ICML 2021,
section 3 (weights and scales learn by gradient from real outputs); Li et al., "BRECQ", ICLR 2021, section 3.2 (errors of
blocks, or of the whole network). All blocks learn at once here, each seeing the errors of those before it.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import fx

from esbflow.quant.base import Quantizer
from esbflow.training.loop import device_of, inputs
from esbflow.training.trainer import Trainer

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
    Reconstruction(model, real, images, (mean, std), epochs, report).carry_out()


class Reconstruction(Trainer):
    """The training of `reconstruct`; a unit is a pass over the images."""

    def __init__(self, model, real, images, normalization, epochs, told):
        steps = math.ceil(len(images) / BATCH)
        super().__init__(model, [steps] * epochs, own=(Quantizer,))
        self.quantizers = []  # they keep what they searched for: there is no resumed run that would have to do it again
        self.real, self.images, self.normalization, self.told = real, images, normalization, told
        self.steps, self.device, self.random = steps, device_of(model), np.random.default_rng(0)
        self.names = compared(model, real)
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam([
            {"params": [p], "lr": RATE * max(float(p.detach().square().mean().sqrt()), 1e-3)} for p in parameters])
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, epochs * steps)
        self.total = 0.0

    def start(self) -> None:
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, Quantizer):
                module.train()

    def begin(self, unit: int) -> None:
        self.total = 0.0

    def batches(self, unit: int, random: np.random.Generator) -> Iterator:
        return iter(np.array_split(self.random.permutation(len(self.images)), self.steps))

    def loss(self, batch: np.ndarray) -> torch.Tensor:
        x = inputs(self.images[batch], *self.normalization, self.device)
        with torch.no_grad():
            wanted = _tensors(self.real, x, self.names)
        found = _tensors(self.model, x, self.names)
        errors = [_error(found[name], wanted[name]) for name in self.names]
        loss = sum(errors) / len(errors) + errors[-1]
        self.total += loss.item() * len(batch)
        return loss

    def step(self, unit: int, index: int) -> None:
        self.optimizer.step()
        self.schedule.step()

    def end(self, unit: int) -> None:
        if self.told:
            self.told(unit + 1, self.total / len(self.images))

    def finish(self) -> None:
        self.model.eval()


def compared(model: fx.GraphModule, real: fx.GraphModule) -> list:
    """Names of the nodes that both networks have and that the quantized one stores, in order, the outputs last."""
    modules, known = dict(model.named_modules()), {node.name for node in real.graph.nodes}
    names = {}
    for node in model.graph.nodes:
        if node.op == "output" or (node.op == "call_module" and isinstance(modules[node.target], Quantizer)):
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
