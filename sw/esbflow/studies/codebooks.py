"""What product quantization's codebooks take and how fast they are on this CPU, beside dense weights.

    python -m esbflow.studies.codebooks resnet20 --weights pq:256,9

Weights are random: bytes and time do not depend on them. Times are the least of several runs of one image, in one process.
"""

import argparse
import json
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


def measured(name: str, weights: str) -> dict:
    """Sizes and times of a network of the registry whose weights are quantized by `weights`."""
    torch.manual_seed(0)
    entry = registered(name)
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
    return min(times)


def main(argv: list | None = None) -> None:
    """Measure the network that the command line names and print a JSON object."""
    parser = argparse.ArgumentParser(description="Sizes and times of codebooks on this CPU.")
    parser.add_argument("network")
    parser.add_argument("--weights", default="pq:256,9")
    arguments = parser.parse_args(argv)
    print(json.dumps(measured(arguments.network, arguments.weights), indent=1))


if __name__ == "__main__":
    main()
