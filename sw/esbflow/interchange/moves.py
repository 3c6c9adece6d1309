"""Operators of ONNX that move values and compute nothing: flatten, swap axes, split, slice, shuffle, repeat.

A tensor of indices goes through them instead of the activations, and what comes out is compared with what the graph can
express: the same tensor under other names of its axes, a choice of its channels, its pixels repeated. So exporters may write
a flatten, a shuffle or an upsampling by whatever chain of operators they like.
"""

from dataclasses import dataclass, replace

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.interchange.channels_last import TO_FIRST, TO_LAST, ChannelsLast, RowsLast
from esbflow.interchange.handlers import ELEMENTWISE
from esbflow.interchange.onnx_file import fold, title
from esbflow.interchange.values import Constant, Quantized, shape_of
from esbflow.lowering.nodes import crop
from esbflow.lowering.view import channels_of, pixels_of

MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Tile", "Expand", "Slice", "Split", "Gather")


@dataclass(frozen=True, eq=False)
class Moved:
    """Values of the tensor `value` (c, h, w) that the graph cannot express where they are now, but perhaps where they go.

    `indices` (1, ...) into it, flat; `by` is the node that sentences name.
    """

    value: object
    indices: np.ndarray
    by: str


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
    by = value.by if isinstance(value, Moved) else title(node)
    found = [_expressed(walk, node, Moved(inner, array, by)) for array in found]
    return found if len(found) > 1 else found[0]


def compute(walk, handler, node, inputs: list):
    """What `handler` makes of a node that reads a Moved: the same, if it is done to each value by itself.

    Raises
    ------
    GraphError
        if it is not.
    """
    first, *others = inputs
    single = all(other is None or (isinstance(other, (Constant, Quantized)) and np.size(other.value) == 1)
                 for other in others)
    if node.op_type in ELEMENTWISE and isinstance(first, Moved) and single:
        return replace(first, value=handler(walk, node, first.value, *others))
    raise refused(next(value for value in inputs if isinstance(value, Moved)))


def refused(moved: Moved) -> GraphError:
    """What is said of moved values that the graph cannot express."""
    return GraphError(f"{moved.by}: what it makes of a map of shape {shape_of(moved.value)} has no integer form; only a "
                      "flatten, a choice of channels, rectangles of pixels, repeated pixels and channels at the end have")


def as_output(value):
    """(tensor, note or None) for the last tensor of a model, whose values may be in any order."""
    if isinstance(value, Moved):
        count = int(np.prod(shape_of(value.value)))
        if value.indices.size != count or len(np.unique(value.indices)) != count:
            raise refused(value)
        return value.value, f"the output of the model is the graph's moved by {value.by}"
    if isinstance(value, (ChannelsLast, RowsLast)):
        return value.value, "the output of the model has its channels last, that of the graph first"
    return value, None


def _indices(walk, node, value) -> tuple:
    """(tensor, what ONNX's axes of it are as indices)."""
    if isinstance(value, Moved):
        return value.value, value.indices
    inner = value.value if isinstance(value, (ChannelsLast, RowsLast)) else value
    indices = _in_place(shape_of(inner))
    if isinstance(value, (ChannelsLast, RowsLast)):
        indices = indices.transpose(TO_LAST)
    seen = walk.model.shape(node.input[0], title(node))
    return inner, indices.reshape(1, *seen[1:]) if len(seen) < 4 else indices


def _in_place(shape: tuple) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(1, *shape)


def _expressed(walk, node, moved: Moved):
    """`moved` as the graph has it, or as it is."""
    inner, indices = moved.value, moved.indices
    first = _in_place(shape_of(inner))
    last = first.transpose(TO_LAST)
    sequences = [(first[:, :, 0], inner), (last[:, 0], ChannelsLast(inner))] if first.shape[2] == 1 else []
    for array, value in ((first, inner), (first.reshape(1, -1), inner), (last, ChannelsLast(inner)),
                         (last.reshape(1, -1), RowsLast(inner)), *sequences):
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
    chosen = channels_of(as_first[0], first.shape[1:])
    if chosen is not None:
        return _chosen_channels(walk, node, inner, *chosen)
    turned = as_last.transpose(TO_FIRST)
    chosen = channels_of(turned[0], first.shape[1:])
    if chosen is not None:
        return ChannelsLast(_chosen_channels(walk, node, inner, *chosen))
    if (found := pixels_of(as_first[0], first.shape[1:])) is not None:
        return _crop(walk, node, inner, as_first.shape[1:], found)
    found = pixels_of(turned[0], first.shape[1:])
    return moved if found is None else ChannelsLast(_crop(walk, node, inner, turned.shape[1:], found))


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
