"""Where the cycles of a layer went that no multiply-accumulate of the network needed: each of them under one reason."""

from esbflow.engine_config import EngineConfig

REASONS = {
    "digits": "operands wider than a digit: a pass for each pair of digits",
    "halo": "sums that two tiles need, computed twice",
    "edge": "rows and columns of the array that a tile leaves empty, and weights that are zero by grouping or folding",
    "slices": "slices that have no image in a run's last round, or whose stripe ends below the map, or that all do the same",
    "channel": "the channel unit at work, or a layer without multiply-accumulates, and the array not",
    "hazard": "bubbles behind passes of one or two pixels",
    "reload": "tiles on their way from their slots to the array",
    "weights": "weights on their way from memory",
    "activations": "activations on their way from memory, or not yet stored by the layer before",
    "accumulators": "the drain: requantizer lanes, pooling windows, stores",
    "instruction": "instruction fetch",
    "bandwidth": "more than on memory whose ports move a beat in each cycle, each for itself",
    "rest": "start, the last drain and its stores, the log",
}
"""Reason -> what it means. `edge` of a network is a matter of the array's shape; `weights`, `activations`,
`instruction` and `bandwidth` of memory."""


def lost_cycles(layer: dict, spent: dict, cycles: float, config: EngineConfig, batch: float, rounds: float) -> dict:
    """{reason: cycles} that add up to `cycles` less those in which all lanes had useful work.

    Parameters
    ----------
    layer : the program's meta of the layer.  batch, rounds : its images in a run, and those that a slice works on; or both
        for one image, as `spent` and `cycles`.
    spent : cycles of "compute", "hazard", "instruction", "weights", "activations" and "accumulators" in a run, as the cycle
        model or the engine's counters say; "reload" is that part of "weights" in which they were on chip, if known.
    cycles : of the layer, in a run.

    >>> config = EngineConfig("tiny", rows=4, cols=4)
    >>> layer = {"macs": 3 * 4 * 10, "pixels": 10, "passes": 2, "digits": 2, "unit": False}
    >>> lost = lost_cycles(layer, {"compute": 24, "weights": 5}, 40, config, 1, 1)
    >>> {reason: value for reason, value in lost.items() if value}
    {'digits': 10.0, 'halo': 4, 'edge': 2.5, 'weights': 5, 'rest': 11.0}
    """
    compute, ideal = spent["compute"], layer["macs"] * batch / config.macs_per_cycle
    # Had each slice an image in each round, or as many rows of it as any.
    share = layer["stripe"] / layer["out_shape"][1] if layer.get("stripe") else 1
    busy = layer["macs"] * share * rounds / (config.rows * config.cols)
    lost = dict.fromkeys(REASONS, 0)
    if layer["unit"] or not layer["macs"]:
        lost["channel"] = compute - busy
    else:
        once = layer["pixels"] * rounds * layer["passes"]  # each pixel in each pass
        needed = once / layer["digits"]
        lost.update(halo=compute - once, digits=once - needed, edge=needed - busy)
    lost["slices"] = busy - ideal
    lost.update({reason: spent.get(reason, 0)
                 for reason in ("hazard", "reload", "activations", "accumulators", "instruction")})
    lost["weights"] = spent.get("weights", 0) - lost["reload"]
    lost["rest"] = cycles - ideal - sum(lost.values())
    return lost


def network_total(layers: list, cycles: float) -> dict:
    """{reason: cycles} of a network: those of its layers, whose `lost` and `cycles` are known, and what no layer has.

    cycles : of the network; those from the last layer's record to the end are "rest".

    >>> layer = {"cycles": 10, "lost": dict.fromkeys(REASONS, 1)}
    >>> network_total([layer, layer], 25)["rest"], network_total([layer, layer], 25)["edge"]
    (7, 2)
    """
    total = {reason: sum(layer["lost"][reason] for layer in layers) for reason in REASONS}
    total["rest"] += cycles - sum(layer["cycles"] for layer in layers)
    return total


def largest(lost: dict, cycles: float) -> str:
    """The reasons that take a fiftieth of the cycles or more, the largest first, in % of them.

    >>> largest({"edge": 30, "rest": 1, "weights": 50}, 100)
    'weights 50, edge 30'
    """
    chosen = sorted((reason for reason in lost if lost[reason] >= cycles / 50), key=lambda reason: -lost[reason])
    return ", ".join(f"{reason} {100 * lost[reason] / cycles:.0f}" for reason in chosen)
