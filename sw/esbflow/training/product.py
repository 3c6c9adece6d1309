"""Product quantization's training: layer by layer, each clustered on inputs of the network quantized so far, by a teacher.

Source: Stock et al., "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", ICLR 2020, sections 3.2 to
3.4, and its released code (facebookresearch/kill-the-bits). No labels are used.

    esbflow train lenet5-mnist-pq --out build/pq

trains LeNet-5 on MNIST with 256 codewords a layer.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from esbflow.errors import BadValue
from esbflow.maps import plane
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.layers import CONVOLUTIONS
from esbflow.quant.methods.product import ProductQuantizer
from esbflow.training.distributed import average_gradients, plain
from esbflow.training.loop import ImageTrainer, calibrate, normalise
from esbflow.training.run_state import run_of
from esbflow.training.trainer import step_at


@dataclass(frozen=True)
class ProductSchedule:
    """Per layer: k-means on the inputs from `images` images, then `layer_steps` steps; then `epochs` of all jointly.

    The joint rate falls to a tenth after each third of the epochs.

    Raises
    ------
    ValueError
        if a number is out of range, naming it.
    """

    images: int = 1024
    iterations: int = 100  # of k-means
    layer_steps: int = 200
    layer_rate: float = 0.05
    epochs: int = 3
    rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 128
    shift: int = 1  # pixels by which training images are moved at random
    mirror: bool = False  # turn half of them left-right

    needs_teacher = True

    def with_epochs(self, epochs: int) -> "ProductSchedule":
        """The same with so many joint epochs."""
        return replace(self, epochs=epochs)

    def carry_out(self, model: nn.Module, images: np.ndarray, labels: np.ndarray, teacher: nn.Module,
                  precision="float32", compiled=False, **options) -> nn.Module:
        """Train by `train_product`, whose options these are; labels are not read.

        Raises
        ------
        ValueError
            if mixed precision or compilation is asked for.
        """
        plain("product quantization", precision, compiled)
        return train_product(model, teacher, images, self, **options)

    def __post_init__(self):
        if min(self.images, self.iterations, self.batch) < 1 or min(self.layer_steps, self.epochs) < 0:
            raise BadValue("images, iterations and batch must be at least 1, and numbers of steps and epochs not negative")
        if not (self.layer_rate > 0 and self.rate > 0):
            raise BadValue(f"the learning rates must be positive, not {self.layer_rate} and {self.rate}")


def gram_of(layer: nn.Module, x: torch.Tensor, size: int) -> torch.Tensor:
    """X^T X (size, size), float64: inputs x of a layer, unrolled to what each weight of a row meets and cut like its blocks.

    x : (n, c, h, w) or (n, c, length) for a convolution, (n, features) for a linear layer.
    """
    if isinstance(layer, CONVOLUTIONS):
        # Channels of all groups count alike: each filter sees those of its own group.
        x = x.reshape(len(x) * layer.groups, x.shape[1] // layer.groups, *x.shape[2:])
        x = x if x.dim() == 4 else x.unsqueeze(2)
        x = F.unfold(x, plane(layer.kernel_size, 1), plane(layer.dilation, 1), plane(layer.padding, 0),
                     plane(layer.stride, 1)).transpose(1, 2)
    rows = x.reshape(-1, x.shape[-1])
    blocks = F.pad(rows, (0, -rows.shape[1] % size)).reshape(-1, size)
    return (blocks.T @ blocks).double()


def layers_of(model: nn.Module) -> list:
    """Layers with a ProductQuantizer, in the order in which they compute."""
    modules = dict(model.named_modules())
    names = [node.target for node in model.graph.nodes if node.op == "call_module"] if isinstance(model, fx.GraphModule) \
        else list(modules)
    return [modules[name] for name in dict.fromkeys(names)
            if isinstance(getattr(modules[name], "weight_quantizer", None), ProductQuantizer)]


def distillation(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """KL divergence of the teacher's softmax from the student's, both (n, classes) before softmax."""
    return F.kl_div(scores.log_softmax(dim=1), wanted.log_softmax(dim=1), reduction="batchmean", log_target=True)


def train_product(model: nn.Module, teacher: nn.Module, images: np.ndarray, schedule: ProductSchedule = ProductSchedule(),
                  mean=None, std=None, seed: int = 0, checkpoint: Path | None = None, report=None,
                  origin: str = "") -> nn.Module:
    """Train in place a model that `quantize` made with weights "pq:...", towards the answers of `teacher`.

    Parameters
    ----------
    teacher : the real-valued model; a copy, as `quantize` shares parameters.
    images : uint8 (n, c, h, w).
    mean, std, origin : as for `train`.
    checkpoint : the state after each layer and each joint epoch is written there, and a run that finds its own goes on to
        the same result.
    report : called with (done, total, loss) after every step.

    Raises
    ------
    ValueError
        if no layer has a ProductQuantizer, there are no images, mean or std contradict the recipe, the checkpoint is of
        another run, or the loss is no longer finite.
    """
    trainer = _Trainer(model, teacher, images, schedule, mean, std, seed, report)
    return trainer.carry_out(checkpoint, checkpoint and run_of(model, schedule, seed, images, None, origin=origin))


class _Trainer(ImageTrainer):
    """A unit for each layer, then the joint epochs."""

    def __init__(self, model, teacher, images, schedule, mean, std, seed, report):
        self.layers = layers_of(model)
        if not self.layers:
            raise BadValue('no layer has a ProductQuantizer; use quantize() with weights such as "pq:256,8"')
        super().__init__(model, images, None, schedule, mean, std, seed, report, schedule.epochs,
                         first=(schedule.layer_steps,) * len(self.layers), own=(ProductQuantizer,))
        self.teacher = teacher.eval()
        unused = {id(layer.weight) for layer in self.layers}
        plain = [p for p in model.parameters() if id(p) not in unused and p.dim() < 2]
        others = [p for p in model.parameters() if id(p) not in unused and p.dim() >= 2]
        self.optimizer = torch.optim.SGD([{"params": others, "weight_decay": schedule.weight_decay}, {"params": plain}],
                                         lr=schedule.rate, momentum=schedule.momentum)
        if not all(m.seen or m.blank for m in model.modules() if isinstance(m, ActivationQuantizer)):
            self._wait_from(0)
            calibrate(model, self.images[:schedule.images], self.mean, self.std)

    def start(self) -> None:
        super().start()
        self.teacher.to(memory_format=torch.channels_last)

    def begin(self, unit: int) -> None:
        """A layer is clustered by the inputs that the quantized layers before it give; its codewords train after that."""
        schedule = self.schedule
        if unit < len(self.layers):
            layer = self.layers[unit]
            quantizer = layer.weight_quantizer
            self._wait_from(unit)
            quantizer.fit(layer.weight.detach(), self._gram(layer, quantizer.size), schedule.iterations, self.seed)
            self.moving, self.rate = torch.optim.SGD(
                list(quantizer.parameters()), lr=schedule.layer_rate, momentum=schedule.momentum,
                weight_decay=schedule.weight_decay), schedule.layer_rate
        else:
            self.moving = self.optimizer
            self.rate = schedule.rate * 0.1 ** (3 * (unit - len(self.layers)) // schedule.epochs)
        self._wait_from(unit + 1)
        self.model.train()
        for module in self.model.modules():
            if unit < len(self.layers) and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # what follows still has its own weights: its statistics hold

    def batches(self, unit: int, random: np.random.Generator):
        if unit >= len(self.layers):
            yield from super().batches(unit, random)
            return
        for _ in range(self.schedule.layer_steps):
            yield self.batch(random.integers(0, len(self.images), self.schedule.batch), random)

    def loss(self, batch) -> torch.Tensor:
        x, _ = batch
        with torch.no_grad():
            wanted = self.teacher(x)
        return distillation(self.model(x), wanted)

    def step(self, unit: int, index: int) -> None:
        average_gradients(self.model)
        step_at(self.moving, self.rate)

    def finish(self) -> None:
        for layer in self.layers:
            layer.weight_quantizer.waiting = False

    def _wait_from(self, index: int) -> None:
        """Layers before `index` compute with codewords, the others with their weights."""
        for i, layer in enumerate(self.layers):
            layer.weight_quantizer.waiting = i >= index
        for quantizer in self.quantizers:
            quantizer.forget()

    @torch.no_grad()
    def _gram(self, layer: nn.Module, size: int) -> torch.Tensor:
        """Of a layer's inputs, over a sample of the images without labels."""
        chosen = np.random.default_rng(self.seed).permutation(len(self.images))[:self.schedule.images]
        total = torch.zeros(size, size, dtype=torch.float64, device=self.device)

        def collect(_, inputs):
            total.add_(gram_of(layer, inputs[0], size))

        hook = layer.register_forward_pre_hook(collect)
        self.model.eval()
        try:
            for i in range(0, len(chosen), self.schedule.batch):
                batch = self.images[chosen[i:i + self.schedule.batch]]
                self.model(normalise(batch, self.mean, self.std).to(self.device))
        finally:
            hook.remove()
        return total
