"""A teacher whose answers are kept in a file: what it said about a batch it need not work out again.

The batches of a training depend on seed, epoch and augmentation only (loop.py), so that every run of a study sees the same
ones. A ResNet-56's forward pass, 126 million multiplications an image, is as much work as forward and backward passes of the
ResNet-20 that it teaches, 3 times 41 million.
"""

import hashlib
import sqlite3
from pathlib import Path

import numpy as np
import torch
from torch import nn

from esbflow.errors import BadValue


class CachedTeacher(nn.Module):
    """Gives what `teacher` gives in eval mode, float32 (n, classes), from the SQLite file `path` where it has been asked
    before.

    An answer belongs to the teacher's weights, to every bit of the batch and to the precision (autocast or not). Several
    processes may share the file, and one that is killed leaves it usable. 128 answers of 10 classes take 5 kB.

    Raises
    ------
    ValueError
        if the file is something else.
    """

    def __init__(self, teacher: nn.Module, path: str | Path):
        super().__init__()
        self.teacher, self.path = teacher.eval(), Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        named = hashlib.blake2b(str(teacher).encode())
        for name, value in sorted(teacher.state_dict().items()):
            named.update(name.encode() + _bytes(value))
        self._named = named.digest()
        try:
            # Commits wait for no disk: what a power cut loses is worked out again. Another process may write for a moment.
            self._file = sqlite3.connect(self.path, isolation_level=None, timeout=60)
            self._file.execute("PRAGMA synchronous = OFF")
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (batch BLOB PRIMARY KEY, classes INTEGER, scores BLOB)")
        except sqlite3.DatabaseError as error:
            raise BadValue(f"{path} is no file of a teacher's answers ({error}); name another or remove it") from None

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, ...) -> (n, classes)."""
        mixed = str(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else ""
        asked = self._named + mixed.encode() + str(tuple(x.shape)).encode() + _bytes(x)
        key = hashlib.blake2b(asked, digest_size=16).digest()
        found = self._file.execute("SELECT classes, scores FROM answers WHERE batch = ?", (key,)).fetchone()
        if found:
            scores = np.frombuffer(found[1], np.float32).reshape(-1, found[0])
            return torch.from_numpy(scores.copy()).to(x.device)
        scores = self.teacher(x).float()
        self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, scores.shape[1], _bytes(scores)))
        return scores


def _bytes(value: torch.Tensor) -> bytes:
    """In the order of the indices, whatever the order in memory."""
    return value.detach().cpu().contiguous().numpy().tobytes()
