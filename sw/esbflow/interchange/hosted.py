"""Operators of ONNX that have no exact integer form: the host computes them between two programs of the engine."""

import numpy as np

from esbflow.graph import host
from esbflow.graph.errors import GraphError
from esbflow.interchange.functions import as_functions_of_one, of_levels
from esbflow.interchange.onnx_file import attributes, title
from esbflow.interchange.values import KNOWN
from esbflow.lowering.hosted import Hosted, bilinear, product, shuffle
from esbflow.maps import plane


def multiplied(walk, node, left, right):
    """A product of two activations: a table where both are functions of one stored tensor, else the host's."""
    if as_functions_of_one(walk, (left, right), title(node)):
        return of_levels(walk, node, (left, right))
    where = title(node)
    return product(node.name, walk.builder.stored(left, where), walk.builder.stored(right, where), where)


def conv_transpose(walk, node, value, weight, bias=None):
    """A transposed convolution with constant weights and bias, which the host computes."""
    options, where = attributes(node), title(node)
    if not isinstance(weight, KNOWN) or not (bias is None or isinstance(bias, KNOWN)):
        raise GraphError(f"{where}: its weights or bias are computed at run time; the host needs constants")
    if options.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise GraphError(f"{where}: auto_pad {options['auto_pad']} is not known; write its pads as numbers")
    source, shape = walk.builder.stored(value, where), walk.shape(node.output[0], node)
    numbers = np.asarray(weight.value, np.float32)
    axes, groups = numbers.ndim - 2, options.get("group", 1)
    stride, dilation = (plane(options.get(name, (1, 1)[:axes]), 1) for name in ("strides", "dilations"))
    padding = plane(options.get("pads", (0, 0, 0, 0)[:2 * axes])[:axes], 0)
    numbers = numbers.reshape(*numbers.shape[:2], *plane(numbers.shape[2:], 1))
    more = tuple(out - ((size - 1) * s - 2 * p + (k - 1) * d + 1) for out, size, s, p, k, d in zip(
        shape[1:], source.shape[1:], stride, padding, numbers.shape[2:], dilation))
    count = numbers.shape[1] * groups
    numbers_of_bias = np.zeros(count) if bias is None else np.asarray(bias.value, np.float64).reshape(-1)
    return Hosted(host.ConvTranspose2d, node.name, (source,), shape, dict(
        weight=numbers, bias=numbers_of_bias, stride=stride, padding=padding, more=more, dilation=dilation, groups=groups))


def softmax(walk, node, value):
    """A softmax over channels that something reads, which the host computes."""
    where, rank = title(node), len(walk.model.shape(node.input[0], title(node)))
    if attributes(node).get("axis", -1 if walk.model.opset >= 13 else 1) % rank != 1:
        raise GraphError(f"{where}: the host computes a softmax over channels only (axis 1)")
    source = walk.builder.stored(value, where)
    return Hosted(host.Softmax, node.name, (source,), source.shape)


def interpolated(walk, node, value, shape: tuple) -> Hosted:
    """A Resize of mode linear."""
    where, rule = title(node), attributes(node).get("coordinate_transformation_mode", "half_pixel")
    if rule not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise GraphError(f"{where}: linear interpolation by {rule} is not known; use half_pixel or align_corners")
    return bilinear(node.name, walk.builder.stored(value, where), shape, rule == "align_corners", where)


def depth_to_space(walk, node, value):
    """DepthToSpace and SpaceToDepth: integers move, so a ReLU and a quantizer behind are those of the layer before."""
    options, kind = attributes(node), host.HOST_OPERATORS[node.op_type]
    block, crd = options["blocksize"], options.get("mode", "DCR").upper() == "CRD"
    value = walk.builder.plain(value, title(node))
    return walk.builder.moved(value, walk.shape(node.output[0], node),
                              lambda name, source: shuffle(kind, name, source, block, crd), node.name or node.output[0],
                              title(node))


HOSTED = {"ConvTranspose": conv_transpose, "Softmax": softmax, "DepthToSpace": depth_to_space,
          "SpaceToDepth": depth_to_space}
