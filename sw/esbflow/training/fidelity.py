"""How near a network quantized without training stays to the real one, on pictures that were not used for it.

    python -m esbflow.training.fidelity resnet18 weights.npz photos --test '0?.png' --test '1?.png' --weights esb4.1
"""

import argparse
import fnmatch
import json
import time
from pathlib import Path

import numpy as np
import torch

from esbflow.errors import BadValue
from esbflow.files import write_json
from esbflow.graph.execute import execute
from esbflow.networks.checkpoints import load_network
from esbflow.quant.export import export
from esbflow.quant.recipe import Recipe
from esbflow.training import record
from esbflow.training.api import top1
from esbflow.training.folders import list_folder, load_folder
from esbflow.training.loop import normalise
from esbflow.training.post_training import ROUNDINGS, PostTraining, post_train

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def compare(real: np.ndarray, found: np.ndarray) -> dict:
    """Signal-to-noise ratio of outputs (n, classes) in decibels, and on how many percent the largest one is the same.

    >>> compare(np.array([[10.0, 0.0], [0.0, 10.0]]), np.array([[9.0, 0.0], [0.0, 11.0]]))
    {'sqnr_db': 20.0, 'agreement': 100.0}
    """
    noise = max(float(np.square(found - real).sum()), 1e-30)
    return {"sqnr_db": round(float(10 * np.log10(np.square(real).sum() / noise)), 2),
            "agreement": round(100 * float((found.argmax(1) == real.argmax(1)).mean()), 2)}


def measure(network: str, weights: Path, pictures: Path, tested: list, recipe: Recipe, how: PostTraining,
            folded_statistics: bool = False) -> dict:
    """Quantize a network by the pictures whose file names match no pattern of `tested`, and compare outputs on the others.

    Raises
    ------
    ValueError
        if there is no picture on one of the two sides.
    """
    is_test = np.array([any(fnmatch.fnmatch(path.name, pattern) for pattern in tested) for path, _ in list_folder(pictures)])
    if is_test.all() or not is_test.any():
        raise BadValue(f"of {len(is_test)} pictures {is_test.sum()} match {' or '.join(tested)}; some must, and some not")
    images, labels = load_folder(pictures)
    real = load_network(network, weights, folded_statistics=folded_statistics).eval()
    model = post_train(real, recipe, images[~is_test], how)
    x = normalise(images[is_test], recipe.mean, recipe.std)
    with torch.no_grad():
        wanted, fake = (m(x).flatten(1).double().numpy() for m in (real, model))
    graph = export(model, network, images.shape[1:])
    integers = execute(graph, images[is_test]).reshape(len(x), -1) * graph.nodes[-1].scale
    result = {"images": int(is_test.sum()), "calibration_images": int((~is_test).sum()),
              "top1_float": top1(wanted, labels[is_test])}
    for name, outputs in (("fake_quantization", fake), ("integer_graph", integers)):
        result.update({f"{key}_{name}": value for key, value in compare(wanted, outputs).items()})
        result[f"top1_{name}"] = top1(outputs, labels[is_test])
    return result


def main(given=None) -> None:
    """Measure as the arguments say, and print or write the record."""
    parser = argparse.ArgumentParser(prog="python -m esbflow.training.fidelity", description=__doc__.split("\n")[0])
    parser.add_argument("network")
    parser.add_argument("checkpoint", type=Path, help="its trained weights")
    parser.add_argument("pictures", type=Path, help="a folder of folders, one a class")
    parser.add_argument("--test", action="append", required=True, metavar="PATTERN",
                        help="names of the files that are tested on; the others calibrate")
    parser.add_argument("--folded-statistics", action="store_true",
                        help="the batch norms of the file have scale and shift only")
    parser.add_argument("--weights", default="esb4.1")
    parser.add_argument("--activations", default="u4")
    parser.add_argument("--rounding", default=PostTraining().rounding, choices=ROUNDINGS)
    parser.add_argument("--ranges", type=float, metavar="PERCENTILE", help="instead of scales of least error")
    parser.add_argument("--equalize", action="store_true")
    parser.add_argument("--tune", type=int, default=0, metavar="TIMES", help="tune weights and scales on the images")
    parser.add_argument("--results", type=Path, metavar="FILE")
    given, began = parser.parse_args(given), time.monotonic()
    recipe = Recipe(weights=given.weights, activations=given.activations, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    how = PostTraining(given.rounding, given.ranges or "error", given.equalize, tune=given.tune)
    result = measure(given.network, given.checkpoint, given.pictures, given.test, recipe, how, given.folded_statistics)
    said = {name: getattr(given, name) for name in ("weights", "activations", "rounding", "ranges", "equalize",
                                                    "tune", "folded_statistics")}
    places = [*(path.name for path in (given.checkpoint, given.pictures)), *(f"--test '{text}'" for text in given.test)]
    command = record.command_line(f"python -m esbflow.training.fidelity {given.network} {' '.join(places)}", **said)
    result = {"network": given.network, "method": given.weights, "activations": given.activations, **result,
              "command": command, "hardware": record.hardware(), "minutes": round((time.monotonic() - began) / 60, 1)}
    if given.results:
        write_json(given.results, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
