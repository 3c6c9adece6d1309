"""What a measured training leaves behind: one JSON file with accuracy, size, command, seed, machine and minutes.

Files of this kind in docs/results/ are what docs/accuracy.md is made of (`python -m esbflow.reports.accuracy`).
"""

import platform
import shlex
from pathlib import Path

import torch

from esbflow.errors import BadValue
from esbflow.files import write_json
from esbflow.quant.activation import InputQuantizer

KEYS = ("method", "network", "data", "weights_bits", "activation_bits", "top1_integer_graph", "top1_float", "images",
        "bytes", "seed", "command", "hardware", "minutes")


def command_line(program: str, **options) -> str:
    """The command that a record names: options that are None or False are left out, True has no value.

    >>> command_line("esbflow study text", data="imdb", seed=None, epochs=3, control=True)
    'esbflow study text --data imdb --epochs 3 --control'
    >>> command_line("esbflow train digits", sharpness=0.0)  # not the recipe's
    'esbflow train digits --sharpness 0'
    >>> command_line("esbflow train digits", first_weights="sq(ramped,linear):twn")  # as a shell takes it
    "esbflow train digits --first-weights 'sq(ramped,linear):twn'"
    """
    words = [program]
    for name, value in options.items():
        if value is not None and value is not False:
            words.append(f"--{name.replace('_', '-')}")
            words += [] if value is True else [shlex.quote(f"{value:g}" if isinstance(value, float) else str(value))]
    return " ".join(words)


def hardware(device: str | None = None) -> str:
    """The machine in words: what the minutes were spent on. `device` is torch's name of it, None is the CPU."""
    if torch.device(device or "cpu").type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of all quantized weights as their methods store them: codes, scales, codebooks."""
    layers = [m for m in model.modules() if hasattr(m, "weight_quantizer")]
    return round(sum(layer.weight_quantizer.stored_bits(layer.weight) for layer in layers) / 8)


def weights_bits(model: torch.nn.Module) -> float:
    """Bits a weight over all layers but the first and the last (over all, if there are no others).

    Methods that spread their bits over a network are counted as published: over all their layers, and ALQ without what
    is stored beside the signs.
    """
    layers = [m for m in model.modules() if hasattr(m, "weight_quantizer")]
    counted = [layer for layer in layers if layer.weight_quantizer.spreads] or layers[1:-1] or layers
    return round(sum(layer.weight_quantizer.counted_bits(layer.weight) for layer in counted)
                 / sum(layer.weight.numel() for layer in counted), 3)


def activation_bits(model: torch.nn.Module) -> int:
    """Bits of the activations that most layers multiply."""
    bits = [m.form.bits for m in model.quantizers.values() if not isinstance(m, InputQuantizer)]
    return min(bits, default=8)


def of_training(metrics: dict, command: str, minutes: float, device: str | None = None) -> dict:
    """The record of what `train_network` returned, which trained on `device`."""
    return {"method": metrics["weights"], "network": metrics["network"], "data": metrics["data"],
            "weights_bits": metrics["weights_bits"], "activations": metrics["activations"],
            "activation_bits": metrics["activation_bits"], "top1_integer_graph": round(metrics["graph_top1"], 2),
            "top1_fake_quantization": round(metrics["fake_quant_top1"], 2),
            "top1_float": round(metrics["float_top1"], 2), "images": metrics["images"], "bytes": metrics["bytes"],
            "epochs": metrics["epochs"], "seed": metrics["seed"], "command": command, "hardware": hardware(device),
            "minutes": round(minutes, 1)}


def write(path: Path, record: dict) -> None:
    """Write a record whole or not at all.

    Raises
    ------
    ValueError
        if a key is missing, naming it.
    """
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise BadValue(f"a record needs {missing[0]!r}")
    write_json(path, record)
