"""The file from which an interrupted training goes on, and of which training it is."""

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.files import whole
from esbflow.quant.recipe import recipe_of
from esbflow.training import distributed


class Interrupted(KeyboardInterrupt):
    """A training was stopped; the text says how to go on."""


def run_of(model: nn.Module, schedule, seed: int, images: np.ndarray, labels: np.ndarray | None, **others) -> dict:
    """What one training differs from another by: {name: text}. Two with the same go on from each other's files.

    The schedule and the model's recipe count with all their fields, images and labels by a checksum, and `others` by their
    texts. The device and the number of threads do not count: the result is the same but for rounding.
    """
    recipe, _ = recipe_of(model)
    facts = {"method": type(schedule).__name__, **dataclasses.asdict(schedule), "seed": seed, "images": len(images),
             "data": checksum(images) if labels is None else checksum(images, labels), **others}
    if recipe is not None:
        facts |= {f"recipe's {field}": value for field, value in dataclasses.asdict(recipe).items()}
    return {name: json.dumps(value, default=str) for name, value in facts.items()}


def checksum(*arrays: np.ndarray) -> str:
    """Eight hexadecimal digits.

    >>> checksum(np.arange(3, dtype=np.uint8))
    '0854897f'
    """
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"{total:08x}"


class RunState:
    """The state of a training after each epoch (or other unit), in a file, if there is one.

    Parameters
    ----------
    path : of the file, or None: nothing is written then.
    run : as `run_of` has it; of no account without a path.

    As a context it turns a KeyboardInterrupt into an `Interrupted` that says what has been kept.
    """

    def __init__(self, path: Path | None, run: dict | None):
        self.path, self.run, self.done = None if path is None else Path(path), run, 0

    def resume(self, model: nn.Module, optimizer) -> int:
        """Take the file's state over, if there is one; returns how many epochs are done.

        Raises
        ------
        ValueError
            if the file is damaged, or of another run, saying what differs.
        """
        if self.path is None or not self.path.exists():
            return 0
        state = _read(self.path)
        then = state["run"]
        others = [f"{name} is {then.get(name, 'not set')} there and {self.run.get(name, 'not set')} here"
                  for name in dict.fromkeys((*then, *self.run)) if then.get(name) != self.run.get(name)]
        if others:
            raise BadValue(f"{self.path} is of another run ({', '.join(others)}); to go on with it train as it did, to "
                             "start anew remove it or write elsewhere")
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # whatever torch raises on a state that does not fit
            raise BadValue(_damaged(self.path, error)) from None
        self.done = state["epoch"]
        return self.done

    def save(self, model: nn.Module, optimizer, done: int) -> None:
        """Write the state after `done` epochs."""
        self.done = done
        if self.path is None or not distributed.is_first():
            return
        with whole(self.path) as temporary:
            torch.save({"run": self.run, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": done},
                       temporary)

    def __enter__(self) -> "RunState":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is KeyboardInterrupt and self.path is not None and self.path.exists():
            raise Interrupted(f"stopped; {self.path} keeps what was trained until unit {self.done}, and the same training "
                              "goes on from there") from None


def _read(path: Path) -> dict:
    try:
        state = torch.load(path, weights_only=True)
        if not {"run", "model", "optimizer", "epoch"} <= set(state):
            raise BadValue("it does not say of which run it is")
        return state
    except Exception as error:  # whatever torch raises on a file that is not a checkpoint
        raise BadValue(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is no checkpoint of this run ({error}); remove it to start again"
