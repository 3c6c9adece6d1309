"""Models whose axes are (n, height, width, channels), or (n, length, channels): what Keras and TensorFlow write.

Their convolutions are those of ONNX, with axes swapped before and after. The integer graph has (channels, height, width)
throughout, so that a swap is nothing but another way to name the axes of the same tensor, which is noted beside the value;
a flatten in that order becomes another order of the weights that read it.
"""

from dataclasses import replace

import numpy as np
import onnx

from esbflow.graph.errors import GraphError
from esbflow.interchange.handlers import ELEMENTWISE
from esbflow.interchange.layer_nodes import over_map, reduced_axes
from esbflow.interchange.onnx_file import attributes, title
from esbflow.interchange.values import Constant, Quantized, shape_of
from esbflow.lowering.view import View, in_place

TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


def last(value) -> View:
    """A tensor that ONNX sees as (n, h, w, c), or (n, w, c) where h is 1."""
    return View(value, in_place(shape_of(value)).transpose(TO_LAST))


def is_last(value) -> bool:
    """Whether a tensor is seen as `last` has it."""
    return isinstance(value, View) and np.array_equal(value.indices, last(value.value).indices)


def is_rows(value) -> bool:
    """Whether ONNX sees a tensor as (n, h*w*c)."""
    return isinstance(value, View) and np.array_equal(value.indices, last(value.value).indices.reshape(1, -1))


def input_is_last(nodes: list, tensor: str, shapes: dict) -> bool:
    """Whether the model's input is (n, h, w, c) or (n, w, c): the first thing that is done with it, but for zeros around it,
    an axis more and what is done to each value, is to put its last axis first."""
    reached = {tensor}
    for node in nodes:
        if not reached.intersection(node.input):
            continue
        if node.op_type == "Transpose":
            return attributes(node).get("perm") in (TO_FIRST, [0, 2, 1])
        if node.op_type in _RESHAPES:
            before, after = (shapes.get(name, ()) for name in (node.input[0], node.output[0]))
            if len(before) == 3 and after[1:] == (1, *before[1:]):
                reached.add(node.output[0])
                continue
            return len(before) == 4 and before[3] == 1 and after[1:] == (1, *before[1:3])
        if node.op_type not in {*ELEMENTWISE, "Pad"}:
            return False
        reached.add(node.output[0])
    return False


def compute(walk, handler, node, inputs: list):
    """What `handler` makes of a node whose inputs that are a View are all maps with channels last, or all rows of such maps.

    Raises
    ------
    GraphError
        if the node has no meaning in that order of axes.
    """
    views = [value for value in inputs if isinstance(value, View)]
    if all(map(is_rows, views)):
        return _rows(walk, handler, node, inputs)
    if all(map(is_last, views)):
        return _map(walk, handler, node, inputs)
    raise _refused(node)


def _map(walk, handler, node, inputs):
    place, value = next((i, value.value) for i, value in enumerate(inputs) if isinstance(value, View))
    rank = len(walk.model.shape(node.input[place], title(node)))
    joins = node.op_type == "Concat" and attributes(node)["axis"] % rank == rank - 1
    if joins and all(isinstance(v, View) for v in inputs):
        return last(handler(walk, _with_axis(node, 1), *(value.value for value in inputs)))
    if node.op_type == "Pad" and len(inputs) > 1 and all(isinstance(v, Constant) for v in inputs[1:] if v is not None):
        return last(handler(walk, node, value, *_moved_pads(rank, *inputs[1:])))
    reduces = node.op_type in ("ReduceMean", "ReduceMax")
    if reduces and reduced_axes(node, inputs[1] if len(inputs) > 1 else None, rank) == list(range(1, rank - 1)):
        pooled = over_map(walk, node, value, (shape_of(value)[0], 1, 1))
        return last(pooled) if attributes(node).get("keepdims", 1) else pooled
    if node.op_type in ELEMENTWISE:
        others = [v.value if isinstance(v, View) else _first(v, rank) for v in inputs]
        return last(handler(walk, node, *others))
    raise _refused(node)


def _moved_pads(rank: int, pads: Constant, fill=None, axes=None) -> tuple:
    amounts = np.zeros((2, rank), np.int64)
    amounts[:, range(rank) if axes is None else axes.value] = pads.value.reshape(2, -1)
    return Constant(amounts[:, [0, rank - 1, *range(1, rank - 1)]].reshape(-1)), fill


def _rows(walk, handler, node, inputs):
    first, *others = inputs
    if node.op_type in ("MatMul", "Gemm") and isinstance(first, View):
        axis = 1 if node.op_type == "Gemm" and attributes(node).get("transB", 0) else 0
        return handler(walk, node, first.value, _reordered(others[0], axis, shape_of(first.value), node), *others[1:])
    single = all(value is None or np.size(getattr(value, "value", None)) == 1 for value in others)
    if node.op_type in ELEMENTWISE and isinstance(first, View) and single:
        return replace(first, value=handler(walk, node, first.value, *others))
    raise GraphError(f"{title(node)}: it reads rows that were flattened from (height, width, channels), which only linear "
                     "layers and what is done to each value by itself can; put it before the flatten")


def _reordered(weights, axis: int, shape: tuple, node):
    """Weights of rows (h, w, c) for rows (c, h, w); what is not quantized is refused by the layer."""
    if not isinstance(weights, Quantized):
        return weights
    if weights.levels.shape[axis] != np.prod(shape):
        raise _refused(node)
    channels, height, width = shape
    order = np.arange(channels * height * width).reshape(height, width, channels).transpose(2, 0, 1).reshape(-1)
    full = np.broadcast_to(weights.scale, weights.levels.shape)
    return replace(weights, levels=np.take(weights.levels, order, axis), scale=np.take(full, order, axis))


def _first(value, rank: int):
    """A constant beside a tensor (n, h, w, c), of `rank` axes, as one beside (n, c, h, w)."""
    if not isinstance(value, (Constant, Quantized)) or np.ndim(value.value) == 0 or np.size(value.value) == 1:
        return value
    array = np.asarray(value.value)
    return Constant(np.moveaxis(array.reshape((1,) * (rank - array.ndim) + array.shape), -1, 1))


def _with_axis(node, axis: int):
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    del changed.attribute[:]
    changed.attribute.append(onnx.helper.make_attribute("axis", axis))
    return changed


def _refused(node) -> GraphError:
    return GraphError(f"{title(node)}: it has no integer form for a tensor (n, height, width, channels); export the model "
                      "as (n, channels, height, width)")
