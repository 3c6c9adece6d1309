"""Saliency maps and how good they are: by a network in real numbers or by an integer graph, by PySODMetrics' definitions."""

import numpy as np
import torch
from torch import nn

from esbflow.errors import BadValue
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.quant.recipe import normalisation_of
from esbflow.training.loop import device_of, normalise

MEASURES = ("mae", "max_f", "s_measure", "e_measure")
"""Mean absolute error (less is better), and three of which more is better."""


@torch.no_grad()
def network_maps(model: nn.Module, images: np.ndarray, mean=None, std=None, batch: int = 50) -> np.ndarray:
    """uint8 maps (n, h, w) of a network whose output is one logit a pixel, in eval mode; `mean` and `std` as for `train`."""
    mean, std = normalisation_of(model, mean, std)
    was_training = model.training
    model.eval()
    scores = [model(normalise(images[i:i + batch], mean, std).to(device_of(model))).cpu().numpy()
              for i in range(0, len(images), batch)]
    model.train(was_training)
    return _maps(scores, images)


def graph_maps(graph: ir.Graph, images: np.ndarray, batch: int = 50) -> np.ndarray:
    """The same of an integer graph: its integers, times the real size of a step, are the logits."""
    scale = graph.output.scale
    return _maps([execute(graph, images[i:i + batch]) * scale for i in range(0, len(images), batch)], images)


def _maps(scores: list, images) -> np.ndarray:
    if not scores:
        raise BadValue("there are no pictures to evaluate on")
    scores = np.concatenate(scores)
    if scores.shape != (len(images), 1, *images.shape[2:]):
        raise BadValue(f"a saliency network gives one map of {images.shape[2]}x{images.shape[3]} a picture, not "
                         f"{scores.shape[1]} of {scores.shape[2]}x{scores.shape[3]}")
    return np.rint(255 / (1 + np.exp(-np.clip(scores[:, 0], -50, 50)))).astype(np.uint8)


def measure(maps: np.ndarray, masks: np.ndarray) -> dict:
    """{measure: mean over the pictures}: "mae", "max_f", "s_measure", "e_measure", in 0..1.

    maps uint8 (n, h, w), each stretched to its own range first, as is usual; masks uint8 (n, 1, h, w), 0 or 255. max_f is
    the largest over 256 thresholds of the mean F-measure with beta**2 = 0.3 (Achanta et al., CVPR 2009), s_measure has
    alpha = 0.5 (Fan et al., ICCV 2017), e_measure is the largest over 256 thresholds (Fan et al., IJCAI 2018).

    Raises
    ------
    ValueError
        if there are no pictures, or not as many maps as masks.
    ModuleNotFoundError
        if PySODMetrics is not installed.
    """
    if len(maps) == 0 or len(maps) != len(masks):
        raise BadValue(f"{len(maps)} maps and {len(masks)} masks cannot be compared")
    try:
        from py_sod_metrics import MAE, Emeasure, FmeasureHandler, FmeasureV2, Smeasure
    except ImportError:
        raise ModuleNotFoundError("saliency is measured with PySODMetrics; install esbflow[saliency]") from None
    f_measure = FmeasureV2({"fm": FmeasureHandler(beta=0.3, with_dynamic=True, with_adaptive=False)})
    mae, s_measure, e_measure = MAE(), Smeasure(alpha=0.5), Emeasure()
    for found, mask in zip(maps, masks[:, 0]):
        for one in (f_measure, mae, s_measure, e_measure):
            one.step(pred=found, gt=mask)
    results = (mae.get_results()["mae"], f_measure.get_results()["fm"]["dynamic"].max(), s_measure.get_results()["sm"],
               e_measure.get_results()["em"]["curve"].max())
    return {name: float(value) for name, value in zip(MEASURES, results)}
