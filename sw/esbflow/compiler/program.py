"""A compiled program: what the driver needs to run a network, in one file without pickle."""

import json
import zipfile
from pathlib import Path

import numpy as np

from esbflow.files import whole
from esbflow.runtime.program_file import ARRAYS, LoadedProgram


class Program(LoadedProgram):
    """What the compiler makes, and can save."""

    @property
    def words(self) -> list:
        """The instructions as 256-bit integers."""
        return [int.from_bytes(row.tobytes(), "little") for row in self.instructions.astype("<u8")]

    def save(self, path) -> Path:
        """Write the file, whole or not at all."""
        meta = np.frombuffer(json.dumps(self.meta).encode(), dtype=np.uint8)
        with whole(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ARRAYS:
                array = meta if name == "meta" else getattr(self, name)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        return Path(path)


def instruction_array(words: list) -> np.ndarray:
    """256-bit integers -> uint64 (n, 4), lowest word first."""
    data = b"".join(word.to_bytes(32, "little") for word in words)
    return np.frombuffer(data, dtype="<u8").reshape(-1, 4).copy()
