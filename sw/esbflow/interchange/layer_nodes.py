"""Convolutions, linear layers, pools, sums, batch norms and activations of ONNX, as engine layers."""

from dataclasses import replace

import numpy as np

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.interchange.functions import FUNCTIONS, function, of_levels
from esbflow.interchange.hosted import HOSTED, multiplied
from esbflow.interchange.layers import channels_of
from esbflow.interchange.node_checks import elementwise
from esbflow.interchange.onnx_file import attributes, title
from esbflow.interchange.padding import check_zeros_never_win
from esbflow.interchange.values import KNOWN, Constant, Function, Image, Joined, Open, Quantized
from esbflow.lowering.hosted import Hosted
from esbflow.lowering.nodes import Stored, maximum, positive_part
from esbflow.lowering.view import shape_of, unpadded
from esbflow.lowering.windows import windows_fit
from esbflow.maps import plane
from esbflow.numbers import Format, Signed


# -- weights ----------------------------------------------------------------------------------------------------
def _weight_format(levels: np.ndarray, where: str) -> Format:
    for bits in range(2, 9):
        if Signed(bits).contains(levels).all():
            return Signed(bits)
    raise GraphError(f"{where}: its weights less their zero point reach {levels.min()}..{levels.max()}, more than 8 bits; "
                     "quantize weights symmetrically (WeightSymmetric=True, or int8 weights)")


def _weights(walk, node, value, axis: int) -> dict:
    """Fields of a layer; the output axis comes first."""
    where = title(node)
    if isinstance(value, Constant) and walk.thresholds and not (value.value % 1).any():  # FINN's weights are the integers
        value = Quantized(value.value.astype(np.int64), np.ones(1, np.float32), None)
    if isinstance(value, Constant):
        raise GraphError(f"{where}: its weights are not quantized; quantize them too")
    if not isinstance(value, Quantized):
        raise GraphError(f"{where}: its weights are computed at run time; the integer graph needs constants")
    levels = np.moveaxis(value.levels, axis, 0)
    scale = np.moveaxis(np.broadcast_to(value.scale, value.levels.shape), axis, 0).reshape(len(levels), -1)
    scale = scale.astype(np.float64)
    if (scale != scale[:, :1]).any():
        raise GraphError(f"{where}: its weights have several scales in an output channel; quantize by output channel or "
                         "by tensor")
    return dict(weight=np.ascontiguousarray(levels), weight_format=value.form or _weight_format(levels, where),
                weight_scale=scale[:, 0].copy())


def _bias(node, value, channels: int) -> np.ndarray:
    if value is None:
        return np.zeros(channels)
    if not isinstance(value, KNOWN):
        raise GraphError(f"{title(node)}: its bias is computed at run time; the integer graph needs a constant")
    return np.broadcast_to(np.asarray(value.value, np.float64).reshape(-1), (channels,)).copy()


def _window(node, options: dict, source: Stored, kernel: tuple, around: tuple, shape: tuple, dilation=(1, 1)) -> dict:
    """kernel, stride and padding of a sliding window over a map that zeros of a Pad stand `around`.

    How much padding follows the map is in the result's `shape` (c, h, w): anything less than a window for convolutions and
    max pools, as much as before the map for average pools. All else is refused.
    """
    where = title(node)
    if len(kernel) not in (1, 2):
        raise GraphError(f"{where}: windows of {len(kernel)} axes have no integer form; only those of images and of "
                         "sequences have")
    ends = [options.get("pads", (0, 0) * len(kernel))[i * len(kernel):(i + 1) * len(kernel)] for i in range(2)]
    stride, pads = plane(options.get("strides", (1, 1)[:len(kernel)]), 1), (*plane(ends[0], 0), *plane(ends[1], 0))
    kernel, dilation = plane(kernel, 1), plane(dilation, 1)
    auto = options.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        need = [max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
                for size, s, k, d in zip(np.add(source.shape[1:], np.add(around[:2], around[2:])), stride, kernel, dilation)]
        less, more = [n // 2 for n in need], [n - n // 2 for n in need]
        pads = (*less, *more) if auto == "SAME_UPPER" else (*more, *less)
    elif auto == "VALID":
        pads = (0, 0, 0, 0)
    pads = tuple(int(n) for n in np.add(around, pads))
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation))
    inside = node.op_type == "Conv" or all(p < k for p, k in zip(pads, kernel))
    if not inside or not windows_fit(source.shape, shape, reach, stride, pads, node.op_type == "AveragePool"):
        ceil = ", ceil_mode=0" if options.get("ceil_mode") else ""
        raise GraphError(f"{where}: its padding {pads} leaves out rows or adds windows that the integer graph does not "
                         f"have; use equal padding smaller than the kernel{ceil}")
    return dict(kernel=kernel, stride=stride, padding=pads[:2])


def conv(walk, node, value, weight, bias=None):
    """A convolution of images or sequences: opens a layer."""
    value, around = unpadded(value)
    options, source = attributes(node), walk.builder.factor(value, title(node))
    fields, shape = _weights(walk, node, weight, 0), walk.shape(node.output[0], node)
    kernel = fields["weight"].shape[2:]
    dilation = plane(options.get("dilations", (1, 1)[:len(kernel)]), 1)
    window = _window(node, options, source, kernel, around, shape, dilation)
    fields["weight"] = fields["weight"].reshape(*fields["weight"].shape[:2], *window.pop("kernel"))
    return Open(ir.Conv2d, node.name, source, dict(fields, **window, dilation=dilation, groups=options.get("group", 1)),
                fields["weight_scale"] * source.scale, _bias(node, bias, len(fields["weight"])), shape=shape)


def gemm(walk, node, value, weight, bias=None):
    """A linear layer with alpha, beta and perhaps transposed weights: opens a layer."""
    options = attributes(node)
    if options.get("transA", 0):
        raise GraphError(f"{title(node)}: transA has no integer form; leave it 0")
    return _linear(walk, node, value, weight, 0 if options.get("transB", 0) else 1, bias, options.get("alpha", 1.0),
                   options.get("beta", 1.0))


def matmul(walk, node, value, weight):
    """A linear layer of rows (n, features): opens a layer."""
    return _linear(walk, node, value, weight, 1)


def _linear(walk, node, value, weight, axis, bias=None, alpha=1.0, beta=1.0):
    where = title(node)
    source = walk.builder.factor(value, where)
    if len(walk.model.shape(node.input[0], where)) != 2:
        raise GraphError(f"{where}: it multiplies along the width; only linear layers of (n, features) have an integer "
                         "form, flatten before it")
    fields = _weights(walk, node, weight, axis)
    if fields["weight"].ndim != 2:
        raise GraphError(f"{where}: weights of {fields['weight'].ndim} axes have no integer form")
    out = len(fields["weight"])
    return Open(ir.Linear, node.name, source, fields, alpha * fields["weight_scale"] * source.scale,
                beta * _bias(node, bias, out), shape=(out, 1, 1))


# -- pools ------------------------------------------------------------------------------------------------------
def max_pool(walk, node, value):
    """A pool of a stored tensor, or one that waits until an open layer is closed."""
    options, where = attributes(node), title(node)
    if len(node.output) > 1 and node.output[1]:
        raise GraphError(f"{where}: the indices of a max pool have no integer form")
    if any(d != 1 for d in options.get("dilations", ())):
        raise GraphError(f"{where}: a dilated max pool has no integer form; use dilation 1")
    # Padding at the end is never the maximum: the shape of the output says how many windows there are.
    shape = walk.shape(node.output[0], node)
    check_zeros_never_win(value, where)
    value, around = unpadded(value)
    later = isinstance(value, (Open, Function))
    source = replace(value.source, shape=shape_of(value)) if later else walk.builder.stored(value, where)
    window = _window(node, options, source, options["kernel_shape"], around, shape)
    return _maximum(walk, node, value, shape, window)


def _maximum(walk, node, value, shape: tuple, window: dict):
    return walk.builder.moved(value, shape, lambda name, source: maximum(name, source, shape, **window),
                              node.name or node.output[0], title(node))


def average_pool(walk, node, value):
    """A pool that counts its zeros: opens a layer."""
    options, where = attributes(node), title(node)
    value, around = unpadded(value)
    source, shape = walk.builder.factor(value, where), walk.shape(node.output[0], node)
    window = _window(node, options, source, options["kernel_shape"], around, shape)
    if any(d != 1 for d in options.get("dilations", ())):
        raise GraphError(f"{where}: average pooling with dilation has no integer form; leave it out")
    if window["padding"] != around[:2] and not options.get("count_include_pad", 0):
        raise GraphError(f"{where}: average pooling with padding needs count_include_pad=1")
    return Open.average_of(source, node.name, **window, shape=shape)


def global_pool(walk, node, value, axes=None):
    """The mean or the maximum over the whole map."""
    if node.op_type.startswith("Reduce"):
        rank = len(walk.model.shape(node.input[0], title(node)))
        if rank not in (3, 4) or reduced_axes(node, axes, rank) != list(range(2, rank)):
            axes = "the length of a sequence" if rank == 3 else "height and width"
            raise GraphError(f"{title(node)}: only the mean and the maximum over {axes} have an integer form")
    return over_map(walk, node, value, walk.shape(node.output[0], node))


def reduced_axes(node, axes, rank: int) -> list:
    """The axes of a ReduceMean or ReduceMax, of `rank`, in order; they are an input or an attribute."""
    found = axes.value.tolist() if isinstance(axes, Constant) else attributes(node).get("axes", ())
    return sorted(axis % rank for axis in found)


def over_map(walk, node, value, shape: tuple):
    """The mean, or what is the largest, over height and width, of `shape` (c, 1, 1)."""
    if node.op_type in ("GlobalMaxPool", "ReduceMax"):
        value = walk.builder.plain(value, title(node))
        whole = shape_of(value)[1:]
        return _maximum(walk, node, value, shape, dict(kernel=whole, stride=whole, padding=(0, 0)))
    source = walk.builder.factor(value, title(node))
    return Open.average_of(source, node.name, source.shape[1:], source.shape[1:], (0, 0), shape=shape)


# -- elementwise ------------------------------------------------------------------------------------------------
def _scaled(layer: Open, factor: np.ndarray, shift: np.ndarray, where: str) -> Open:
    """factor * y + shift, float64 (c,) of what the layer's channels have become."""
    low, high = layer.low, layer.high
    if not layer.is_linear:
        if (shift != 0).any() or (factor <= 0).any() or np.ptp(factor) != 0:
            raise GraphError(f"{where}: it follows a ReLU, PRelu, Clip, MaxPool or Resize that is not quantized; put a "
                             "quantizer between")
        low, high = low * factor[0], high * factor[0]
        factor, shift = np.full(len(layer.gain), factor[0]), np.zeros(len(layer.gain))
    return replace(layer.affine(factor, shift), low=low, high=high)


def _with_constant(walk, node, value, constant, place: int):
    """Add, Sub, Mul or Div of an activation and a constant; `place` is the activation's among the inputs."""
    where = title(node)
    rank = len(walk.model.shape(node.input[place], where))
    array, kind = np.asarray(constant.value), node.op_type
    if kind == "Div" and place == 1:
        return of_levels(walk, node, (constant, value))
    numbers = channels_of(array, rank, shape_of(value), where)
    if isinstance(value, Image):
        operand = numbers.astype(np.float32)[:, None]
        function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[kind]
        return replace(value, values=function(value.values, operand) if place == 0 else function(operand, value.values))
    layer = walk.builder.open(value, where)
    one, zero = np.ones(len(numbers)), np.zeros(len(numbers))
    factor = {"Mul": numbers, "Div": 1 / np.where(numbers == 0, np.nan, numbers) if kind == "Div" else one}.get(kind, one)
    shift = {"Add": numbers, "Sub": -numbers if place == 0 else numbers}.get(kind, zero)
    if kind == "Sub" and place == 1:
        factor = -one
    return _scaled(layer, factor, shift, where)


@elementwise
def arithmetic(walk, node, left, right):
    """Add, Sub, Mul or Div: of a constant, of two tensors, of functions of one tensor, or of what the host multiplies."""
    if node.op_type == "Mul" and not isinstance(left, KNOWN) and not isinstance(right, KNOWN):
        return multiplied(walk, node, left, right)
    if any(isinstance(value, Function) for value in (left, right)):
        return of_levels(walk, node, (left, right))
    if isinstance(right, KNOWN):
        return _with_constant(walk, node, left, right, 0)
    if isinstance(left, KNOWN):
        return _with_constant(walk, node, right, left, 1)
    where = title(node)
    if node.op_type not in ("Add", "Sub"):
        return function(walk, node, left, right)
    layers = [walk.builder.open(value, where) for value in (left, right)]
    if node.op_type == "Sub":
        layers[1] = _scaled(layers[1], -np.ones(len(layers[1].gain)), np.zeros(len(layers[1].gain)), where)
    return _sum(node, *layers)


def _sum(node, first: Open, second: Open) -> Open:
    where = title(node)
    total = first.plus(second)
    if total is None:
        raise GraphError(f"{where}: the engine adds a quantized tensor to a quantized tensor or to a convolution; put a "
                         "quantizer on both operands")
    if first.shape != second.shape:
        raise GraphError(f"{where}: a sum of shapes {first.shape} and {second.shape} has no integer form; only sums "
                         "of equal shapes have")
    return replace(total, name=total.name or node.name)


def batch_norm(walk, node, value, gamma, beta, mean, variance):
    """A gain and an offset a channel of the open layer, or of the image."""
    options, where = attributes(node), title(node)
    if options.get("training_mode", 0):
        raise GraphError(f"{where}: it is in training mode; export the model after model.eval()")
    arrays = [np.asarray(v.value) if isinstance(v, KNOWN) else None for v in (gamma, beta, mean, variance)]
    if any(array is None for array in arrays):
        raise GraphError(f"{where}: its parameters are computed at run time; the integer graph needs constants")
    kind = np.float32 if isinstance(value, Image) else np.float64
    gamma, beta, mean, variance = (array.astype(kind) for array in arrays)
    factor = gamma / np.sqrt(variance + kind(options.get("epsilon", 1e-5)))
    if isinstance(value, Image):
        return replace(value, values=(value.values - mean[:, None]) * factor[:, None] + beta[:, None])
    layer, channels = walk.builder.open(value, where), shape_of(value)[0]
    if len(factor) != channels:
        raise GraphError(f"{where}: it has {len(factor)} channels and its input {channels}; put it before the flatten")
    return _scaled(replace(layer, name=layer.name or node.name), factor, beta - mean * factor, where)


def _clip(walk, node, value, low: float, high: float):
    if isinstance(value, Joined):
        return Joined(tuple(_clip(walk, node, part, low, high) for part in value.parts))
    if isinstance(value, Function):
        return replace(value, values=np.clip(value.values, np.float32(low), np.float32(high)))
    if isinstance(value, Image):
        return replace(value, values=np.clip(value.values, np.float32(low), np.float32(high)))
    if isinstance(value, Hosted):
        return replace(value, low=max(low, value.low), high=min(high, value.high))
    if isinstance(value, Stored) and value.form.min * value.scale >= low and value.form.max * value.scale <= high:
        return value
    layer = walk.builder.open(value, title(node))
    ends = (float(np.clip(end, low, high)) for end in (layer.low, layer.high))
    return replace(layer, name=layer.name or node.name, **dict(zip(("low", "high"), ends)))


@elementwise
def relu(walk, node, value):
    """A clip at zero."""
    return _clip(walk, node, value, 0.0, np.inf)


@elementwise
def leaky_relu(walk, node, value):
    """Values below zero times alpha."""
    return _leaky(walk, node, value, np.full(shape_of(value)[0], attributes(node).get("alpha", 0.01)))


@elementwise
def prelu(walk, node, value, slope):
    """Values below zero times a constant, one or one a channel."""
    if not isinstance(slope, KNOWN):
        raise GraphError(f"{title(node)}: its slope is computed at run time; the integer graph needs a constant")
    where = title(node)
    rank = len(walk.model.shape(node.input[0], where))
    return _leaky(walk, node, value, channels_of(np.asarray(slope.value), rank, shape_of(value), where))


def _leaky(walk, node, value, slope: np.ndarray):
    """slope*x + (1 - slope)*max(x, 0), `slope` float64 (c,): a sum behind the exact max(x, 0) of a stored tensor."""
    where = title(node)
    if isinstance(value, Joined):
        slopes = np.split(slope, np.cumsum([shape_of(part)[0] for part in value.parts])[:-1])
        return Joined(tuple(_leaky(walk, node, part, own) for part, own in zip(value.parts, slopes)))
    if isinstance(value, Image):
        below = value.values * slope.astype(np.float32)[:, None]
        return replace(value, values=np.where(value.values < 0, below, value.values))
    if isinstance(value, Function) and not value.after and np.ptp(slope) == 0:
        below = value.values * np.float32(slope[0])
        return replace(value, values=np.where(value.values < 0, below, value.values))
    if isinstance(value, Open) and value.is_linear and not value.is_copy:
        walk.builder.notes.append(f"{where}: nothing is quantized before it, so the layer before it is computed twice")
        return replace(value, slope=slope, name=value.name or node.name)
    source = walk.builder.stored(value, where)
    name = walk.builder.unique(f"{node.name or node.output[0]}_positive")
    positive = walk.builder.append(positive_part(name, source))
    return Open(ir.Add, node.name, source, {}, slope * source.scale, np.zeros(len(slope)), positive,
                (1 - slope) * source.scale, shape=source.shape)


@elementwise
def clip(walk, node, value, low=None, high=None):
    """A clip between constants, given as inputs or, in old opsets, as attributes."""
    options, ends = attributes(node), []
    for end, name, default in ((low, "min", -np.inf), (high, "max", np.inf)):
        if end is not None and not isinstance(end, KNOWN):
            raise GraphError(f"{title(node)}: its {name} is computed at run time; the integer graph needs a constant")
        ends.append(options.get(name, default) if end is None else float(np.asarray(end.value).reshape(-1)[0]))
    return _clip(walk, node, value, *ends)


LAYERS = {"Conv": conv, "Gemm": gemm, "MatMul": matmul, "MaxPool": max_pool, "AveragePool": average_pool,
          "GlobalAveragePool": global_pool, "ReduceMean": global_pool, "GlobalMaxPool": global_pool,
          "ReduceMax": global_pool, "Add": arithmetic, "Sub": arithmetic,
          "Mul": arithmetic, "Div": arithmetic, "BatchNormalization": batch_norm, "Relu": relu, "Clip": clip,
          "LeakyRelu": leaky_relu, "PRelu": prelu, **FUNCTIONS, **HOSTED}
