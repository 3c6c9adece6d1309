"""The training loop: seeded, with checkpoints from which an interrupted run goes on to the same result."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.graph.doubts import warn
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.base import Quantizer
from esbflow.quant.layers import CONVOLUTIONS, SelectChannels
from esbflow.quant.recipe import by_channel, normalisation_of, remember_normalisation
from esbflow.training import distributed
from esbflow.training.augment import augmented_pair
from esbflow.training.losses import task_loss, teacher_loss
from esbflow.training.run_state import RunState, run_of
from esbflow.training.sharpness import SharpnessAware

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Schedule:
    """One stage of training: SGD with momentum, the learning rate falling as a half cosine to zero.

    warmup : epochs in which the rate first rises in even steps to what the cosine says (Goyal et al., "Accurate, Large
        Minibatch SGD", 2017, section 2.2): for networks that a full first step would throw far away.
    sharpness : radius of sharpness-aware minimization in the last third of the epochs, whose steps cost twice as much then
        (see sharpness.py); 0 is without.
    shift : pixels by which each training image is moved at random. mirror : turn half of them left-right.
    distill : weight of the loss against a teacher's outputs, beside 1 - distill for the labels; both distributions are
        softened by `temperature` (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2).

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
    shift: int = 0
    mirror: bool = False
    distill: float = 0.0
    temperature: float = 1.0
    sharpness: float = 0.0
    warmup: float = 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether `carry_out` reads its teacher."""
        return self.distill > 0

    def carry_out(self, model: nn.Module, images: np.ndarray, labels: np.ndarray, **options) -> nn.Module:
        """Train by this schedule; `options` are those of `train`. Schedules of other methods have the same four members."""
        return train(model, images, labels, self, **options)

    def with_epochs(self, epochs: int) -> "Schedule":
        """The same with another number of epochs."""
        return replace(self, epochs=epochs)

    def __post_init__(self):
        if self.epochs < 1 or self.batch < 1:
            raise BadValue(f"epochs and batch must be at least 1, not {self.epochs} and {self.batch}")
        if not self.rate > 0:
            raise BadValue(f"the learning rate must be positive, not {self.rate}")
        if not 0 <= self.distill <= 1:
            raise BadValue(f"distill must be in 0..1, not {self.distill}")
        if not self.temperature > 0:
            raise BadValue(f"the temperature must be positive, not {self.temperature}")
        if not 0 <= self.sharpness < math.inf:
            raise BadValue(f"sharpness must be 0 or a positive radius, not {self.sharpness}")
        if not 0 <= self.warmup < math.inf:
            raise BadValue(f"warmup must be 0 or a number of epochs, not {self.warmup}")

    def rate_at(self, done: int, steps: int) -> float:
        """The learning rate after `done` steps, of which an epoch has `steps`.

        >>> schedule = Schedule(epochs=4, rate=0.1, warmup=1)
        >>> [round(schedule.rate_at(done, 10), 4) for done in (0, 4, 9, 20, 39)]
        [0.01, 0.0488, 0.088, 0.05, 0.0002]
        """
        rise = min(1.0, (done + 1) / (self.warmup * steps)) if self.warmup else 1.0
        return rise * self.rate * 0.5 * (1 + math.cos(math.pi * done / (self.epochs * steps)))


def normalise(images, mean, std) -> torch.Tensor:
    """uint8 images (n, c, h, w), sequences (n, c, length) or rows (n, features) -> float32: (pixel / 255 - mean) / std per
    channel.

    Raises
    ------
    ValueError
        if images are something else, or mean and std have neither one entry nor one a channel.
    """
    images = _bytes(images, (2, 3, 4))
    x = torch.from_numpy(np.array(images)).float() / 255
    mean, std = (torch.tensor(by_channel(v, x.shape[1]), dtype=torch.float32).reshape(1, -1, *[1] * (x.dim() - 2))
                 for v in (mean, std))
    return (x - mean) / std


def inputs(images, mean, std, device: torch.device) -> torch.Tensor:
    """What `normalise` makes of images, on a device; maps with channels last, which makes convolutions a fifth faster."""
    x = normalise(images, mean, std)
    return x.to(device, memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def checked_images(model: nn.Module, images: np.ndarray, purpose: str) -> np.ndarray:
    """Images, sequences or rows, with as many axes as a model's convolutions read: torch takes (n, h, w) for one image.

    Raises
    ------
    ValueError
        if there are none to `purpose`, they are not uint8, or have another number of axes.
    """
    if len(images) == 0:
        raise BadValue(f"there are no images to {purpose}")
    first = next((module for module in model.modules()
                  if isinstance(module, CONVOLUTIONS) and not isinstance(module, SelectChannels)), None)
    return _bytes(images, (2, 3, 4) if first is None else (2 + len(first.kernel_size),))


def _bytes(images, axes: tuple) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim not in axes:
        wanted = "(n, channels, length)" if axes == (3,) else "(n, channels, height, width)"
        raise BadValue(f"images must be uint8 of shape {wanted}, not {images.dtype} {images.shape}")
    return images


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def train(model: nn.Module, images: np.ndarray, labels: np.ndarray, schedule: Schedule, mean=None, std=None,
          seed: int = 0, checkpoint: Path | None = None, report=None, teacher: nn.Module | None = None,
          precision: str = "float32", compiled: bool = False, origin: str = "") -> nn.Module:
    """Train in place, on the device where the model is. With `checkpoint`, the state after each epoch is written there,
    and a run that finds its own goes on; `origin` says where the model came from, if that tells two runs apart.

    `mean` and `std` are those of the model's recipe, if it has one, and need not be given. A model in real numbers takes 0
    and 1 by default, and remembers what it was trained with.
    images uint8 (n, c, h, w), sequences (n, c, length) or rows (n, features); labels int64 (n,), or uint8 masks
    (n, 1, h, w) that are moved and turned as their images are.
    `report(done, total, loss)` is called after every step. The order of images depends on the seed and the epoch only,
    so that a resumed run sees what an unbroken one would have seen. In a process group every rank takes its part of each
    batch (see distributed.py). `precision` "bfloat16" runs layers, the teacher's too, in mixed precision (parameters stay
    float32), which helps on GPUs and on CPUs that multiply bfloat16 (AMX, AVX512_BF16); `compiled` goes through
    torch.compile, which helps on GPUs.

    Raises
    ------
    ValueError
        if images or labels are none, too few or of another kind, a teacher is needed and missing, the precision is
        unknown, mean or std contradict the model's, the checkpoint is of another run, or the loss is no longer finite.
    """
    mean, std = normalisation_of(model, mean, std)
    images = checked_images(model, images, "train on")
    labels = checked_labels(labels, len(images))
    classes = int(labels.max()) + 1 if labels.ndim == 1 else 1
    if schedule.distill and teacher is None:
        raise BadValue("the schedule distils, so training needs a teacher")
    if precision not in PRECISIONS:
        raise BadValue(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    device = device_of(model)
    steps = steps_per_epoch(len(images), schedule.batch)
    total = steps * schedule.epochs
    if teacher is not None:
        teacher.eval().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(_parameter_groups(model, schedule), lr=schedule.rate, momentum=schedule.momentum,
                                nesterov=True)
    state = RunState(checkpoint, checkpoint and run_of(model, schedule, seed, images, labels, mean=mean, std=std,
                                                       precision=precision, origin=origin))
    first = state.resume(model, optimizer)
    remember_normalisation(model, mean, std)
    model.to(memory_format=torch.channels_last).train()
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    sharp, first_sharp = SharpnessAware(model, schedule.sharpness), schedule.epochs - math.ceil(schedule.epochs / 3)
    parallel = distributed.wrap(model)
    parallel = torch.compile(parallel) if compiled else parallel

    def scores_by(network, x):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return network(x).float()

    def loss_by(network, x, target, wanted):
        scores = scores_by(network, x)
        if scores.shape[1] < classes:
            raise BadValue(f"labels go up to {classes - 1}, but the network has {scores.shape[1]} outputs")
        return _loss(scores, target, schedule, wanted)

    def run_epoch(epoch):
        for quantizer in quantizers:
            quantizer.forget()
        random = np.random.default_rng((seed, epoch))
        torch.manual_seed(seed * 1000 + epoch)
        order = random.permutation(len(images))
        for step in range(steps):
            done = epoch * steps + step
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(done, steps)
            for quantizer in quantizers:
                quantizer.advance(done / total)
            chosen = order[step * schedule.batch:(step + 1) * schedule.batch]
            batch, target = augmented_pair(images[chosen], labels[chosen], schedule.shift, schedule.mirror, random)
            x = inputs(distributed.share(batch), mean, std, device)
            target = _target(distributed.share(target)).to(device)
            with torch.no_grad():
                wanted = scores_by(teacher, x) if schedule.distill else None
            if schedule.sharpness and epoch >= first_sharp:
                with sharp, sharp.moved(loss_by(model, x, target, wanted)):
                    loss = loss_by(parallel, x, target, wanted)
            else:
                loss = loss_by(parallel, x, target, wanted)
            loss = loss + _penalty(quantizers)
            if not torch.isfinite(loss):
                raise BadValue(f"the loss is {loss.item()} in epoch {epoch}: training has diverged; lower the rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if report:
                report(done + 1, total, float(loss.detach()))
        distributed.synchronise(model)
        state.save(model, optimizer, epoch + 1)

    with state:
        for epoch in range(first, schedule.epochs):
            run_epoch(epoch)
    for quantizer in quantizers:
        quantizer.advance(1.0)
    warn(_silent(model))
    return model


def _silent(model: nn.Module) -> list:
    """Sentences on activations that nothing but zeros has reached."""
    return [f"{module.name} has been zero for all images: the layer is dead" for module in model.modules()
            if isinstance(module, ActivationQuantizer) and module.blank]


def steps_per_epoch(count: int, batch: int) -> int:
    """Batches of `count` images; a last one of a single image is left out, since it has no variance for a batch norm.

    >>> [steps_per_epoch(count, 8) for count in (1, 8, 9, 10)]
    [1, 1, 1, 2]
    """
    return max(1, math.ceil((count - 1) / batch)) if batch > 1 else count


def checked_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """One label, as int64, or mask for each of `count` images.

    Raises
    ------
    ValueError
        if there are more or fewer, or labels are not integers from 0.
    """
    labels = np.asarray(labels)
    if len(labels) != count:
        raise BadValue(f"there are {len(labels):,} labels for {count:,} images")
    if labels.ndim == 1 and (not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0):
        raise BadValue(f"labels must be integers from 0, not {labels.dtype} from {labels.min()}")
    return labels.astype(np.int64, copy=False) if labels.ndim == 1 else labels


def _target(labels: np.ndarray) -> torch.Tensor:
    """int64 labels as they are, uint8 masks as parts of one."""
    return torch.from_numpy(np.array(labels)) if labels.ndim == 1 else torch.from_numpy(np.array(labels)).float() / 255


def _loss(scores, target, schedule, wanted) -> torch.Tensor:
    """The task's loss, mixed with the distance from the outputs that the teacher `wanted`."""
    loss = task_loss(scores, target)
    if schedule.distill:
        soft = teacher_loss(scores, wanted, schedule.temperature)
        loss = (1 - schedule.distill) * loss + schedule.distill * soft
    return loss


def _penalty(quantizers: list):
    terms = [term for term in (quantizer.penalty() for quantizer in quantizers) if term is not None]
    return sum(terms) if terms else 0.0


def _parameter_groups(model, schedule):
    """No weight decay on biases, batch norms and activation scales: it would pull them to nonsense."""
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    return [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]


@torch.no_grad()
def evaluate(model: nn.Module, images: np.ndarray, labels: np.ndarray, mean=None, std=None, batch: int = 500) -> float:
    """Top-1 in percent, in eval mode; `mean` and `std` as for `train`.

    Raises
    ------
    ValueError
        if there are no images, or not as many labels, or mean or std contradict the model's.
    """
    mean, std = normalisation_of(model, mean, std)
    images = checked_images(model, images, "evaluate on")
    labels = checked_labels(labels, len(images))
    device = device_of(model)
    was_training = model.training
    model.eval()
    right = 0
    for i in range(0, len(images), batch):
        scores = model(normalise(images[i:i + batch], mean, std).to(device))
        right += int((scores.argmax(dim=1).cpu().numpy() == labels[i:i + batch]).sum())
    model.train(was_training)
    return 100 * right / len(images)


@torch.no_grad()
def calibrate(model: nn.Module, images: np.ndarray, mean=None, std=None, batch: int = 100) -> nn.Module:
    """Give every activation quantizer a scale from a few images, without training; `mean` and `std` as for `train`.

    Raises
    ------
    ValueError
        if there are no images, or mean or std contradict the model's.
    """
    mean, std = normalisation_of(model, mean, std)
    images = checked_images(model, images, "calibrate on")
    was_training = model.training
    model.eval()
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer.train()
    for i in range(0, len(images), batch):
        model(normalise(images[i:i + batch], mean, std).to(device_of(model)))
    warn(_silent(model))
    return model.train(was_training)
