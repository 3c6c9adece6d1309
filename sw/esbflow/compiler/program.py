"""A compiled program: what the driver needs to run a network, in one file without pickle."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esbflow.engine_config import EngineConfig
from esbflow.files import whole

FORMAT = "esbflow program"
VERSION = 2


@dataclass(frozen=True, eq=False)
class Program:
    """`meta` is plain JSON (docs/program.md), `instructions` uint64 (n, 4), `weights` bytes, `table` int64 (c, 256)."""

    meta: dict
    instructions: np.ndarray
    weights: np.ndarray
    table: np.ndarray

    @property
    def config(self) -> EngineConfig:
        """The engine that the program is for."""
        return EngineConfig.from_dict(self.meta["engine"])

    @property
    def words(self) -> list:
        """The instructions as 256-bit integers."""
        return [int.from_bytes(row.tobytes(), "little") for row in self.instructions.astype("<u8")]

    def save(self, path) -> Path:
        """Write the file, whole or not at all."""
        meta = np.frombuffer(json.dumps(self.meta).encode(), dtype=np.uint8)
        with whole(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in (("meta", meta), ("instructions", self.instructions), ("weights", self.weights),
                                ("table", self.table)):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        return Path(path)


def instruction_array(words: list) -> np.ndarray:
    """256-bit integers -> uint64 (n, 4), lowest word first."""
    data = b"".join(word.to_bytes(32, "little") for word in words)
    return np.frombuffer(data, dtype="<u8").reshape(-1, 4).copy()
