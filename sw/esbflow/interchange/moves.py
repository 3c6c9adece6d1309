"""Operators of ONNX that move values and compute nothing: flatten, swap axes, split, slice, pad, shuffle, repeat.

A tensor of indices goes through them instead of the activations, and what comes out is compared with what the graph can
express: the same tensor under other names of its axes, a choice of its channels, its pixels repeated, zeros around it. So
exporters may write a flatten, a shuffle, an upsampling or a padding by whatever chain of operators they like.
"""

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.interchange import channels_last
from esbflow.interchange.channels_last import TO_FIRST, is_last, is_rows, last
from esbflow.interchange.onnx_file import attributes, fold, title
from esbflow.interchange.padding import amounts, handled
from esbflow.interchange.values import KNOWN, Constant, Quantized
from esbflow.lowering.nodes import crop
from esbflow.lowering.view import View, channels_of, in_place, pixels_of, shape_of

MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Tile", "Expand", "Slice", "Split", "Gather", "Pad")


def move(walk, node, value, *others):
    """What a node of MOVES makes of an activation; a list if it has several outputs.

    Raises
    ------
    GraphError
        if it is told where to by something that is computed at run time.
    """
    inner, indices = _indices(walk, node, value)
    if node.op_type == "Pad":
        found = [np.pad(indices, amounts(node, indices.ndim, *others), constant_values=-1)]
    elif all(other is None or isinstance(other, Constant) for other in others):
        arrays = {tensor: other.value for tensor, other in zip(node.input[1:], others) if other is not None}
        found = fold(node, {node.input[0]: indices, **arrays}, walk.model.opset)
    else:
        raise GraphError(f"{title(node)}: what it moves where is computed at run time; the integer graph needs constants")
    by = getattr(value, "by", "") or title(node)
    found = [_expressed(walk, node, View(inner, array, by)) for array in found]
    return found if len(found) > 1 else found[0]


def compute(walk, handler, node, inputs: list):
    """What `handler` makes of a node that reads a View: of a map in place with zeros around it, of one with channels at the
    end, of rows that a linear layer reads. Of all others, which the graph cannot express where their values are now, but
    perhaps where they go: the same view of what is done to each value by itself.

    Raises
    ------
    GraphError
        if it is neither.
    """
    first, *others = inputs
    views = [value for value in inputs if isinstance(value, View)]
    alike = all(value is views[0] or value is None or (isinstance(value, KNOWN) and np.size(value.value) == 1)
                for value in inputs)
    if (getattr(handler, "elementwise", False) and alike) or all(view.pads for view in views):
        return handled(walk, handler, node, inputs)
    if node.op_type in ("MatMul", "Gemm") and first is views[0] and len(first.indices) == 1 and first.indices.ndim == 2:
        axis = 1 if node.op_type == "Gemm" and attributes(node).get("transB", 0) else 0
        return handler(walk, node, first.value, _reordered(others[0], axis, first), *others[1:])
    if all(map(is_last, views)):
        return channels_last.compute(walk, handler, node, inputs)
    if all(map(is_rows, views)):
        raise GraphError(f"{title(node)}: it reads rows that were flattened from (height, width, channels), which only "
                         "linear layers and what is done to each value by itself can; put it before the flatten")
    raise refused(next(view for view in views if not (is_last(view) or is_rows(view))))


def _reordered(weights, axis: int, rows: View):
    """Weights of rows for the tensor that the rows are of: a zero needs none, and values that rows leave out have zeros.
    What is no constant is refused by the layer."""
    if not isinstance(weights, KNOWN):
        return weights
    places = rows.indices[0]
    taken = np.flatnonzero(places >= 0)
    column = np.full(np.prod(shape_of(rows.value)), -1)
    column[places[taken]] = taken
    read = column >= 0
    if weights.value.shape[axis] != len(places) or read.sum() != len(taken):
        raise refused(rows)

    def moved(array) -> np.ndarray:
        return np.take(array, column, axis) * np.expand_dims(read, 1 - axis)

    if isinstance(weights, Constant):
        return Constant(moved(weights.value))
    scale = np.take(np.broadcast_to(weights.scale, weights.levels.shape), column, axis)
    form = weights.form if weights.form is None or read.all() or weights.form.contains(0) else None
    return Quantized(moved(weights.levels), scale, form)


def refused(moved: View) -> GraphError:
    """What is said of moved values that the graph cannot express."""
    return GraphError(f"{moved.by}: what it makes of a map of shape {shape_of(moved.value)} has no integer form; only a "
                      "flatten, a choice of channels, rectangles of pixels, repeated pixels, channels at the end and zeros "
                      "around height and width have")


def as_output(value):
    """(tensor, note or None) for the last tensor of a model, whose values may be in any order."""
    if not isinstance(value, View) or value.has_zeros:
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
    inner, indices, shape = moved.value, moved.indices, shape_of(moved.value)
    if indices.ndim == 2 and np.array_equal(in_place(shape).reshape(1, -1), indices):
        return inner
    if indices.ndim == 3 and shape[1] == 1:
        as_first, as_last = indices[:, :, None], indices[:, None]
    elif indices.ndim == 2 and indices.size == shape[0]:
        as_first = as_last = indices[:, :, None, None]  # one pixel
    elif indices.ndim == 4:
        as_first = as_last = indices
    else:
        return moved
    orders = (as_first, lambda found: found), (as_last.transpose(TO_FIRST), last)
    for array, seen in orders:
        found = View(inner, array, moved.by)
        if found.pads is not None:
            return seen(found if found.has_zeros else inner)
    for array, seen in orders:
        if (chosen := channels_of(array[0], shape)) is not None:
            return seen(_chosen_channels(walk, node, inner, *chosen))
    for array, seen in orders:
        if (found := pixels_of(array[0], shape)) is not None:
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
