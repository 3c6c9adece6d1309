"""Leaky ReLUs and differences, written as sums of scaled tensors, which one engine layer adds.

A leaky ReLU of slope a is a*x + (1 - a)*max(x, 0), whatever a; a PReLU is the same with a parameter that goes on training.
max(x, 0) of a stored tensor is exact, so that nothing is rounded but the result.
"""

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from esbflow.quant.affine import Affine, Slope
from esbflow.quant.constants import OPERATIONS
from esbflow.quant.layers import PositivePart
from esbflow.quant.trace import is_size, options

_LEAKY = (F.leaky_relu, torch._C._nn.leaky_relu)
_PARAMETRIC = (F.prelu, torch.prelu, "prelu")
_DIFFERENCE, _SUM = OPERATIONS["subtract"], OPERATIONS["add"]


def replace_sums(traced: fx.GraphModule) -> None:
    """Make plain sums of leaky ReLUs, of differences of two tensors, and of sums and differences with an `alpha`.

    Parameters that nothing reads any more are left for `replace_constants` to take out.
    """
    for node in list(traced.graph.nodes):
        with traced.graph.inserting_before(node):
            terms = _terms(traced, node)
            if terms is None:
                continue
            node.replace_all_uses_with(traced.graph.call_function(operator.add, terms))
        traced.graph.erase_node(node)


def _terms(traced: fx.GraphModule, node: fx.Node) -> tuple | None:
    """The two tensors whose sum a node is, made for it where need be; None for any other node."""
    slope = _slope(traced, node)
    if slope is not None:
        source = node.all_input_nodes[0]
        positive = _module(traced, f"{node.name}_positive", PositivePart(), source)
        return (_module(traced, f"{node.name}_slope", Slope(slope), source),
                _module(traced, f"{node.name}_rest", Slope(slope, rest=True), positive))
    if node.op not in ("call_function", "call_method") or is_size(node) or node.target not in (*_SUM, *_DIFFERENCE):
        return None
    sign, alpha = -1 if node.target in _DIFFERENCE else 1, node.kwargs.get("alpha", 1)
    operands = (*node.args, node.kwargs["other"]) if "other" in node.kwargs else node.args
    tensors = [operand for operand in operands if isinstance(operand, fx.Node) and operand.op != "get_attr"]
    if (len(operands) != 2 or len(tensors) != 2 or sign * alpha == 1 or set(node.kwargs) - {"other", "alpha"}
            or not isinstance(alpha, int | float)):
        return None
    return tensors[0], _module(traced, f"{node.name}_scaled", Affine("multiply", float(sign * alpha)), tensors[1])


def _slope(traced: fx.GraphModule, node: fx.Node):
    """A leaky ReLU's slope: a number or a parameter; None for any other node."""
    if node.op == "call_module":
        module = traced.get_submodule(node.target)
        if isinstance(module, nn.LeakyReLU):
            return module.negative_slope
        return module.weight if isinstance(module, nn.PReLU) else None
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in _LEAKY:
        slope = options(node, None, ("negative_slope",))["negative_slope"]
        return 0.01 if slope is None else slope
    weight = options(node, None, ("weight",))["weight"] if node.target in _PARAMETRIC else None
    return operator.attrgetter(weight.target)(traced) if isinstance(weight, fx.Node) and weight.op == "get_attr" else None


def _module(traced: fx.GraphModule, name: str, module: nn.Module, source: fx.Node) -> fx.Node:
    traced.add_module(name, module)
    return traced.graph.call_module(name, (source,))
