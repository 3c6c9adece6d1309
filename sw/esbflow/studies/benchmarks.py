"""What a training step costs: FP32, esbflow and, where it is installed, Brevitas, interleaved in one run.

    make bench-train

One step is a forward and a backward pass of ResNet-20 on a batch of 32x32 images. Steps of the contestants take turns, so
that what else the machine does hits all of them alike; ratios are of the medians. Brevitas is not a dependency: `make
bench-train` installs the pinned version into an environment of its own.

Both quantize weights by output channel. Brevitas' steps are those behind its statistics phase, in which QuantReLU takes
percentiles for 300 steps. esbflow searches the scales of its weights anew every so many steps: one such step is measured by
itself, and its share is part of esbflow's figures.
"""

import argparse
import copy
import importlib.metadata
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from esbflow.files import write_json
from esbflow.networks.resnet20 import ResNet20
from esbflow.quant.layers import SelectChannels
from esbflow.quant.methods.esb import ESBWeightQuantizer
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training import record

STATISTICS_STEPS = 1
"""Of Brevitas' QuantReLU, 300 by default: within the warm-up, so that what is measured is the steps of a training."""
SEARCHING = "esbflow W4A4, scales searched"
LIMITS = {"cpu": 1.35, "cuda": 1.2}
"""An ESB W4A4 step at most so many times an FP32 step."""


def brevitas_resnet20() -> nn.Module | None:
    """ResNet-20 with Brevitas' layers, 4-bit weights and activations, first and last layer at 8 bits, scales of weights by
    output channel; None without it."""
    try:
        from brevitas import nn as qnn
    except ImportError:
        return None

    model = ResNet20()
    layers = [(name, module) for name, module in model.named_modules()
              if isinstance(module, (nn.Conv2d, nn.Linear, nn.ReLU)) and not isinstance(module, SelectChannels)]
    weighted = [name for name, module in layers if not isinstance(module, nn.ReLU)]
    for name, module in layers:
        bits = 8 if name in (weighted[0], weighted[-1]) else 4
        if isinstance(module, nn.Conv2d):
            new = qnn.QuantConv2d(module.in_channels, module.out_channels, module.kernel_size, stride=module.stride,
                                  padding=module.padding, bias=False, weight_bit_width=bits,
                                  weight_scaling_per_output_channel=True)
        elif isinstance(module, nn.Linear):
            new = qnn.QuantLinear(module.in_features, module.out_features, bias=True, weight_bit_width=bits,
                                  weight_scaling_per_output_channel=True)
        else:
            new = qnn.QuantReLU(bit_width=4, collect_stats_steps=STATISTICS_STEPS)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)
    return model


def brevitas_version() -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version("brevitas")
    except importlib.metadata.PackageNotFoundError:
        return None


def contestants(device: str, compiled: bool) -> dict:
    """{name: model} in training mode, some in the memory layout that `train` uses, and in mixed precision."""
    models = {"fp32": ResNet20(), "fp32, channels last": ResNet20().to(memory_format=torch.channels_last),
              "esbflow W4A4": quantize(ResNet20(), Recipe(weights="esb4.1", activations="u4")),
              "esbflow W4A4, channels last": quantize(ResNet20(), Recipe(weights="esb4.1", activations="u4")).to(
                  memory_format=torch.channels_last)}
    brevitas = brevitas_resnet20()
    if brevitas is not None:
        models["brevitas W4A4"] = brevitas
    models[SEARCHING] = copy.deepcopy(models["esbflow W4A4"])
    models = {name: model.to(device).train() for name, model in models.items()}
    models.update({f"{name}, bfloat16": copy.deepcopy(models[name])
                   for name in ("fp32, channels last", "esbflow W4A4, channels last")})
    if compiled:
        models.update({f"{name}, compiled": torch.compile(model) for name, model in list(models.items())
                       if "brevitas" not in name})
    return models


def step(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, mixed: bool = False) -> None:
    """Forward and backward, in mixed precision or in float32."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
        scores = model(x)
    F.cross_entropy(scores.float(), labels).backward()
    for parameter in model.parameters():
        parameter.grad = None


def _forget_scales(model: nn.Module) -> int:
    """Make the next step search all scales of weights; how many steps lie between two searches otherwise, at least."""
    quantizers = [module for module in model.modules() if isinstance(module, ESBWeightQuantizer)]
    for quantizer in quantizers:
        quantizer.forget()
    return min(quantizer.refresh for quantizer in quantizers)


def measure(batch: int = 128, rounds: int = 10, threads: int = 2, device: str = "cpu", compiled: bool = False,
            report=print) -> dict:
    """Median seconds a step of each contestant and ratios to FP32, from `rounds` interleaved rounds after a warm-up of 2."""
    torch.set_num_threads(threads)
    x = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    models = contestants(device, compiled)
    seconds = {name: [] for name in models}
    for turn in range(rounds + 2):
        for name, model in models.items():
            data = x.contiguous(memory_format=torch.channels_last) if "channels last" in name else x
            if name == SEARCHING:
                refresh = _forget_scales(model)
            began = time.perf_counter()
            step(model, data, labels, "bfloat16" in name)
            if device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - began)
        report(f"round {turn + 1} of {rounds + 2}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    search = max(0.0, medians[SEARCHING] - medians["esbflow W4A4"]) / refresh
    medians = {name: value + search if name.startswith("esbflow") and name != SEARCHING else value
               for name, value in medians.items()}
    ratios = {name: round(value / medians["fp32"], 3) for name, value in medians.items()}
    ours = ratios["esbflow W4A4"]
    return {"network": "resnet20", "batch": batch, "threads": threads, "rounds": rounds, "hardware": record.hardware(device),
            "torch": torch.__version__, "brevitas": brevitas_version(), "steps_between_searches": refresh,
            "seconds": {name: round(value, 4) for name, value in medians.items()},
            "ratio_to_fp32": ratios, "limit": LIMITS[device],
            "reached": ours <= LIMITS[device] and ours < ratios.get("brevitas W4A4", float("inf"))}


def main(arguments: list | None = None) -> int:
    """The command line; 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description="training steps: FP32, esbflow, Brevitas")
    parser.add_argument("--out", type=Path, default=Path("build/bench/training.json"))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=list(LIMITS), default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    given = parser.parse_args(arguments)
    result = measure(given.batch, given.rounds, given.threads, given.device, given.compile)
    write_json(given.out, result)
    print(json.dumps(result, indent=2))
    return 0 if result["reached"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
