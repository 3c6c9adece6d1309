"""What product quantization's codebooks take and how fast they are on this CPU, beside dense weights.

    esbflow study codebooks resnet20 --weights pq:256,9

Weights are random: bytes and time do not depend on them. Times are the least of several runs of one image, in one process.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from esbflow.graph.compressed import CodebookNetwork
from esbflow.graph.execute import execute
from esbflow.graph.file import save
from esbflow.networks.registry import network as registered
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate

REPEATS = 7


def study(given, say=None) -> dict:
    """Sizes and times of the network `given.network` of the registry, whose weights are quantized by `given.weights`."""
    torch.manual_seed(0)
    name, weights, say = given.network, given.weights, say or (lambda _: None)
    entry = registered(name)
    say(f"calibrate and export {name}")
    model, shape = entry(), entry.shape
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    quantized = calibrate(quantize(model, Recipe(weights=weights)), images).eval()
    graph = export(quantized, name, shape)
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: save(graph, Path(folder) / f"{kind}.npz", kind == "codebooks") for kind in ("dense", "codebooks")}
        sizes = {f"{kind}_file_bytes": path.stat().st_size for kind, path in files.items()}
        network = CodebookNetwork.load(files["codebooks"])
    count = sum(node.weight.size for node in graph.nodes if hasattr(node, "weight"))
    one = images[:1]
    say(f"run one image {REPEATS} times in either form")
    return {
        "network": name, "weights": weights, "weight_count": count, "float32_bytes": 4 * count, "int8_bytes": count,
        "codebook_bytes": network.weight_bytes, **sizes,
        "equal": bool((network.run(images) == execute(graph, images)).all()),
        "dense_ms": _least(lambda: execute(graph, one)), "codebooks_ms": _least(lambda: network.run(one)),
    }


def _least(call) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - began))
    return round(min(times), 3)
