"""Splits, slices and shuffles of channels become SelectChannels modules, which the integer graph has.

What a chain of such operators does is not read off their arguments but off an example: a tensor of its own indices goes
through the chain, and what comes out names the channel that each output channel is.
"""

import copy
import math
import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from esbflow.graph.errors import GraphError
from esbflow.lowering.view import channels_of
from esbflow.quant.layers import CONVOLUTIONS, SelectChannels
from esbflow.quant.sized_trace import propagate_shapes
from esbflow.quant.trace import crops, drops, is_size, kind_of, options, tensors

_NAMES = ("chunk", "split", "tensor_split", "narrow", "select", "unbind", "transpose", "swapaxes", "swapdims", "permute",
          "movedim", "moveaxis", "flip", "reshape", "flatten", "unflatten")
_FUNCTIONS = (operator.getitem, *(getattr(torch, name) for name in _NAMES if hasattr(torch, name)), torch.channel_shuffle,
              F.channel_shuffle)
_METHODS = (*_NAMES, "split_with_sizes", "view", "contiguous", "unsqueeze", "squeeze")
_MODULES = (nn.ChannelShuffle, nn.Flatten, nn.Unflatten)
_KEEP = ("norm", "relu", "lookup", "upsample", "pad", "crop", "add")
"""Kinds of nodes with as many channels as what they read."""

_IMAGES = 11  # of the example
_MAPS = {1: ((5,), (1,)), 2: ((3, 5), (1, 1))}
"""Sizes of sequences and of maps that show whether a chain asks for them, as squeeze does."""

_TO_ROWS = (torch.mean, "mean", torch.amax, "amax")
"""Pools that may leave rows of a matrix."""


def replace_channel_moves(traced: fx.GraphModule, shape: tuple | None = None) -> None:
    """Make a SelectChannels of every chain of splits, slices, views and transposes whose outputs are channels of one tensor,
    pixel by pixel, and of zeros as channels. What a chain does beyond that, such as a flatten at its end, stays as it is.

    `shape` (c, h, w) of the images if the model was traced for it, and sizes are numbers.
    """
    known = {} if shape is None else _map_sizes(traced, shape)
    _replace_chains(traced, known)
    _replace_channel_pads(traced, known)


def _replace_chains(traced: fx.GraphModule, known: dict) -> None:
    modules = dict(traced.named_modules())
    ends = [node for node in traced.graph.nodes if _moves(node, modules)
            and any(not _moves(user, modules) for user in node.users)]
    if not ends:
        return
    replaced, left = {}, set()
    for node in ends:
        source = _source(node, modules)
        sizes = (known[source],) if source in known else _possible_sizes(source, modules)
        orders = [_order(node, source, size, modules) for size in sizes]
        if not orders or None in orders or any(order != orders[0] for order in orders):
            left.add(node)  # and without its last step the chain may be a choice of channels
            ends += [read for read in tensors(node) if _moves(read, modules) and read not in ends]
            continue
        order, selected, channels = orders[0], source, sizes[0][0]
        if order != list(range(channels)):
            selected = _select(traced, node, source, order, channels)
            modules[selected.target] = traced.get_submodule(selected.target)
        for user in [user for user in node.users if not (_moves(user, modules) or is_size(user))]:
            user.replace_input_with(node, selected)
        replaced[node] = selected
    # Only now the sizes and what is left: further chains are computed through what this one has moved.
    for node, selected in replaced.items():
        for user in [user for user in node.users if is_size(user) or user in left]:
            user.replace_input_with(node, selected)
    traced.graph.eliminate_dead_code()


def _replace_channel_pads(traced: fx.GraphModule, known: dict) -> None:
    """F.pad(x, (0, 0, 0, 0, 4, 4)), as ResNet's parameter-free shortcut has it."""
    for node in list(traced.graph.nodes):
        if node.target is not F.pad:
            continue
        modules, source = dict(traced.named_modules()), node.all_input_nodes[0]
        found = (known[source][0], len(known[source]) - 1) if source in known else _channels(source, modules)
        channels, axes = found or (0, 0)
        around = _channel_pads(node, axes)
        pads, mode, value = options(node, None, ("pad", "mode", "value")).values()
        if not any(around) or any(pads[:-2]) or min(around) < 0 or (mode or "constant") != "constant" or value:
            continue
        order = [-1] * around[0] + list(range(channels)) + [-1] * around[1]
        node.replace_all_uses_with(_select(traced, node, source, order, channels))
        traced.graph.erase_node(node)


def _channel_pads(node: fx.Node, axes: int) -> tuple:
    """How many channels a pad of a map with so many other axes puts before and behind."""
    pads = options(node, None, ("pad",))["pad"]
    return tuple(pads[2 * axes:]) if axes and len(pads) == 2 * axes + 2 else (0, 0)


def _select(traced: fx.GraphModule, node: fx.Node, source: fx.Node, order: list, channels: int) -> fx.Node:
    """A SelectChannels of `source` behind `node`, whose name it takes."""
    device = next((parameter.device for parameter in traced.parameters()), None)
    name = f"{node.name}_channels"
    traced.add_submodule(name, SelectChannels(order, channels).to(device).train(traced.training))
    with traced.graph.inserting_after(node):
        return traced.graph.call_module(name, (source,))


def _moves(node: fx.Node, modules: dict) -> bool:
    """Whether a node does nothing but move values, all of a map's together."""
    if is_size(node) or crops(node):
        return False
    if node.op == "call_module":
        return isinstance(modules.get(node.target), _MODULES)
    return node.target in (_FUNCTIONS if node.op == "call_function" else _METHODS if node.op == "call_method" else ())


def _source(node: fx.Node, modules: dict) -> fx.Node | None:
    """The tensor whose values a chain moves; None if they are those of several."""
    while _moves(node, modules):
        read = tensors(node)
        if len(read) != 1:
            return None
        node = read[0]
    return node


def _map_sizes(traced: fx.GraphModule, shape: tuple) -> dict:
    """{node: (c, h, w)}, or (c, length), of all tensors with as many axes as the images of `shape`."""
    copied = copy.deepcopy(traced).eval()  # no statistics must move
    propagate_shapes(copied, shape)
    found = zip(traced.graph.nodes, (getattr(node.meta.get("tensor_meta"), "shape", ()) for node in copied.graph.nodes))
    return {node: tuple(sizes[1:]) for node, sizes in found if len(sizes) == len(shape) + 1}


def _possible_sizes(node: fx.Node | None, modules: dict) -> list:
    """[(channels, height, width), ...], or (channels, length), that a map may have; none if it may be no map."""
    channels, axes = (None if node is None else _channels(node, modules)) or (None, None)
    return [] if channels is None else [(channels, *sizes) for sizes in _MAPS[axes]]


def _channels(node: fx.Node, modules: dict) -> tuple | None:
    """(channels, other axes) of a map or sequence, from the layers that it comes from, of the image from those that read it;
    None if they do not tell, or it may be neither."""
    module = modules.get(node.target) if node.op == "call_module" else None
    if isinstance(module, SelectChannels):
        source = _channels(node.all_input_nodes[0], modules)
        return source and (module.out_channels, source[1])
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels, len(module.kernel_size)
    if node.op == "placeholder":
        readers = (modules.get(user.target) for user in node.users if user.op == "call_module")
        return next(((reader.in_channels, len(reader.kernel_size)) for reader in readers
                     if isinstance(reader, CONVOLUTIONS) and not isinstance(reader, SelectChannels)), None)
    try:
        kind = kind_of(node, modules)
    except GraphError:
        return None  # said when its turn comes
    if kind == "crop" and any(isinstance(entry, int | fx.Node) for entry in node.args[1]):
        return None  # an axis less
    if kind == "concat":
        parts = [_channels(part, modules) for part in (node.args[0] if node.args else node.kwargs["tensors"])]
        return None if None in parts else (sum(channels for channels, _ in parts), parts[0][1])
    if node.target is F.pad:
        found = _channels(tensors(node)[0], modules)
        return found and (found[0] + sum(_channel_pads(node, found[1])), found[1])
    pools = kind in ("maxpool", "avgpool") and (node.target not in _TO_ROWS or node.kwargs.get("keepdim"))
    keeps = kind in _KEEP or pools or (kind == "pass" and drops(node, module))
    return _channels(tensors(node)[0], modules) if keeps and tensors(node) else None


def _order(node: fx.Node, source: fx.Node, sizes: tuple, modules: dict) -> list | None:
    """[channel of `source` for each channel of `node`], or None if it is not that."""
    channels, *size = sizes
    pixels = math.prod(size)
    indices = torch.arange(_IMAGES * channels * pixels).reshape(_IMAGES, *sizes)
    try:
        moved = _computed(node, {source: indices}, modules)
    except (RuntimeError, IndexError, TypeError, KeyError, ValueError):
        return None  # it does not take such a map, or asks for the size of another
    if (not isinstance(moved, torch.Tensor) or moved.dim() != indices.dim()
            or (len(moved), *moved.shape[2:]) != (_IMAGES, *size)):
        return None
    order, _ = channels_of(moved.flatten(2)[0, :, :, None].numpy(), (channels, pixels, 1)) or (None, None)
    return order.tolist() if order is not None and torch.equal(moved, indices[:, order]) else None


def _computed(node: fx.Node, known: dict, modules: dict):
    """What a node of a chain is for the `known` tensor; KeyError if it reads others."""
    if node not in known:
        if not (_moves(node, modules) or is_size(node)):
            raise KeyError(node)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: _computed(source, known, modules))
        if node.op == "call_module":
            known[node] = modules[node.target](*args, **kwargs)
        elif node.op == "call_method":
            known[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            known[node] = node.target(*args, **kwargs)
    return known[node]
