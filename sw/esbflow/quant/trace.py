"""What the nodes of a traced model mean to the engine, and which of them have no integer form."""

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from esbflow.graph.errors import GraphError
from esbflow.quant.affine import Affine
from esbflow.quant.base import Quantizer
from esbflow.quant.elementwise import Elementwise, is_function
from esbflow.quant.layers import CONVOLUTIONS, PositivePart, SelectChannels
from esbflow.quant.proxy import Proxy
from esbflow.quant.sized_trace import sized

MODULES = (
    (CONVOLUTIONS, "conv"), ((nn.Linear,), "linear"), ((nn.BatchNorm2d, nn.BatchNorm1d, Affine), "norm"),
    ((nn.ReLU, nn.Hardtanh), "relu"),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), "maxpool"),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), "avgpool"), ((nn.Upsample,), "upsample"),
    ((nn.ConstantPad1d, nn.ConstantPad2d), "pad"), ((PositivePart,), "positive"), ((Quantizer,), "quantizer"),
    ((nn.PixelUnshuffle,), "shuffle"),
    ((nn.Softmax, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.PixelShuffle), "host"),
    ((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity, nn.Flatten), "pass"))
FUNCTIONS = (
    ((operator.add, torch.add), "add"),
    ((F.relu, torch.relu, F.relu6, F.hardtanh, torch.clamp, torch.clip), "relu"),
    ((torch.max_pool1d, torch.max_pool2d, torch.amax), "maxpool"),
    ((F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.mean), "avgpool"),
    ((F.interpolate, F.upsample), "upsample"),
    ((F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, F.sigmoid, torch.sigmoid, F.logsigmoid, F.tanh, torch.tanh,
      torch.argmax, F.pixel_shuffle), "host"),
    ((F.pixel_unshuffle,), "shuffle"), ((F.pad,), "pad"), ((torch.cat, torch.concat, torch.concatenate), "concat"),
    ((torch.flatten, torch.squeeze, torch.unsqueeze, F.dropout, F.dropout1d, F.dropout2d), "pass"))
PRODUCTS = (operator.mul, torch.mul, torch.multiply, "mul", "multiply")
METHODS = {"add": "add", "relu": "relu", "clamp": "relu", "clip": "relu", "mean": "avgpool",
           "amax": "maxpool", "flatten": "pass", "view": "pass", "reshape": "pass", "contiguous": "pass", "squeeze": "pass",
           "unsqueeze": "pass", **dict.fromkeys(("softmax", "log_softmax", "sigmoid", "tanh", "argmax"), "host")}
STOCHASTIC = ("StochasticDepth", "DropPath", "DropBlock2d")
"""Classes of model libraries that do nothing in eval mode; not traced into, known by name."""

_MAX_POOLS = ("max_pool1d", "max_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d")
"""Functions that torch makes anew for each call."""
_LAYERS = tuple(cls for types, kind in MODULES for cls in types if kind != "quantizer")
_FIXES = {
    "rrelu": "use LeakyReLU, which is what it is in evaluation",
    **dict.fromkeys(("convtranspose1d", "conv_transpose2d"), "use nn.ConvTranspose2d, which the host computes"),
    **dict.fromkeys(("layernorm", "layer_norm", "groupnorm", "group_norm", "instancenorm2d", "instance_norm"),
                    "use BatchNorm2d"),
    **dict.fromkeys(("reflectionpad2d", "replicationpad2d", "circularpad2d"), "pad with zeros"),
    **dict.fromkeys(("softmax", "log_softmax", "logsoftmax", "argmax"),
                    "only behind the last layer, where it is left to the host"),
    "max": "use MaxPool2d, or amax over dim=(2, 3)",
    **dict.fromkeys(("getitem", "chunk", "split", "narrow"), "only whole channels can be chosen, of a map whose layers tell "
                    "how many it has; if they do not, give quantize() the shape of the images"),
    "conv3d": "use Conv2d"}
_GENERAL_FIX = ("use Conv2d, Linear, BatchNorm, ReLU, max or average pooling, addition or concatenation, or run it on the "
                "host after the network")


_LAYERS_OF = dict.fromkeys(("matmul", "mm", "bmm", "addmm", "einsum", "linear", "t", "transpose", "tensordot"), "nn.Linear")
"""What to use in place of calls that multiply by a parameter."""


class _Tracer(fx.Tracer):
    """Traces through containers, not into layers that have an integer form of their own, nor into classes derived from
    them that compute the same."""

    def proxy(self, node):
        return Proxy(node, self)

    def is_leaf_module(self, module, name):
        return (isinstance(module, (Affine, Elementwise, PositivePart, Quantizer, SelectChannels))
                or type(module).__name__ in STOCHASTIC or super().is_leaf_module(module, name) or _computes_as_torch(module))


def _computes_as_torch(module: nn.Module) -> bool:
    """Whether a layer's forward pass, and what it calls, is that of the class of torch.nn which it is derived from."""
    base = next((base for base in type(module).__mro__ if base.__module__.startswith("torch.nn")), nn.Module)
    return isinstance(module, _LAYERS) and all(getattr(type(module), method, None) is getattr(base, method, None)
                                               for method in ("forward", "_conv_forward", "__call__"))


def trace(model: nn.Module, shape: tuple | None = None) -> fx.GraphModule:
    """fx graph of a model; for images of `shape` (c, h, w) if that is given, whose sizes are numbers then.

    Raises
    ------
    GraphError
        if its forward pass depends on data, which no fixed graph can express, or on sizes that are not given; if it does
        not take images of that shape.
    """
    tracer = _Tracer() if shape is None else sized(_Tracer)(model, shape)
    try:
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        fix = " or, if it depends on sizes only, give quantize() the shape of the images" if shape is None else ""
        raise GraphError(f"{type(model).__name__}: torch.fx cannot trace the forward pass ({error}); "
                         f"remove control flow that depends on data{fix}") from None
    for node in reversed(list(graph.nodes)):
        if is_size(node) and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(model, graph)


def kind_of(node: fx.Node, modules: dict) -> str:
    """What an fx node means to the engine: one of input, conv, linear, norm, relu, add, maxpool, avgpool, upsample,
    concat, pad, crop, shuffle (of channels and pixels), positive, pass, quantizer, lookup (a function of single values),
    hosted (what the host computes between programs), size, output, and host: behind the last layer, what rises with its
    values or moves them.

    Raises
    ------
    GraphError
        for an operator that has no integer form here, naming it and the nearest fix.
    """
    if node.op in ("placeholder", "output"):
        return "input" if node.op == "placeholder" else "output"
    if is_size(node):
        return "size"
    if node.op == "get_attr":
        readers = " and ".join(user.name for user in node.users)
        fix = "compute it once, before quantize(), or run it on the host after the network"
        layer = next((_LAYERS_OF[name] for name in (user.name.rstrip("_0123456789") for user in node.users)
                      if name in _LAYERS_OF), None)
        if layer:
            fix = f"use {layer}, whose weight is quantized"
        raise GraphError(f"{node.target}: {readers} computes with it in each pass, which has no integer form; {fix}")
    target = modules.get(node.target) if node.op == "call_module" else node.target
    if node.op == "call_module":
        name = type(target).__name__
        kind = next((kind for types, kind in MODULES if isinstance(target, types)), "pass" if name in STOCHASTIC else None)
    elif crops(node):
        return "crop"
    elif _adds_axes(node):
        return "pass"
    elif node.op == "call_function":
        name = getattr(target, "__name__", str(target))
        kind = next((kind for functions, kind in FUNCTIONS if target in functions), None)
        if name in _MAX_POOLS:
            kind = "maxpool"
    else:
        name = str(target)
        kind = METHODS.get(name) if node.op == "call_method" else None
    if kind == "host" and name.lower().replace("_", "") == "pixelshuffle" and not _ends(node, modules):
        return "shuffle"
    if _is_hosted(node, target, kind, modules):
        return "hosted"
    if (kind is None or (kind == "host" and not _ends(node, modules))) and is_function(node, modules):
        return "lookup"
    if kind is None or (kind == "host" and not _ends(node, modules)):
        raise GraphError(f"{node.name}: operator {name} has no integer form; {_FIXES.get(name.lower(), _GENERAL_FIX)}")
    return kind


def _is_hosted(node: fx.Node, target, kind: str | None, modules: dict) -> bool:
    """Whether the host computes a node between programs: a product of two tensors, a softmax that something reads, an
    upsampling that interpolates, a transposed convolution."""
    if kind == "upsample":
        module = target if node.op == "call_module" else None
        return options(node, module, ("size", "scale_factor", "mode"))["mode"] == "bilinear"
    if kind == "host":
        name = type(target).__name__ if node.op == "call_module" else getattr(target, "__name__", str(target))
        return name.lower() == "softmax" and not _ends(node, modules)
    if node.op == "call_module":
        return type(target) is nn.ConvTranspose2d
    return node.target in PRODUCTS and len(tensors(node)) == len([a for a in node.args if isinstance(a, fx.Node)]) == 2


def _ends(node: fx.Node, modules: dict) -> bool:
    """Whether nothing but the output reads a node, perhaps through what the host does too."""
    return all(user.op == "output" or (kind_of(user, modules) in ("host", "pass") and _ends(user, modules))
               for user in node.users)


def is_size(node: fx.Node) -> bool:
    """Whether a node is no tensor but a size of one, or computed from sizes only."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return bool(node.all_input_nodes) and all(is_size(source) for source in node.all_input_nodes)


def crops(node: fx.Node) -> bool:
    """Whether a node takes a part of each map or sequence, as x[:, :, 1:-1], x[:, :, ::2, ::2] or x[:, :, -1]."""
    if node.op != "call_function" or node.target is not operator.getitem or is_size(node):
        return False
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    whole = index[:1] == (Ellipsis,) or index[:2] == (slice(None), slice(None))
    rest = index[1:] if index[:1] == (Ellipsis,) else index[2:]
    numbers = [part for entry in rest for part in
               ((entry.start, entry.stop, entry.step) if isinstance(entry, slice) else (entry,))]
    known = all(is_size(part) if isinstance(part, fx.Node) else part is None or isinstance(part, int) for part in numbers)
    return whole and 0 < len(rest) < 3 and known and all(entry is not None for entry in rest)


def _adds_axes(node: fx.Node) -> bool:
    """Whether a node is all of a tensor with more axes, as x[:, :, None, None]."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return False
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return None in index and all(entry in (None, Ellipsis, slice(None)) for entry in index)


def tensors(node: fx.Node) -> list:
    """The tensors that a node reads, each once."""
    return [source for source in node.all_input_nodes if source.op != "get_attr" and not is_size(source)]


def drops(node: fx.Node, module) -> bool:
    """Whether a "pass" node is a dropout, which changes no shape and does nothing in evaluation."""
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", "")
    return name in STOCHASTIC or "drop" in name.lower()


def options(node: fx.Node, module, names: tuple) -> dict:
    """A layer's options, from its module or from the call's arguments; None for those left out."""
    if module is not None:
        return {name: getattr(module, name, None) for name in names}
    arguments = dict(zip(names, node.args[1:]))
    arguments.update({k: v for k, v in node.kwargs.items() if k in names})
    return {name: arguments.get(name) for name in names}


def clip_limit(node: fx.Node, module) -> float | None:
    """Where a "relu" node cuts off: 6 for ReLU6, a for Hardtanh(0, a) and clamp(0, a), None for a plain ReLU.

    Raises
    ------
    GraphError
        if it does not begin at zero.
    """
    name = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
    if isinstance(module, nn.ReLU6) or name == "relu6":
        return 6.0
    if isinstance(module, nn.Hardtanh) or name == "hardtanh":
        found = options(node, module, ("min_val", "max_val"))
        low, high = (default if found[key] is None else found[key] for key, default in (("min_val", -1), ("max_val", 1)))
    elif name in ("clamp", "clip"):
        low, high = options(node, module, ("min", "max")).values()
    else:
        return None
    if low != 0 or not (high is None or (isinstance(high, int | float) and high > 0)):
        raise GraphError(f"{node.name}: operator {name} from {low} to {high} has no integer form; let it begin at 0, as "
                         "ReLU and ReLU6 do")
    return None if high is None else float(high)


def zeros_around(node: fx.Node, module) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of a "pad" node: rows and columns of zeros.

    Raises
    ------
    GraphError
        if it pads by something else, by other axes, or cuts.
    """
    if module is not None:
        pads, mode, value = module.padding, "constant", module.value
    else:
        pads, mode, value = options(node, None, ("pad", "mode", "value")).values()
    if (mode or "constant") != "constant" or value:
        by = value if mode in (None, "constant") else mode
        raise GraphError(f"{node.name}: padding by {by} has no integer form; pad with zeros")
    left, right, top, bottom = (*pads, 0, 0) if len(pads) == 2 else pads if len(pads) == 4 else (-1,) * 4
    if min(left, right, top, bottom) < 0:
        raise GraphError(f"{node.name}: padding {tuple(pads)} has no integer form; only zeros around height and width have")
    return top, left, bottom, right


def check_upsample(node: fx.Node, module) -> None:
    """GraphError if an "upsample" node does more than repeat pixels."""
    mode = options(node, module, ("size", "scale_factor", "mode"))["mode"] or "nearest"
    if mode not in ("nearest", "nearest-exact"):
        raise GraphError(f"{node.name}: upsampling with mode {mode!r} has no integer form; use mode='nearest', or "
                         "'bilinear', which the host computes")
