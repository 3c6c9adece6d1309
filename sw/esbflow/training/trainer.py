"""The one training loop: seeded, with checkpoints from which an interrupted run goes on to the same result.

What differs between images, sentences, citation graphs, ALQ and product quantization are the hooks of `Trainer`.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.quant.base import Quantizer
from esbflow.training import distributed
from esbflow.training.run_state import RunState


class Trainer:
    """Trains a model in place, in units (mostly epochs). After each unit its state can be kept in a file.

    Parameters
    ----------
    model : on the device where it is to train.
    lengths : steps of each unit.
    seed : the generators of each unit depend on it and on the unit's number only. A resumed run sees what an unbroken one
        would have seen.
    report : called as report(done, total, loss) after every step, if given.
    own : classes of quantizers that the subclass moves itself. All others are told how far the training has come.

    A subclass defines `batches`, `loss` and `step`, and `optimizer` (or `state_dict` and `load_state_dict`). The other hooks
    do nothing here.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, model: nn.Module, lengths: list, seed: int = 0, report=None, own: tuple = ()):
        self.model, self.lengths, self.seed, self.report = model, lengths, seed, report
        self.quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
        self.advanced = [quantizer for quantizer in self.quantizers if not isinstance(quantizer, own)]

    # -- hooks ----------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Once, after the checkpoint has been read."""

    def begin(self, unit: int) -> None:
        """Before the first batch of a unit."""

    def batches(self, unit: int, random: np.random.Generator) -> Iterator:
        """What `loss` takes at each of the unit's steps."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it trains on")

    def loss(self, batch) -> torch.Tensor:
        """The loss of one batch, without the quantizers' penalties."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it minimizes")

    def step(self, unit: int, index: int) -> None:
        """Move the parameters: the gradients of the unit's step number `index` are there."""
        raise NotImplementedError(f"{type(self).__name__} does not say how parameters move")

    def end(self, unit: int) -> None:
        """After the last step of a unit, before its state is kept."""

    def finish(self) -> None:
        """Once, after the last unit."""

    def state_dict(self) -> dict:
        """What a checkpoint keeps beside the model."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """What `state_dict` gave."""
        self.optimizer.load_state_dict(state)

    # -- the loop -------------------------------------------------------------------------------------------
    def carry_out(self, checkpoint: Path | None = None, run: dict | None = None) -> nn.Module:
        """Train, or go on from the file `checkpoint`, whose training must be the same `run` (see `run_of`).

        Raises
        ------
        ValueError
            if the checkpoint is damaged or of another run, or the loss is no longer finite.
        Interrupted
            a KeyboardInterrupt that says what has been kept.
        """
        state = RunState(checkpoint, run)
        first = state.resume(self.model, self)
        self.start()
        done, total = sum(self.lengths[:first]), sum(self.lengths)
        with state:
            for unit in range(first, len(self.lengths)):
                for quantizer in self.quantizers:
                    quantizer.forget()
                torch.manual_seed(self.seed * 1000 + unit)
                self.begin(unit)
                for index, batch in enumerate(self.batches(unit, np.random.default_rng((self.seed, unit)))):
                    loss = self._one_step(unit, index, batch, done, total)
                    done += 1
                    if self.report:
                        self.report(done, total, loss)
                self.end(unit)
                distributed.synchronise(self.model)
                state.save(self.model, self, unit + 1)
        for quantizer in self.advanced:
            quantizer.advance(1.0)
        self.finish()
        return self.model

    def _one_step(self, unit: int, index: int, batch, done: int, total: int) -> float:
        """Returns the loss."""
        for quantizer in self.advanced:
            quantizer.advance(done / total)
        loss = self.loss(batch)
        penalties = [term for term in (quantizer.penalty() for quantizer in self.advanced) if term is not None]
        loss = loss + sum(penalties) if penalties else loss
        if not torch.isfinite(loss):
            raise BadValue(f"the loss is {loss.item()} in step {done + 1} of {total}: training has diverged; lower the rate")
        self.model.zero_grad()
        loss.backward()
        self.step(unit, index)
        return float(loss.detach())


def half_cosine(done: float, total: float = 1.0) -> float:
    """What a learning rate is multiplied with after `done` of `total`: it falls from 1 to 0.

    >>> [round(half_cosine(done, 4), 3) for done in (0, 2, 4)]
    [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * done / total))


def step_at(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One step of an optimizer at a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
