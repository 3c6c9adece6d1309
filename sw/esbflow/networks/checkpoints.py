"""Trained weights from files: torch's (.pth, .pt, ...), NumPy's (.npz) and safetensors."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.networks.registry import network
from esbflow.quant.layers import SelectChannels

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".ckpt", ".bin", ".tar")
WRAPPERS = ("state_dict", "model_state_dict", "model", "state", "net")
"""Where training scripts put the state dict among other things; also `esbflow train` ("state")."""
PREFIXES = ("module.", "_orig_mod.")
"""What nn.DataParallel and torch.compile put before every name."""


def load_checkpoint(model: nn.Module, path: str | Path, unused: tuple = (), renamed: tuple = (),
                    folded_statistics: bool = False) -> nn.Module:
    """Load trained weights into a model, which stays as it was if they do not fit. Returns it in eval mode.

    Parameters
    ----------
    path : .npz, .safetensors (if that library is installed), or one of TORCH_SUFFIXES, of which only tensors are read.
    unused : prefixes of tensors in the file to leave out.
    renamed : (pattern, replacement) for names in the file, as re.sub takes them.
    folded_statistics : the file's batch norms have a scale and a shift only; mean 0 and variance 1 are taken.

    Raises
    ------
    ValueError
        if the file is missing, damaged or of another kind, or does not fit, naming the first tensors that are missing,
        unexpected or of another shape.
    """
    path = Path(path)
    found = {}
    for name, value in read_tensors(path).items():
        for pattern, replacement in renamed:
            name = re.sub(pattern, replacement, name)
        if not name.startswith(tuple(unused)):
            found[name] = value
    wanted = model.state_dict()
    for name, value in wanted.items():
        if folded_statistics and name not in found and name.endswith(("running_mean", "running_var")):
            found[name] = torch.full_like(value, 1.0 if name.endswith("running_var") else 0.0)
    # Counters of batches, and weights that never train, stand in no file that others wrote.
    constant = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, SelectChannels)}
    missing = [name for name in wanted if name not in found and name not in constant
               and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    misshaped = [name for name in found if name in wanted and found[name].shape != wanted[name].shape]
    faults = [_listed("missing tensors: {}", missing), _listed("unexpected tensors: {}", unexpected)]
    if misshaped:
        shapes = [str(tuple(state[misshaped[0]].shape)) for state in (found, wanted)]
        faults.append(_listed("{} has shape " + " and not ".join(shapes), misshaped))
    faults = [fault for fault in faults if fault]
    if faults:
        hint = ""
        if missing and all(name.endswith(("running_mean", "running_var")) for name in missing):
            hint = " (if its batch norms hold scale and shift only, say folded_statistics=True)"
        raise BadValue(f"{path} does not fit {type(model).__name__}: {'; '.join(faults)}{hint}")
    model.load_state_dict(found, strict=False)
    return model.eval()


def load_network(name: str, path: str | Path, folded_statistics: bool = False, **options) -> nn.Module:
    """A network of the registry with trained weights; `options` go to its constructor (classes=...).

    Raises
    ------
    ValueError
        for an unknown name, and what `load_checkpoint` raises.
    """
    entry = network(name)
    return load_checkpoint(entry(**options), path, entry.unused, entry.renamed, folded_statistics)


def read_tensors(path: str | Path) -> dict:
    """{name: tensor} of a file, out of its wrapper and without the prefixes of data parallelism.

    Raises
    ------
    ValueError
        if the file is missing, damaged or of a kind that is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise BadValue(f"there is no checkpoint {path}")
    if path.suffix == ".npz":
        content = _read_npz(path)
    elif path.suffix == ".safetensors":
        content = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
    else:
        raise BadValue(f"{path}: checkpoints are .npz, .safetensors or {', '.join(TORCH_SUFFIXES)}")
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise BadValue(f"{path} holds no tensors; save a model's state_dict()")
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _listed(text: str, names: list) -> str:
    """The first of the names in a text, and how many more there are."""
    if not names:
        return ""
    return text.format(names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else ""))


def _read_npz(path: Path) -> dict:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BadValue(f"{path} is damaged, or no .npz of plain arrays ({_first_line(error)})") from None


def _read_safetensors(path: Path) -> dict:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise BadValue(f"{path}: reading it needs the package safetensors; install it, or save the tensors as .npz"
                         ) from None
    try:
        return load_file(path)
    except Exception as error:  # the library has an exception of its own for each fault
        raise BadValue(f"{path} is damaged, or no safetensors file ({_first_line(error)})") from None


def _read_torch(path: Path) -> dict:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch raises on a damaged file, or on one that holds more than tensors
        raise BadValue(f"{path} is damaged, or holds more than tensors ({_first_line(error)}); save a model's state_dict()"
                         ) from None
    if not isinstance(content, Mapping):
        raise BadValue(f"{path} holds a {type(content).__name__} and no state dict; save a model's state_dict()")
    return dict(content)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(". ") or type(error).__name__
