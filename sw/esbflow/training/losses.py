"""The loss of one batch: scores against labels, or maps against masks, and against a teacher's outputs beside either."""

import torch
from torch.nn import functional as F

from esbflow.errors import BadValue


def task_loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy with int64 labels (n,); with float masks (n, 1, h, w) in 0..1, that of every pixel and one minus the
    overlap.

    The overlap is the soft intersection over union of each picture (Rahman and Wang, ISVC 2016, equation 3, with 1 added
    above and below, so that an empty mask has a gradient). It keeps small objects from drowning in the background.

    Raises
    ------
    ValueError
        if the scores have another shape than the masks.
    """
    if target.dim() == 1:
        return F.cross_entropy(scores, target)
    if scores.shape != target.shape:
        raise BadValue(f"the network gives maps of shape {tuple(scores.shape)} for masks of shape {tuple(target.shape)}")
    found = scores.sigmoid()
    both, either = (found * target).sum(dim=(1, 2, 3)), (found + target - found * target).sum(dim=(1, 2, 3))
    return F.binary_cross_entropy_with_logits(scores, target) + (1 - (both + 1) / (either + 1)).mean()


def teacher_loss(scores: torch.Tensor, wanted: torch.Tensor, heat: float) -> torch.Tensor:
    """Cross entropy with a teacher's scores, both softened by the temperature `heat`; (n, classes) or (n, 1, h, w).

    The square keeps the size of the gradient independent of the temperature (Hinton et al., 2015, section 2).
    """
    if scores.dim() == 2:
        return F.cross_entropy(scores / heat, (wanted / heat).softmax(dim=1)) * heat ** 2
    return F.binary_cross_entropy_with_logits(scores / heat, (wanted / heat).sigmoid()) * heat ** 2
