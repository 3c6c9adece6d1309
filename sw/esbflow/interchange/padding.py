"""Zeros around a map as a node of its own: they go to the layer that reads them, where the engine pads by addresses."""

from dataclasses import replace

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.interchange.onnx_file import attributes, title
from esbflow.interchange.values import Constant, Open, Quantized, shape_of
from esbflow.lowering.nodes import Stored
from esbflow.lowering.padding import NONE, Padded, unpadded
from esbflow.maps import plane


def pad(walk, node, value, pads=None, constant=None, axes=None):
    """Pad by zeros in height and width: the tensor itself, and how many zeros stand around it.

    Raises
    ------
    GraphError
        if it puts in anything but zeros, cuts, pads channels or images, or is computed at run time.
    """
    options, where = attributes(node), title(node)
    if options.get("mode", "constant") != "constant":
        raise GraphError(f"{where}: padding by {options['mode']} has no integer form; pad with zeros")
    # onnxruntime quantizes the value to pad with like any other constant.
    known = (isinstance(pads, Constant | None), isinstance(constant, Constant | Quantized | None),
             isinstance(axes, Constant | None))
    if not all(known):
        raise GraphError(f"{where}: its padding is computed at run time; the integer graph needs constants")
    fill = options.get("value", 0.0) if constant is None or not constant.value.size else float(constant.value.reshape(-1)[0])
    if fill != 0:
        raise GraphError(f"{where}: padding with {fill:g} has no integer form; pad with zeros")
    amounts = np.asarray(options["pads"] if pads is None else pads.value).reshape(2, -1)
    rank = len(walk.model.shape(node.input[0], where))
    full = np.zeros((2, rank), np.int64)
    full[:, range(rank) if axes is None else axes.value] = amounts
    if not full.any():
        return value
    if rank in (3, 4) and full[:, 1].any() and not (full[:, 0].any() or full[:, 2:].any()) and full.min() >= 0:
        value, (before, behind) = walk.builder.plain(value, where), full[:, 1]
        order = [-1] * before + list(range(shape_of(value)[0])) + [-1] * behind
        return walk.builder.chosen(value, order, node.name or node.output[0], where)
    if rank not in (3, 4) or full[:, :2].any() or full.min() < 0:
        raise GraphError(f"{where}: padding {amounts.reshape(-1).tolist()} has no integer form; only zeros around height "
                         "and width have")
    inner, before = unpadded(value)
    around = (*plane(full[0, 2:], 0), *plane(full[1, 2:], 0))
    return Padded(inner, tuple(int(n) for n in np.add(before, around)))


def check_zeros_never_win(value, where: str) -> None:
    """GraphError if a max pool would take zeros around a map for its largest value; in the engine padding never is."""
    inner, pads = unpadded(value)
    low = inner.low if isinstance(inner, Open) else inner.form.min if isinstance(inner, Stored) else -np.inf
    if pads != NONE and low < 0:
        raise GraphError(f"{where}: it reads zeros of a Pad beside values below zero, where they would be the largest; put "
                         "a ReLU before it, or use the pool's own padding")


def within(value, change):
    """`change` of the tensor inside; what keeps zeros may as well come before the padding."""
    return replace(value, value=change(value.value))
