"""Products and sums of a tensor and a constant become modules, whose gain and offset an engine layer takes in."""

import operator

import torch
from torch import fx

from esbflow.graph.errors import GraphError
from esbflow.quant.affine import Affine
from esbflow.quant.trace import is_size

OPERATIONS = {
    "multiply": (operator.mul, torch.mul, torch.multiply, "mul", "multiply"),
    "divide": (operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide"),
    "add": (operator.add, torch.add, "add"),
    "subtract": (operator.sub, torch.sub, torch.subtract, "sub", "subtract"),
    "negate": (operator.neg, torch.neg, torch.negative, "neg")}
"""Functions and methods; those in place have been made plain (in_place.py)."""
_KINDS = {target: name for name, targets in OPERATIONS.items() for target in targets}


def replace_constants(traced: fx.GraphModule) -> None:
    """Make a module of every product, ratio, sum and difference of a tensor and a constant.

    Raises
    ------
    GraphError
        if it changes the network's input, which the recipe's mean and std describe.
    """
    from_input = set()
    for node in list(traced.graph.nodes):
        if node.op == "placeholder":
            from_input.add(node)
        found = _matched(traced, node)
        if found is None:
            continue
        operation, source, constant = found
        if source in from_input:
            raise GraphError(f"{node.name}: it changes the input; take it out of the model and give mean and std "
                             "to the recipe")
        name = f"{node.name}_constant"
        traced.add_module(name, Affine(operation, constant))
        with traced.graph.inserting_after(node):
            node.replace_all_uses_with(traced.graph.call_module(name, (source,)))
        traced.graph.erase_node(node)
    for node in list(traced.graph.nodes):
        if node.op == "get_attr" and not node.users:
            traced.graph.erase_node(node)


def _matched(traced: fx.GraphModule, node: fx.Node) -> tuple | None:
    """(operation, tensor, constant), or None for any other node."""
    operation = _KINDS.get(node.target) if node.op in ("call_function", "call_method") else None
    if operation is None or is_size(node):
        return None
    if operation == "negate":
        return "multiply", node.args[0], -1.0
    operands = (*node.args, node.kwargs["other"]) if set(node.kwargs) == {"other"} else node.args
    if len(operands) != 2 or set(node.kwargs) - {"other"}:
        return None
    constants = [_constant(traced, operand) for operand in operands]
    if (constants[0] is None) == (constants[1] is None):
        return None
    place = 0 if constants[0] is not None else 1
    if (place == 0 and operation == "divide") or is_size(operands[1 - place]):
        return None
    return "subtract_from" if place == 0 and operation == "subtract" else operation, operands[1 - place], constants[place]


def _constant(traced: fx.GraphModule, operand):
    """A number, parameter or buffer; None for a tensor that is computed."""
    if isinstance(operand, (int, float)) and not isinstance(operand, bool):
        return operand
    if not isinstance(operand, fx.Node) or operand.op != "get_attr":
        return None
    value = operator.attrgetter(operand.target)(traced)
    return value if isinstance(value, torch.Tensor) and value.is_floating_point() else None
