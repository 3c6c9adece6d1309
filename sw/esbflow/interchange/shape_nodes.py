"""Operators of ONNX on shapes: those of constants, concatenation, look-up, repetition. moves.py has those of activations."""

from dataclasses import replace

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.interchange.functions import is_function, looked_up, whole
from esbflow.interchange.hosted import interpolated
from esbflow.interchange.node_checks import elementwise
from esbflow.interchange.onnx_file import attributes, title
from esbflow.interchange.values import Constant, Image, Joined, Open, Quantized
from esbflow.lowering.nodes import Stored
from esbflow.lowering.view import View, shape_of

REPEATS = (("half_pixel", "round_prefer_floor"), ("asymmetric", "floor"))
"""Pairs of coordinate_transformation_mode and nearest_mode with which Resize repeats pixels, for every whole factor."""


def reshape(walk, node, value, *others):
    """Flatten, Reshape, Squeeze, Unsqueeze of quantized constants."""
    shape = walk.model.shape(node.output[0], title(node))
    scale = np.broadcast_to(value.scale, value.levels.shape)
    return Quantized(value.levels.reshape(shape), scale.reshape(shape), value.form)


def transpose(walk, node, value):
    """Of quantized constants."""
    order = attributes(node).get("perm")
    full = np.broadcast_to(value.scale, value.levels.shape)
    return Quantized(value.levels.transpose(order), full.transpose(order), value.form)


@elementwise
def identity(walk, node, value, *others):
    """Identity, Dropout of a model in evaluation, Cast."""
    if node.op_type == "Cast" and isinstance(value, Image):
        target = attributes(node)["to"]
        return value if target == 1 else replace(value, values=np.trunc(value.values).astype(np.float32))
    return whole(walk, node, value) if node.op_type == "Cast" and is_function(value) else value


def gather(walk, node, data, indices):
    """A table of values looked up by pixels, or by a function of a stored tensor; nothing else has an integer form."""
    if is_function(indices) and isinstance(data, Constant) and data.value.ndim == 1:
        return looked_up(walk, node, data.value, indices)
    if not isinstance(indices, Image) or not isinstance(data, Constant) or data.value.ndim != 1:
        raise GraphError(f"{title(node)}: only a look-up of the input's pixels in a constant table has an integer form")
    places = indices.values.astype(np.int64)
    if places.min() < -len(data.value) or places.max() >= len(data.value):
        raise GraphError(f"{title(node)}: pixels beyond its table of {len(data.value)} values")
    return replace(indices, values=data.value[places].astype(np.float32))


def concat(walk, node, *values):
    """A concatenation of channels, or of rows of features."""
    where = title(node)
    rank = len(walk.model.shape(node.output[0], where))
    values = [walk.builder.plain(value, where) if isinstance(value, View) else value for value in values]
    shapes = [shape_of(value) for value in values if isinstance(value, (Stored, Open, Joined))]
    if len(shapes) != len(values):
        raise GraphError(f"{where}: an operand is not quantized, or a constant; quantize all operands")
    if attributes(node).get("axis", 1) % rank != 1 or (rank == 2 and any(shape[1:] != (1, 1) for shape in shapes)):
        raise GraphError(f"{where}: only channels can be joined (axis 1 of (n, channels, height, width))")
    parts = tuple(part for value in values for part in (value.parts if isinstance(value, Joined) else (value,)))
    if all(isinstance(part, Stored) for part in parts) and len({(str(part.form), part.scale) for part in parts}) == 1:
        return walk.builder.join(Joined(parts), where, node.name or node.output[0])
    return Joined(parts)


def resize(walk, node, value, *others):
    """An upsampling: pixels repeated, or interpolated by the host."""
    options, value = attributes(node), walk.builder.plain(value, title(node))
    shape, before = walk.shape(node.output[0], node), shape_of(value)
    if options.get("mode", "nearest") == "linear":
        return interpolated(walk, node, value, shape)
    factor = tuple(new // old for new, old in zip(shape[1:], before[1:]))
    whole = min(factor) >= 1 and shape == (before[0], *(s * f for s, f in zip(before[1:], factor)))
    rule = (options.get("coordinate_transformation_mode", "half_pixel"), options.get("nearest_mode", "round_prefer_floor"))
    if not whole or options.get("mode", "nearest") != "nearest" or rule not in REPEATS:
        raise GraphError(f"{title(node)}: only repeating pixels by whole factors has an integer form (mode nearest)")
    return walk.builder.repeated(value, factor, node.name or node.output[0], title(node))


SHAPES = {"Flatten": reshape, "Reshape": reshape, "Squeeze": reshape, "Unsqueeze": reshape, "Transpose": transpose,
          "Identity": identity, "Dropout": identity, "Cast": identity, "Gather": gather, "Concat": concat, "Resize": resize}
