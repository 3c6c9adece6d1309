"""Salient objects by a U-Net: real numbers against low-bit weights on the integer graph.

    esbflow study saliency --weights vecq:2 --results docs/results
    esbflow study saliency --weights esb4.1 --activations u4 --results docs/results

Each run writes one JSON file, DIR/saliency-unet-METHOD-ACTIVATIONS.json.
"""

import copy
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from esbflow.files import whole, write_json
from esbflow.graph.file import save
from esbflow.networks.registry import NETWORKS
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.studies.progress import steps
from esbflow.studies.saliency_data import load_saliency
from esbflow.studies.saliency_measures import graph_maps, measure, network_maps
from esbflow.training import record
from esbflow.training.api import load_float_model, save_float_model
from esbflow.training.loop import Schedule, train

NETWORK = "unet"
SHOWN = 8  # pictures of a drawing
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
REAL = Schedule(epochs=50, batch=16, rate=0.05, shift=8, mirror=True, weight_decay=5e-4)
LOW_BIT = Schedule(epochs=10, batch=16, rate=0.02, shift=8, mirror=True, weight_decay=5e-4, distill=0.5)


def run(weights: str = "vecq:2", activations: str = "u8", seed: int = 0, epochs: int | None = None,
        pictures: int | None = None, out: Path | None = None, floats: Path | None = None, control: bool = False,
        report=None, draw: Path | None = None) -> dict:
    """Train, quantize, train on with the network in real numbers as teacher, export, execute; returns the record.

    Parameters
    ----------
    weights, activations : of all layers, as `esbflow.quant.methods.registry` reads them; first and last layer have 8 bits.
    epochs : of each stage, in place of REAL's and LOW_BIT's. pictures : of each part of the split, for trials.
    out : a folder for graph.npz, and for checkpoints from which an interrupted run goes on.
    floats : file of the network in real numbers; it is read if it is there and written if not.
    control : train the network in real numbers on with the schedule of the low-bit stage too, which tells what is due to the
        longer training: measures with "_float_trained_on" in the record.
    draw : file for the first few pictures of the test part, their masks, and the maps in real numbers and in integers.

    Raises
    ------
    ValueError
        for an unknown method or a number out of range.
    DataUnavailable
        if the pictures are not at hand.
    """
    began = time.monotonic()
    real, low_bit = (stage if epochs is None else replace(stage, epochs=epochs) for stage in (REAL, LOW_BIT))
    quant = Recipe(weights=weights, activations=activations, output_bits=16, mean=MEAN, std=STD)
    images, masks = load_saliency("train", pictures)
    test, test_masks = load_saliency("test", pictures)
    normal = dict(mean=MEAN, std=STD)

    def stage(model, name, title, schedule, offset, teacher=None):
        return train(model, images, masks, schedule, **normal, seed=seed + offset, teacher=teacher,
                     checkpoint=out / f"{name}.ckpt" if out else None, report=steps(report, title))

    torch.manual_seed(seed)
    if floats and floats.exists():
        model = load_float_model(floats, NETWORK)
    else:
        model = stage(NETWORKS[NETWORK](), "real", "real numbers", real, 0)
        if floats:
            save_float_model(model, NETWORK, floats)
    float_maps = network_maps(model, test, **normal)
    teacher, extra = copy.deepcopy(model).eval(), {}
    if control:
        longer = stage(copy.deepcopy(model), "control", "real numbers trained on", low_bit, 1, teacher)
        extra = _named(measure(network_maps(longer, test, **normal), test_masks), "_float_trained_on")
    model = stage(quantize(model, quant), "low_bit", f"{weights} weights", low_bit, 1, teacher)
    fake_measures = measure(network_maps(model, test, **normal), test_masks)
    graph = export(model, NETWORK, images.shape[1:])
    if out:
        save(graph, out / "graph.npz")
        for name in ("real", "control", "low_bit"):
            (out / f"{name}.ckpt").unlink(missing_ok=True)
    maps = graph_maps(graph, test)
    if draw:
        draw_sheet(draw, test[:SHOWN], test_masks[:SHOWN, 0], float_maps[:SHOWN], maps[:SHOWN])
    return {
        "method": weights, "network": NETWORK, "data": "ecssd", "weights_bits": record.weights_bits(model),
        "activations": activations, "activation_bits": record.activation_bits(model),
        **_named(measure(maps, test_masks), "_integer_graph"), **_named(fake_measures, "_fake_quantization"),
        **_named(measure(float_maps, test_masks), "_float"), **extra, "images": len(test),
        "bytes": record.model_bytes(model), "bytes_float": 4 * sum(p.numel() for p in teacher.parameters()),
        "epochs_float": real.epochs, "epochs": low_bit.epochs, "seed": seed,
        "command": record.command_line(
            "esbflow study saliency", weights=weights, activations=activations, seed=seed or None,
            epochs=epochs, pictures=pictures, control=control),
        "hardware": record.hardware(), "minutes": round((time.monotonic() - began) / 60, 1)}


def _named(measures: dict, suffix: str) -> dict:
    return {name + suffix: round(value, 4) for name, value in measures.items()}


def draw_sheet(path: Path, images: np.ndarray, *gray: np.ndarray) -> None:
    """A PNG with a column a picture: images uint8 (n, 3, h, w) on top, below it each of `gray`, uint8 (n, h, w)."""
    from PIL import Image

    rows = [images.transpose(0, 2, 3, 1), *(np.repeat(maps[..., None], 3, axis=3) for maps in gray)]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    with whole(path) as temporary:
        Image.fromarray(sheet).save(temporary, "png")


def record_name(result: dict) -> str:
    """The file's name, such as saliency-unet-vecq2-u8 or saliency-unet-esb4.1-u4.

    >>> record_name({"method": "sq(ramped):twn", "activations": "pact:4"})
    'saliency-unet-sq-ramped-twn-pact4'
    """
    words = [re.sub(r"[^\w.]+", "-", re.sub(r":(?=\d)", "", result[key])).strip("-") for key in ("method", "activations")]
    return "-".join(["saliency-unet", *words])


def study(given, say=None) -> dict:
    """What `esbflow study saliency` does with its options: `run`, and the record written into the folder `results`."""
    result = run(given.weights, given.activations, given.seed, given.epochs, given.pictures, given.out, given.floats,
                 given.control, say, given.draw)
    if given.results:
        write_json(given.results / f"{record_name(result)}.json", result)
    return result
