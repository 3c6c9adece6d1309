"""Reads a program file and refuses one that is damaged, of another version, or for another engine."""

import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from esbflow.engine_config import EngineConfig
from esbflow.errors import reason
from esbflow.runtime.errors import ProgramError

FORMAT = "esbflow program"
VERSION = 2
ARRAYS = {"meta": np.uint8, "instructions": np.uint64, "weights": np.uint8, "table": np.int64}


@dataclass(frozen=True, eq=False)
class LoadedProgram:
    """The content of a program file: `meta` is plain JSON (docs/program.md), `instructions` uint64 (n, 4), `weights` bytes,
    `table` int64 (c, 256)."""

    meta: dict
    instructions: np.ndarray
    weights: np.ndarray
    table: np.ndarray

    @cached_property
    def config(self) -> EngineConfig:
        """The engine that the program is for."""
        return EngineConfig.from_dict(self.meta["engine"])

    def layer_name(self, number: int) -> str:
        """The name of a layer by its number in the log, for sentences."""
        layers = self.meta["layers"]
        return layers[number]["name"] if number < len(layers) else "no such layer"


def outputs_of(meta: dict) -> dict:
    """{name: what a program's `meta` says of the output}, with `offset` and `bytes` in its region; of a program with one
    output the name is "output"."""
    if "outputs" in meta:
        return {output["name"]: output for output in meta["outputs"]}
    return {"output": dict(meta["output"], offset=0, bytes=meta["regions"]["output"])}


def holds(path, form: str) -> bool:
    """Whether a file is an .npz whose `meta` says that it has the format `form`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return json.loads(archive["meta"].tobytes().decode())["format"] == form
    except Exception:  # whatever a damaged archive raises: whoever reads it next says what is wrong with it
        return False


def load_program(path) -> LoadedProgram:
    """Read a program file.

    Raises
    ------
    ProgramError
        if the file is missing, truncated, not a program, or of another version.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
        meta = json.loads(arrays.pop("meta").tobytes().decode())
    except FileNotFoundError:
        raise ProgramError(f"there is no program file {path}; make one with `esbflow compile`") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ProgramError(f"{path} is not a whole program file ({reason(error)}); compile the network again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ProgramError(f"{path} is not a program file; make one with `esbflow compile`")
    if meta.get("version") != VERSION:
        raise ProgramError(f"{path} has program version {meta.get('version')} and this driver reads {VERSION}; "
                           "compile the network again")
    for name, array in arrays.items():
        if array.dtype != ARRAYS[name]:
            raise ProgramError(f"{path} is not a whole program file ({name} has type {array.dtype}); compile again")
    if arrays["instructions"].ndim != 2 or arrays["instructions"].shape[1] != 4 or not len(arrays["instructions"]):
        raise ProgramError(f"{path} has no instructions; compile the network again")
    return LoadedProgram(meta=meta, **arrays)
