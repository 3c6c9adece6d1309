"""Data-parallel training under torchrun: every rank trains on its part of each batch and all stay equal.

Gradients are averaged, by DistributedDataParallel or, where a training takes steps of its own, by `average_gradients`;
quantizers average their statistics (`esbflow.quant.base.across_ranks`), batch norms their running ones after each epoch. In
one process nothing of this happens.

    torchrun --nproc-per-node 2 -m esbflow.cli train resnet20-cifar10-w4a4 --out build/w4a4
"""

import os

import numpy as np
import torch
from torch import distributed, nn

from esbflow.errors import BadValue


def start() -> None:
    """Join the group that torchrun has set up, if it has."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not active():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def active() -> bool:
    """Whether there is a group of processes."""
    return distributed.is_available() and distributed.is_initialized()


def plain(what: str, precision: str, compiled: bool) -> None:
    """Refuse, with ValueError, mixed precision and torch.compile, which a training of its own kind does not have."""
    if precision != "float32" or compiled:
        raise BadValue(f"the training of {what} runs in float32, uncompiled; leave --precision and --compile away")


def is_first() -> bool:
    """Whether this process writes files and prints."""
    return not active() or distributed.get_rank() == 0


def share(batch: np.ndarray) -> np.ndarray:
    """A rank's part of a batch: every n-th of it, all of the same size. A batch smaller than the group goes to all.

    The few left over when the size does not divide are dropped, since ranks that weigh differently would not average to
    the gradient of the whole.
    """
    if not active():
        return batch
    world, rank = distributed.get_world_size(), distributed.get_rank()
    each = len(batch) // world
    return batch if each == 0 else batch[rank:each * world:world]


def wrap(model: nn.Module) -> nn.Module:
    """The module whose forward pass to call in training; it shares everything with `model`."""
    if not active():
        return model
    return nn.parallel.DistributedDataParallel(model)


def average_gradients(model: nn.Module) -> None:
    """Make gradients the mean over ranks, after a backward pass that did not go through `wrap`."""
    if not active():
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def synchronise(model: nn.Module) -> None:
    """Make running statistics the mean over ranks; parameters are equal already."""
    if not active():
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= distributed.get_world_size()
