"""Zeros around a map as a node of its own: they go to the layer that reads them, where the engine pads by addresses."""

from dataclasses import replace

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.interchange.onnx_file import attributes, title
from esbflow.interchange.values import KNOWN, Codes, Constant, Open
from esbflow.lowering.nodes import Stored
from esbflow.lowering.view import View, unpadded


def amounts(node, rank: int, pads=None, constant=None, axes=None) -> list:
    """(before, behind) of each of `rank` axes: how many zeros a Pad puts there.

    Raises
    ------
    GraphError
        if it puts in anything but zeros, cuts, pads images, or is computed at run time.
    """
    options, where = attributes(node), title(node)
    if options.get("mode", "constant") != "constant":
        raise GraphError(f"{where}: padding by {options['mode']} has no integer form; pad with zeros")
    # onnxruntime quantizes the value to pad with like any other constant.
    if not all(value is None or isinstance(value, KNOWN) for value in (pads, constant, axes)):
        raise GraphError(f"{where}: its padding is computed at run time; the integer graph needs constants")
    fill = options.get("value", 0.0) if constant is None or not constant.value.size else float(constant.value.reshape(-1)[0])
    if fill != 0:
        raise GraphError(f"{where}: padding with {fill:g} has no integer form; pad with zeros")
    given = np.asarray(options["pads"] if pads is None else pads.value).reshape(2, -1)
    full = np.zeros((2, rank), np.int64)
    full[:, range(rank) if axes is None else axes.value] = given
    if full[:, 0].any() or full.min() < 0:
        raise GraphError(f"{where}: padding {given.reshape(-1).tolist()} has no integer form; only zeros around height "
                         "and width have")
    return full.T.tolist()


def check_zeros_never_win(value, where: str) -> None:
    """GraphError if a max pool would take zeros around a map for its largest value; in the engine padding never is."""
    inner, pads = unpadded(value)
    low = inner.low if isinstance(inner, Open) else inner.form.min if isinstance(inner, Stored) else -np.inf
    if any(pads) and low < 0:
        raise GraphError(f"{where}: it reads zeros of a Pad beside values below zero, where they would be the largest; put "
                         "a ReLU before it, or use the pool's own padding")


def handled(walk, handler, node, inputs: list):
    """What `handler` makes of tensors, perhaps with zeros among them. What is done to each value of one tensor by itself may
    as well be done before its values are moved; zeros must stay zeros then.

    Raises
    ------
    GraphError
        if they do not.
    """
    view = next((value for value in inputs if isinstance(value, View)), None)
    alone = all(value is view or value is None or isinstance(value, KNOWN) for value in inputs)
    if view is None or not alone or not getattr(handler, "elementwise", False):
        return handler(walk, node, *inputs)

    def beside(value) -> list:
        return [value if other is view else other for other in inputs]

    found = handler(walk, node, *beside(view.value))
    if view.has_zeros and not isinstance(view.value, Codes) and node.op_type != "Trunc":  # whose zeros are those of levels
        kind = walk.codes_in if node.op_type == "DequantizeLinear" else np.float32
        with np.errstate(all="ignore"):
            zero = walk.compute(node, beside(Constant(np.zeros(1, kind))))
        if np.any((zero.value if isinstance(zero, Codes) else zero).value):
            raise GraphError(f"{title(node)}: it makes other values of the zeros of a Pad, which layers cannot pad with; "
                             "pad behind it")
    return replace(view, value=found)
