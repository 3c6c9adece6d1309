"""Calls of F.conv1d, F.conv2d, F.linear and F.batch_norm on a model's own parameters become modules that compute the same.

Model libraries derive classes from torch's layers whose forward pass does more (a norm with an activation in it, a
convolution that pads by itself); traced, only such a call is left of them.
"""

import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from esbflow.quant.trace import options

_CALLS = {F.conv1d: "conv", F.conv2d: "conv", torch.conv1d: "conv", torch.conv2d: "conv", F.linear: "linear",
          F.batch_norm: "norm", torch.batch_norm: "norm"}
_CONV = ("weight", "bias", "stride", "padding", "dilation", "groups")
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_NORM = {F.batch_norm: ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
         torch.batch_norm: ("weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")}


def replace_functional_layers(traced: fx.GraphModule) -> None:
    """Make modules of the calls whose weights and statistics are parameters or buffers of the model.

    A module takes the name of the one that owned them (`bn1` for `bn1.weight`), or `bn1.norm`, `conv`, where that one holds
    other modules or is the model itself. Parameters stay the same objects; buffers used as weights do not train.
    """
    if not any(_kind(node) for node in traced.graph.nodes):
        return
    traced.graph.eliminate_dead_code()  # calls that nothing reads
    for node in list(traced.graph.nodes):
        module, owner, kind = _module(traced, node) or (None, None, None)
        if module is None:
            continue
        source = node.args[0] if node.args else node.kwargs["input"]
        node.args, node.kwargs = (source,), {}
        traced.graph.eliminate_dead_code()  # the parameters, and a count of batches, which the module has of its own
        name = _name(traced, owner, kind)
        traced.add_submodule(name, module.train(traced.training))
        with traced.graph.inserting_after(node):
            node.replace_all_uses_with(traced.graph.call_module(name, (source,)))
        traced.graph.erase_node(node)


def _kind(node: fx.Node) -> str | None:
    return _CALLS.get(node.target) if node.op == "call_function" else None


def _module(traced: fx.GraphModule, node: fx.Node) -> tuple | None:
    """(module, path of the owner of its parameters, kind), or None for any other node."""
    kind = _kind(node)
    if kind is None:
        return None
    names = _NORM[node.target] if kind == "norm" else _CONV
    found = options(node, None, names)
    tensors = {name: found[name] for name in names if name in _TENSORS and found[name] is not None}
    if any(not isinstance(value, fx.Node) or value.op != "get_attr" for value in tensors.values()):
        return None  # computed in each pass
    values = {name: operator.attrgetter(value.target)(traced) for name, value in tensors.items()}
    if found.get("training") and not traced.training:  # always a batch's own statistics
        values = {name: value for name, value in values.items() if not name.startswith("running")}
    if not values:
        return None
    module = _norm(values, found) if kind == "norm" else _layer(kind, values["weight"], "bias" in values, found)
    for name, value in values.items():
        setattr(module, name, nn.Parameter(value, requires_grad=False)
                if name in module._parameters and not isinstance(value, nn.Parameter) else value)
    return module, next(iter(tensors.values())).target.rpartition(".")[0], kind


def _layer(kind: str, weight: torch.Tensor, bias: bool, found: dict) -> nn.Module:
    out, width = weight.shape[:2]
    if kind == "linear":
        return nn.Linear(width, out, bias, device="meta")
    groups, given = found["groups"] or 1, {"stride": 1, "padding": 0, "dilation": 1}
    given = {name: default if found[name] is None else found[name] for name, default in given.items()}
    conv = nn.Conv1d if weight.dim() == 3 else nn.Conv2d
    return conv(width * groups, out, tuple(weight.shape[2:]), groups=groups, bias=bias, device="meta", **given)


class _BatchNorm(nn.BatchNorm2d):
    """Of rows, sequences or maps, as the function is."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass


def _norm(values: dict, found: dict) -> nn.BatchNorm2d:
    momentum, eps = found["momentum"], found["eps"]
    momentum = 0.1 if momentum is None else None if isinstance(momentum, fx.Node) else momentum  # computed: the mean of all
    some = next(iter(values.values()))
    norm = _BatchNorm(len(some), 1e-5 if eps is None else eps, momentum, "weight" in values, "running_var" in values)
    if "bias" not in values:
        norm.bias = None
    return norm.to(some.device)


def _name(traced: fx.GraphModule, owner: str, kind: str) -> str:
    """Where the module goes: in its owner's place, if nothing else in the graph needs that."""
    needed = any(node.op in ("call_module", "get_attr") and f"{node.target}.".startswith(f"{owner}.")
                 for node in traced.graph.nodes if node.target)
    if owner and not needed:
        return owner
    taken = dict(traced.named_modules())
    stem = f"{owner}.{kind}" if owner else kind
    return next(name for name in (stem, *(f"{stem}_{i}" for i in range(1, len(taken) + 1))) if name not in taken)
