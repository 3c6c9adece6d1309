"""Functions of single values, however a model writes them: SiLU as a module, as x * sigmoid(x), as x * relu6(x + 3) / 6.

The integer graph has any function of one value of 8 bits, as a table. So all that is computed from one tensor, each value
from the value at its own place, becomes one module, if a product or a function that layers do not compute is in it.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from esbflow.lowering.lookup import check_finite, entries
from esbflow.lowering.nodes import Stored

FUNCTION_MODULES = (nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.GELU, nn.ELU, nn.SELU,
                    nn.CELU, nn.Mish, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.Threshold)
"""Layers of torch that are functions of single values, and that no engine layer computes without a table."""

_NAMES = ("silu", "hardswish", "hardsigmoid", "sigmoid", "logsigmoid", "tanh", "gelu", "elu", "selu", "celu", "mish",
          "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink", "threshold")
_MORE = ("exp", "expm1", "log1p", "erf", "sin", "cos", "atan", "square", "abs", "sqrt", "rsqrt", "reciprocal",
         "sigmoid", "tanh")
FUNCTIONS = tuple({*(getattr(F, name) for name in _NAMES if hasattr(F, name)),
                   *(getattr(torch, name) for name in _MORE), torch.special.expit})
METHODS = _MORE
"""The same as functions and as methods of tensors."""

_RATIOS = (operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide")
_POWERS = (operator.pow, torch.pow, "pow")
_PRODUCTS = (operator.mul, torch.mul, torch.multiply, "mul", "multiply", *_RATIOS, *_POWERS)
_SUMS = (operator.add, torch.add, "add", operator.sub, torch.sub, torch.subtract, "sub", "subtract", operator.neg, torch.neg,
         torch.negative, "neg")
_CLIPS = (F.relu, torch.relu, "relu", F.relu6, F.hardtanh, torch.clamp, "clamp", torch.clip, "clip", F.leaky_relu,
          "clamp_min", "clamp_max", torch.clamp_min, torch.clamp_max)
_CLIP_MODULES = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU)
_GRID = 64.0
"""How far values are tried out to see whether a function gives negative ones."""


class Elementwise(nn.Module):
    """A function of single values, of x (n, c, ...); `graph` computes it."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__()
        self.graph = graph

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.graph(x)


@dataclass(frozen=True, eq=False)
class Function:
    """A function of single values, of a stored tensor; a quantizer makes its table.

    function : of a float32 tensor.  name : for messages.
    """

    source: Stored
    function: Callable
    name: str

    @torch.no_grad()
    def of_levels(self, device) -> torch.Tensor:
        """float32 (256,): its value for each entry of a table. Entries of no level have that of the level next to them.

        Raises
        ------
        GraphError
            if a value is no number.
        """
        levels = torch.tensor(entries(self.source.form), dtype=torch.float32, device=device)
        real = self.function(levels * torch.tensor(self.source.scale, dtype=torch.float32, device=device))
        check_finite(real.cpu().numpy(), self.source, self.name)
        return real


def is_function(node: fx.Node, modules: dict) -> bool:
    """Whether a node computes a function of single values that no engine layer computes without a table."""
    if node.op == "call_module":
        return isinstance(modules.get(node.target), (*FUNCTION_MODULES, Elementwise))
    return (node.op == "call_function" and node.target in FUNCTIONS) or (node.op == "call_method" and node.target in METHODS)


def function_of(node: fx.Node, module: nn.Module | None):
    """What a node computes, as a function of one tensor."""
    if module is not None:
        return module

    def call(x):
        rest, options = node.args[1:], {key: value for key, value in node.kwargs.items() if key != "input"}
        return getattr(x, node.target)(*rest, **options) if node.op == "call_method" else node.target(x, *rest, **options)
    return call


@torch.no_grad()
def can_be_negative(function) -> bool:
    """Whether a function gives values below zero, of numbers in -64..64.

    >>> can_be_negative(torch.sigmoid), can_be_negative(F.silu)
    (False, True)
    """
    values = function(torch.linspace(-_GRID, _GRID, 4097))
    return bool((values < 0).any())


def replace_functions(traced: fx.GraphModule) -> None:
    """Make an Elementwise of all that is computed from one tensor, value by value, if it has a product or a ratio of two
    such tensors, or more than one step around a function that needs a table. A single function stays as it is; so does
    what stands before the output only, which is left to the host if it can be."""
    modules = dict(traced.named_modules())
    roots, needs = {}, set()
    for node in traced.graph.nodes:
        roots[node] = node
        inputs = [source for source in node.all_input_nodes if not _is_number(traced, source)]
        if not inputs or not _is_elementwise(node, modules):
            continue
        found = {roots[source] for source in inputs}
        if len(found) > 1 or next(iter(found)).op == "placeholder":
            continue
        roots[node] = found.pop()
        behind = any(source in needs for source in inputs if roots[source] is roots[node])
        if behind or is_function(node, modules) or _is_product(node, inputs):
            needs.add(node)
    for node in [node for node in traced.graph.nodes if node in needs]:
        inner = [user for user in node.users if roots[user] is roots[node]]
        single = is_function(node, modules) and node.all_input_nodes == [roots[node]]
        if len(inner) == len(node.users) or single:
            continue
        name = f"{node.name}_function"
        traced.add_module(name, Elementwise(_extracted(traced, node, roots[node])))
        with traced.graph.inserting_after(node):
            call = traced.graph.call_module(name, (roots[node],))
        for user in [user for user in node.users if user not in inner]:
            user.replace_input_with(node, call)
    traced.graph.eliminate_dead_code()


def _is_product(node: fx.Node, tensors: list) -> bool:
    """Whether a node multiplies or divides two tensors, takes a power of one, or divides a number by one."""
    if node.target not in _PRODUCTS:
        return False
    operands = (*node.args, *node.kwargs.values())
    power = node.target in _POWERS
    return power or len([operand for operand in operands if operand in tensors]) > 1 or (
        node.target in _RATIOS and operands[0] not in tensors)


def _is_elementwise(node: fx.Node, modules: dict) -> bool:
    if node.op == "call_module":
        return isinstance(modules.get(node.target), (*FUNCTION_MODULES, *_CLIP_MODULES))
    if node.op not in ("call_function", "call_method"):
        return False
    if not (node.target in (*_PRODUCTS, *_SUMS, *_CLIPS) or is_function(node, modules)):
        return False
    operands = (*node.args, *node.kwargs.values())
    return all(isinstance(operand, fx.Node | int | float | str | None) for operand in operands)


def _is_number(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is one number that the model holds, as the beta of Swish."""
    if node.op != "get_attr":
        return False
    value = operator.attrgetter(node.target)(traced)
    return isinstance(value, torch.Tensor) and value.numel() == 1 and value.is_floating_point()


def _extracted(traced: fx.GraphModule, node: fx.Node, root: fx.Node) -> fx.GraphModule:
    """What a node computes from `root`, as a module of its own that shares the parameters."""
    graph = fx.Graph()
    copies = {root: graph.placeholder("x")}

    def copied(source: fx.Node) -> fx.Node:
        if source not in copies:
            for needed in source.all_input_nodes:
                copied(needed)
            copies[source] = graph.node_copy(source, copies.__getitem__)
        return copies[source]

    graph.output(copied(node))
    return fx.GraphModule(traced, graph)
