"""The table of networks in docs/networks.md: how large they are, and how many cycles an engine takes for an image.

    python -m esbflow.reports.networks_table docs                   # all of them: about 5 minutes on 2 cores
    python -m esbflow.reports.networks_table docs unet googlenet    # these anew, the others as they stand

Weights are random, of 4 bits (ESB(4,1)) as activations are: cycles do not depend on trained values, but for layers whose
weights happen to need fewer passes. Cycles are the exact cycle model's, for ideal memory.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from esbflow.engine_config import EngineConfig
from esbflow.engines import DEFAULT_ENGINE, engine
from esbflow.errors import BadValue
from esbflow.files import write_whole
from esbflow.graph.ir import Graph
from esbflow.graph.macs import macs
from esbflow.networks.registry import NETWORKS, network
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.reports.estimate import estimate
from esbflow.reports.marks import fill, filled
from esbflow.training.loop import calibrate

MARK = "table of networks"
HEAD = ("| name | images | parameters | MACs | layers | cycles an image | use of the lanes % |\n"
        "|---|---|--:|--:|--:|--:|--:|")
RECIPE = Recipe(weights="esb4.1", activations="u4")


class RandomNetwork(NamedTuple):
    """A model with random weights in real numbers, and the graph of what it is quantized to."""

    model: torch.nn.Module
    graph: Graph


def random_network(name: str, recipe: Recipe) -> RandomNetwork:
    """(model with random weights, its graph) of a network of the registry, calibrated on two random images."""
    entry = network(name)
    torch.manual_seed(0)
    model = entry().eval()
    images = np.random.default_rng(0).integers(0, 256, (2, *entry.shape), dtype=np.uint8)
    return RandomNetwork(model, export(calibrate(quantize(model, recipe), images), name, entry.shape))


def row(name: str, config: EngineConfig) -> str:
    """One line of the table."""
    model, graph = random_network(name, RECIPE)
    entry, parameters = network(name), sum(parameter.numel() for parameter in model.parameters())
    layers = graph.info["modules"]  # those with weights: choices of channels are convolutions too
    own = sum(macs(node) for node in graph.nodes if node.name in layers)
    plan = estimate(graph, config)
    return (f"| `{name}` | {'x'.join(map(str, entry.shape))} | {parameters:,} | {own / 1e6:,.1f} M | {len(layers)} | "
            f"{plan['cycles_per_image']:,.0f} | {100 * plan['utilization']:.0f} |")


def table(old: str, names: list, config: EngineConfig, say=print) -> str:
    """All networks in the registry's order: the rows of `names` measured, the others those of the `old` table.

    Raises
    ------
    ValueError
        for an unknown name, or one that is neither measured nor in the old table.
    """
    known = {match.group(1): line for line in old.splitlines() if (match := re.match(r"\| `(.+?)` \|", line))}
    for name in names:
        network(name)
        known[name] = row(name, config)
        say(known[name])
    missing = [name for name in NETWORKS if name not in known]
    if missing:
        raise BadValue(f"the table has no row of {missing[0]} yet; measure it too")
    return "\n".join([HEAD, *(known[name] for name in NETWORKS)])


def main(arguments: list) -> None:
    """Fill the table of the folder's networks.md."""
    page = Path(arguments[0] if arguments else "docs") / "networks.md"
    text = page.read_text()
    content = table(filled(text, MARK), arguments[1:] or list(NETWORKS), engine(DEFAULT_ENGINE))
    write_whole(page, fill(text, MARK, content, page.name))


if __name__ == "__main__":
    main(sys.argv[1:])
