"""Models whose axes are (n, height, width, channels), or (n, length, channels): what Keras and TensorFlow write.

Their convolutions are those of ONNX, with axes swapped before and after. The integer graph has (channels, height, width)
throughout, so that a swap is nothing but another way to name the axes of the same tensor, which is noted beside the value;
moves.py gives the weights that read a flatten in that order another one.
"""

from dataclasses import replace

import numpy as np
import onnx

from esbflow.graph.errors import GraphError
from esbflow.interchange.handlers import ELEMENTWISE
from esbflow.interchange.layer_nodes import over_map, reduced_axes
from esbflow.interchange.onnx_file import attributes, title
from esbflow.interchange.padding import handled
from esbflow.interchange.values import Constant, Quantized
from esbflow.lowering.view import View, in_place, shape_of

TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


def last(value) -> View:
    """A tensor, perhaps with zeros around it, that ONNX sees as (n, h, w, c), or (n, w, c) where h is 1."""
    view = value if isinstance(value, View) else View(value, in_place(shape_of(value)))
    return replace(view, indices=view.indices.transpose(TO_LAST))


def _first(view: View) -> View:
    """A view of four axes as it would be if its second axis were its last."""
    return replace(view, indices=view.indices.transpose(TO_FIRST))


def is_last(value) -> bool:
    """Whether a tensor is seen as `last` has it."""
    return isinstance(value, View) and value.indices.ndim == 4 and _first(value).pads is not None


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
    """What `handler` makes of a node whose inputs that are a View are all maps with channels last.

    Raises
    ------
    GraphError
        if the node has no meaning in that order of axes.
    """
    place = next(i for i, value in enumerate(inputs) if isinstance(value, View))
    rank = len(walk.model.shape(node.input[place], title(node)))
    turned = [_turned(value, rank) for value in inputs]
    if node.op_type == "Concat" and attributes(node)["axis"] % rank == rank - 1 and all(isinstance(v, View) for v in inputs):
        return last(handler(walk, _with_axis(node, 1), *turned))
    reduces = node.op_type in ("ReduceMean", "ReduceMax")
    if reduces and reduced_axes(node, inputs[1] if len(inputs) > 1 else None, rank) == list(range(1, rank - 1)):
        pooled = over_map(walk, node, turned[place], (shape_of(turned[place])[0], 1, 1))
        return last(pooled) if attributes(node).get("keepdims", 1) else pooled
    if node.op_type in ELEMENTWISE:
        return last(handled(walk, handler, node, turned))
    raise GraphError(f"{title(node)}: it has no integer form for a tensor (n, height, width, channels); export the model "
                     "as (n, channels, height, width)")


def _turned(value, rank: int):
    """A tensor (n, h, w, c), of `rank` axes, or a constant beside it, as one of (n, c, h, w)."""
    if isinstance(value, View):
        return _first(value) if value.has_zeros else value.value
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
