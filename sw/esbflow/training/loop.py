"""Training on images by labels, masks or a teacher: schedules, what a network reads, accuracy, calibration."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.graph.doubts import warn
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.layers import CONVOLUTIONS, SelectChannels
from esbflow.quant.recipe import by_channel, normalisation_of, remember_normalisation
from esbflow.training import distributed
from esbflow.training.augment import augmented, augmented_pair
from esbflow.training.losses import task_loss, teacher_loss
from esbflow.training.run_state import run_of
from esbflow.training.sharpness import SharpnessAware
from esbflow.training.trainer import Trainer, half_cosine, step_at

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
        return rise * self.rate * half_cosine(done, self.epochs * steps)


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
    if precision not in PRECISIONS:
        raise BadValue(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    trainer = _ByLabels(model, images, labels, schedule, mean, std, seed, report, teacher, precision, compiled)
    return trainer.carry_out(checkpoint, checkpoint and run_of(
        model, schedule, seed, trainer.images, trainer.labels, mean=trainer.mean, std=trainer.std, precision=precision,
        origin=origin))


class Batch(NamedTuple):
    """Images as the model takes them, and labels or masks of theirs, or None, as tensors on the device."""

    images: torch.Tensor
    target: torch.Tensor | None


class ImageTrainer(Trainer):
    """Trains on shuffled images, moved and turned as `schedule` (shift, mirror, batch) says; layers have channels last.

    images, labels, mean and std are those of `train`; labels may be None. `epochs` units have `epoch_steps` steps each, and
    `first` come before them: a list of steps.
    """

    def __init__(self, model: nn.Module, images, labels, schedule, mean, std, seed: int, report, epochs: int,
                 first: tuple = (), own: tuple = ()):
        self.mean, self.std = normalisation_of(model, mean, std)
        self.images = checked_images(model, images, "train on")
        self.labels = None if labels is None else checked_labels(labels, len(self.images))
        self.schedule, self.device = schedule, device_of(model)
        self.epoch_steps = steps_per_epoch(len(self.images), schedule.batch)
        super().__init__(model, [*first, *[self.epoch_steps] * epochs], seed, report, own)

    def start(self) -> None:
        self.model.to(memory_format=torch.channels_last).train()

    def batches(self, unit: int, random: np.random.Generator):
        order, size = random.permutation(len(self.images)), self.schedule.batch
        for i in range(0, self.epoch_steps * size, size):
            yield self.batch(order[i:i + size], random)

    def batch(self, chosen: np.ndarray, random: np.random.Generator) -> Batch:
        """A rank's share of the chosen images and of their labels or masks, as tensors on the device."""
        images, how = self.images[chosen], (self.schedule.shift, self.schedule.mirror, random)
        if self.labels is None:
            images, target = augmented(images, *how), None
        else:
            images, target = augmented_pair(images, self.labels[chosen], *how)
            target = _target(distributed.share(target)).to(self.device)
        return Batch(inputs(distributed.share(images), self.mean, self.std, self.device), target)


class _ByLabels(ImageTrainer):
    """Stochastic gradient descent on labels or masks, and a teacher's outputs."""

    def __init__(self, model, images, labels, schedule, mean, std, seed, report, teacher, precision, compiled):
        super().__init__(model, images, labels, schedule, mean, std, seed, report, schedule.epochs)
        self.classes = int(self.labels.max()) + 1 if self.labels.ndim == 1 else 1
        if schedule.distill and teacher is None:
            raise BadValue("the schedule distils, so training needs a teacher")
        if teacher is not None:
            teacher.eval().to(self.device, memory_format=torch.channels_last)
        self.teacher, self.precision, self.compiled = teacher, precision, compiled
        self.optimizer = torch.optim.SGD(parameter_groups(model, schedule), lr=schedule.rate, momentum=schedule.momentum,
                                         nesterov=True)
        self.sharp, self.sharp_from = SharpnessAware(model, schedule.sharpness), math.inf
        if schedule.sharpness:
            self.sharp_from = schedule.epochs - math.ceil(schedule.epochs / 3)

    def start(self) -> None:
        remember_normalisation(self.model, self.mean, self.std)
        super().start()
        parallel = distributed.wrap(self.model)
        self.parallel = torch.compile(parallel) if self.compiled else parallel

    def begin(self, unit: int) -> None:
        self.sharpened = unit >= self.sharp_from

    def loss(self, batch) -> torch.Tensor:
        x, target = batch
        with torch.no_grad():
            wanted = self._scores(self.teacher, x) if self.schedule.distill else None
        if not self.sharpened:
            return self._loss(self.parallel, x, target, wanted)
        with self.sharp, self.sharp.moved(self._loss(self.model, x, target, wanted)):
            return self._loss(self.parallel, x, target, wanted)

    def _scores(self, network, x) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return network(x).float()

    def _loss(self, network, x, target, wanted) -> torch.Tensor:
        """The task's loss, mixed with the distance from the outputs that the teacher `wanted`."""
        scores, schedule = self._scores(network, x), self.schedule
        if scores.shape[1] < self.classes:
            raise BadValue(f"labels go up to {self.classes - 1}, but the network has {scores.shape[1]} outputs")
        loss = task_loss(scores, target)
        if schedule.distill:
            soft = teacher_loss(scores, wanted, schedule.temperature)
            loss = (1 - schedule.distill) * loss + schedule.distill * soft
        return loss

    def step(self, unit: int, index: int) -> None:
        step_at(self.optimizer, self.schedule.rate_at(unit * self.epoch_steps + index, self.epoch_steps))

    def finish(self) -> None:
        warn(_silent(self.model))


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


def parameter_groups(model: nn.Module, schedule: Schedule) -> list:
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
