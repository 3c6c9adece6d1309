"""The training loop: seeded, with checkpoints from which an interrupted run goes on to the same result."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.base import Quantizer


@dataclass(frozen=True)
class Schedule:
    """One stage of training: SGD with momentum, the learning rate falling as a half cosine to zero.

    Raises
    ------
    ValueError
        if a number is out of range, naming it.
    """

    epochs: int = 3
    batch: int = 64
    rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    shift: int = 0  # pixels by which training images are moved at random

    def __post_init__(self):
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"epochs and batch must be at least 1, not {self.epochs} and {self.batch}")
        if not self.rate > 0:
            raise ValueError(f"the learning rate must be positive, not {self.rate}")


def normalise(images, mean, std) -> torch.Tensor:
    """uint8 (n, c, h, w) -> float32: (pixel / 255 - mean) / std per channel."""
    x = torch.from_numpy(np.array(images)).float() / 255
    mean, std = (torch.tensor(np.resize(v, x.shape[1]), dtype=torch.float32).reshape(1, -1, 1, 1) for v in (mean, std))
    return (x - mean) / std


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray, schedule: Schedule, mean=(0.0,), std=(1.0,),
          seed: int = 0, checkpoint: Path | None = None, report=None) -> nn.Module:
    """Train in place. With `checkpoint`, the state after each epoch is written there, and a run that finds one goes on.

    `report(done, total, loss)` is called after every step. The order of images depends on the seed and the epoch only,
    so that a resumed run sees what an unbroken one would have seen.

    Raises
    ------
    ValueError
        if there are no images, or the loss is no longer finite.
    """
    if len(images) == 0:
        raise ValueError("there are no images to train on")
    steps_per_epoch = math.ceil(len(images) / schedule.batch)
    total = steps_per_epoch * schedule.epochs
    optimizer = torch.optim.SGD(_parameter_groups(model, schedule), lr=schedule.rate, momentum=schedule.momentum,
                                nesterov=True)
    first = _resume(model, optimizer, checkpoint)
    model.train()
    for epoch in range(first, schedule.epochs):
        for module in model.modules():
            if isinstance(module, Quantizer):
                module.forget()
        random = np.random.default_rng((seed, epoch))
        torch.manual_seed(seed * 1000 + epoch)
        order = random.permutation(len(images))
        for step in range(steps_per_epoch):
            chosen = order[step * schedule.batch:(step + 1) * schedule.batch]
            batch = _moved(images[chosen], schedule.shift, random)
            done = epoch * steps_per_epoch + step
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate * 0.5 * (1 + math.cos(math.pi * done / total))
            loss = F.cross_entropy(model(normalise(batch, mean, std)), torch.as_tensor(labels[chosen]))
            if not torch.isfinite(loss):
                raise ValueError(f"the loss is {loss.item()} in epoch {epoch}: training has diverged; lower the rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if report:
                report(done + 1, total, float(loss.detach()))
        _save(model, optimizer, epoch + 1, checkpoint)
    return model


def _parameter_groups(model, schedule):
    """No weight decay on biases, batch norms and activation scales: it would pull them to nonsense."""
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    return [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _moved(images: np.ndarray, shift: int, random) -> np.ndarray:
    if not shift:
        return images
    dy, dx = random.integers(-shift, shift + 1, 2)
    padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    height, width = images.shape[2:]
    return padded[:, :, shift + dy:shift + dy + height, shift + dx:shift + dx + width]


def _save(model, optimizer, epoch, checkpoint) -> None:
    if checkpoint is None:
        return
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_name(checkpoint.name + ".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, temporary)
    os.replace(temporary, checkpoint)


def _resume(model, optimizer, checkpoint) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    try:
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # whatever torch raises on a file that is not the run's checkpoint
        raise ValueError(f"{checkpoint} is no checkpoint of this run ({error}); remove it to start again") from None
    return state["epoch"]


@torch.no_grad()
def evaluate(model: nn.Module, images: np.ndarray, labels: np.ndarray, mean=(0.0,), std=(1.0,), batch: int = 500) -> float:
    """Top-1 in percent, in eval mode."""
    was_training = model.training
    model.eval()
    right = 0
    for i in range(0, len(images), batch):
        scores = model(normalise(images[i:i + batch], mean, std))
        right += int((scores.argmax(dim=1).numpy() == labels[i:i + batch]).sum())
    model.train(was_training)
    return 100 * right / len(images)


@torch.no_grad()
def calibrate(model: nn.Module, images: np.ndarray, mean=(0.0,), std=(1.0,), batch: int = 100) -> nn.Module:
    """Give every activation quantizer a scale from a few images, without training.

    Raises
    ------
    ValueError
        if there are no images.
    """
    if len(images) == 0:
        raise ValueError("there are no images to calibrate on")
    was_training = model.training
    model.eval()
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer.train()
    for i in range(0, len(images), batch):
        model(normalise(images[i:i + batch], mean, std))
    return model.train(was_training)
