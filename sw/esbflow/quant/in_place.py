"""Operations that overwrite what they read, as `nn.ReLU(inplace=True)` does: what reads it later reads the result."""

import inspect
import operator

import torch
from torch import fx
from torch.nn import functional as F

from esbflow.quant.trace import is_size

_PLAIN = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
          operator.itruediv: operator.truediv}


def replace_in_place(traced: fx.GraphModule) -> None:
    """Make every operation leave its input as it is, and let those read its output that come after it and read the input.

    Views of what is overwritten are not followed.
    """
    places = {node: place for place, node in enumerate(traced.graph.nodes)}
    overwriting = [node for node in places if not is_size(node) and _overwrites(node, traced)]
    for node in overwriting:
        _make_plain(node, traced)
        source = node.all_input_nodes[0]
        for user in [user for user in source.users if places[user] > places[node]]:
            user.replace_input_with(source, node)


def _overwrites(node: fx.Node, traced: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(node.target), "inplace", False))
    if node.op not in ("call_method", "call_function"):
        return False
    given = _arguments(node)
    return node.target in _PLAIN or _plain(node) is not None or (given is not None and bool(given.arguments.get("inplace")))


def _plain(node: fx.Node):
    """The method or function that computes the same as one whose name ends in an underscore; None if this does not."""
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    plain = name.removesuffix("_")
    if node.op == "call_method":
        return plain if hasattr(torch.Tensor, plain) else None
    return getattr(F, plain, None) or getattr(torch, plain, None)


def _arguments(node: fx.Node) -> inspect.BoundArguments | None:
    """A function's arguments by name; None if it does not say."""
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return None


def _make_plain(node: fx.Node, traced: fx.GraphModule) -> None:
    if node.op == "call_module":
        traced.get_submodule(node.target).inplace = False
    elif node.target in _PLAIN or _plain(node) is not None:
        node.target = _PLAIN.get(node.target) or _plain(node)
    else:
        given = _arguments(node)
        given.arguments["inplace"] = False
        node.args, node.kwargs = given.args, given.kwargs
