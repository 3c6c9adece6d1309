"""Operators of ONNX that move values and compute nothing: flatten, swap axes, split, slice, shuffle, repeat.

A tensor of indices goes through them instead of the activations, and what comes out is compared with what the graph can
express: the same tensor under other names of its axes, a choice of its channels, its pixels repeated. So exporters may write
a flatten, a shuffle or an upsampling by whatever chain of operators they like.
"""

from dataclasses import replace

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.interchange import channels_last
from esbflow.interchange.channels_last import TO_FIRST, is_last, is_rows, last
from esbflow.interchange.handlers import ELEMENTWISE
from esbflow.interchange.onnx_file import fold, title
from esbflow.interchange.values import Constant, Quantized, shape_of
from esbflow.lowering.nodes import crop
from esbflow.lowering.view import View, channels_of, in_place, pixels_of

MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Tile", "Expand", "Slice", "Split", "Gather")


def move(walk, node, value, *others):
    """What a node of MOVES makes of an activation; a list if it has several outputs.

    Raises
    ------
    GraphError
        if it is told where to by something that is computed at run time.
    """
    if not all(other is None or isinstance(other, Constant) for other in others):
        raise GraphError(f"{title(node)}: what it moves where is computed at run time; the integer graph needs constants")
    inner, indices = _indices(walk, node, value)
    arrays = {tensor: other.value for tensor, other in zip(node.input[1:], others) if other is not None}
    found = fold(node, {node.input[0]: indices, **arrays}, walk.model.opset)
    by = getattr(value, "by", "") or title(node)
    found = [_expressed(walk, node, View(inner, array, by)) for array in found]
    return found if len(found) > 1 else found[0]


def compute(walk, handler, node, inputs: list):
    """What `handler` makes of a node that reads a View. Of one that the graph cannot express where its values are now, but
    perhaps where they go: the same view of what is done to each value by itself.

    Raises
    ------
    GraphError
        if it is not.
    """
    lost = [value for value in inputs if isinstance(value, View) and not (is_last(value) or is_rows(value))]
    if not lost:
        return channels_last.compute(walk, handler, node, inputs)
    first, *others = inputs
    single = all(other is None or (isinstance(other, (Constant, Quantized)) and np.size(other.value) == 1)
                 for other in others)
    if node.op_type in ELEMENTWISE and isinstance(first, View) and single:
        return replace(first, value=handler(walk, node, first.value, *others))
    raise refused(lost[0])


def refused(moved: View) -> GraphError:
    """What is said of moved values that the graph cannot express."""
    return GraphError(f"{moved.by}: what it makes of a map of shape {shape_of(moved.value)} has no integer form; only a "
                      "flatten, a choice of channels, rectangles of pixels, repeated pixels and channels at the end have")


def as_output(value):
    """(tensor, note or None) for the last tensor of a model, whose values may be in any order."""
    if not isinstance(value, View):
        return value, None
    if is_last(value) or is_rows(value):
        return value.value, "the output of the model has its channels last, that of the graph first"
    count = int(np.prod(shape_of(value.value)))
    if value.indices.size != count or len(np.unique(value.indices)) != count:
        raise refused(value)
    return value.value, f"the output of the model is the graph's moved by {value.by}"


def _indices(walk, node, value) -> tuple:
    """(tensor, what ONNX's axes of it are as indices)."""
    inner, indices = (value.value, value.indices) if isinstance(value, View) else (value, in_place(shape_of(value)))
    seen = walk.model.shape(node.input[0], title(node))
    return inner, indices.reshape(1, *seen[1:]) if len(seen) < 4 else indices


def _expressed(walk, node, moved: View):
    """`moved` as the graph has it, or as it is."""
    inner, indices = moved.value, moved.indices
    first, turned = in_place(shape_of(inner)), last(inner)
    rows = turned.indices.reshape(1, -1)
    sequences = [(first[:, :, 0], inner), (turned.indices[:, 0], turned)] if first.shape[2] == 1 else []
    for array, value in ((first, inner), (first.reshape(1, -1), inner), (turned.indices, turned),
                         (rows, View(inner, rows)), *sequences):
        if np.array_equal(array, indices):
            return value
    if indices.ndim == 3 and sequences:
        as_first, as_last = indices[:, :, None], indices[:, None]
    elif indices.ndim == 2 and indices.size == first.shape[1]:
        as_first = as_last = indices[:, :, None, None]  # one pixel
    elif indices.ndim == 4:
        as_first = as_last = indices
    else:
        return moved
    orders = (as_first, lambda found: found), (as_last.transpose(TO_FIRST), last)
    for array, seen in orders:
        if (chosen := channels_of(array[0], first.shape[1:])) is not None:
            return seen(_chosen_channels(walk, node, inner, *chosen))
    for array, seen in orders:
        if (found := pixels_of(array[0], first.shape[1:])) is not None:
            return seen(_crop(walk, node, inner, array.shape[1:], found))
    return moved


def _crop(walk, node, value, shape: tuple, found: tuple):
    name, where = node.name or node.output[0], title(node)
    value = walk.builder.plain(value, where)
    return walk.builder.moved(value, shape, lambda name, source: crop(name, source, shape, *found), name, where)


def _chosen_channels(walk, node, value, channels: np.ndarray, factors: tuple):
    """A 1x1 convolution of zeros and ones that keeps the integers, and repeated pixels."""
    name, where = node.name or node.output[0], title(node)
    value = walk.builder.plain(value, where)
    value = walk.builder.chosen(value, channels, name, where)
    return value if factors == (1, 1) else walk.builder.repeated(value, factors, name, where)
