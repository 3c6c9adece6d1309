"""Any torch model -> a model that trains with quantized weights and activations.

The model is traced by torch.fx. What one engine layer computes in one go (convolution, batch norm, one residual
addition, ReLU) stays real inside; a quantizer is put where the engine stores a tensor.
"""

import torch
from torch import fx, nn

from esbflow.graph.errors import GraphError
from esbflow.numbers import Signed
from esbflow.quant.activation import InputQuantizer
from esbflow.quant.base import Quantizer
from esbflow.quant.layers import QuantConv2d, QuantLinear, SelectChannels, padding_in_numbers
from esbflow.quant.limit import limit_step
from esbflow.quant.recipe import Recipe
from esbflow.quant.trace import check_upsample, clip_limit, kind_of, tensors, trace


def quantize(model: nn.Module, recipe: Recipe = Recipe()) -> fx.GraphModule:
    """Put quantizers into a model; parameters are shared with it, so it should not be used any further.

    Returns an fx.GraphModule that trains, evaluates, and saves its state dict as any other module. Its `recipe` is
    kept with it.

    Raises
    ------
    GraphError
        for an operator without an integer form, naming it and the nearest fix.
    ValueError
        if a weight holds NaN or infinity, naming the layer.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{name} holds NaN or infinity; training has diverged, or the checkpoint is broken")
    traced = trace(model)
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        kind, module = kind_of(node, modules), modules.get(node.target) if node.op == "call_module" else None
        if kind == "add" and (len([a for a in node.args if isinstance(a, fx.Node)]) != 2 or node.kwargs):
            raise GraphError(f"{node.name}: only the plain sum of two tensors has an integer form; put constants into a "
                             "bias or a batch norm")
        if kind == "upsample":
            check_upsample(node, module)
        _not_in_place(node, module)
    _swap_layers(traced, modules, recipe)
    _insert_quantizers(traced, recipe)
    traced.recipe = recipe
    traced.graph.lint()
    traced.recompile()
    return traced


def _not_in_place(node: fx.Node, module: nn.Module | None) -> None:
    """A ReLU or dropout that overwrites its input would overwrite a stored tensor that others read."""
    if getattr(module, "inplace", False):
        module.inplace = False
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}


def _swap_layers(traced: fx.GraphModule, modules: dict, recipe: Recipe) -> None:
    order = [node.target for node in traced.graph.nodes if node.op == "call_module"
             and isinstance(modules[node.target], (nn.Conv2d, nn.Linear))
             and not isinstance(modules[node.target], SelectChannels)]
    if not order:
        raise GraphError("the model has no Conv2d or Linear layer: there is nothing to quantize")
    for i, name in enumerate(order):
        module = modules[name]
        if isinstance(module, (QuantConv2d, QuantLinear)):
            continue
        if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or padding_in_numbers(module) is None):
            raise GraphError(f"{name}: padding {module.padding!r}, mode {module.padding_mode!r} has no integer form; use "
                             "as many zeros on both sides")
        if recipe.excludes(name):
            continue
        quantizer = recipe.weight_quantizer(name, i == 0, i == len(order) - 1)
        cls = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
        parent, _, leaf = name.rpartition(".")
        setattr(traced.get_submodule(parent), leaf, cls.from_float(module, quantizer))


def _insert_quantizers(traced: fx.GraphModule, recipe: Recipe) -> None:
    graph, modules = traced.graph, dict(traced.named_modules())
    pending = {}  # node -> "open", "added" (has its residual) or "relu"
    pooled = set()
    takes_residual = set()  # open tensors whose layer can add another: convolutions, norms of stored tensors
    limits = {}  # ReLU node -> where it clips
    traced.quantizers = nn.ModuleDict()

    def insert(node, quantizer):
        name = node.name
        traced.quantizers[name] = quantizer
        with graph.inserting_after(node):
            stored = graph.call_module(f"quantizers.{name}", (node,))
        node.replace_all_uses_with(stored, delete_user_cb=lambda user: user is not stored)
        return stored

    def multiplies(user):
        return kind_of(user, modules) in ("conv", "linear") and not isinstance(modules.get(user.target), SelectChannels)

    def adds(user):
        kind = kind_of(user, modules)
        return (kind in ("add", "avgpool") or isinstance(modules.get(user.target), SelectChannels)
                or kind == "pass" and any(adds(next_user) for next_user in user.users))

    def store(node):
        """Make `node` a stored tensor; returns the node to read."""
        state = pending.pop(node, None)
        if state is None:
            return node
        wide = recipe.residual_activations and state == "relu" and any(adds(user) for user in node.users)
        if wide:
            text = recipe.residual_activations
        elif state == "relu":
            text = recipe.activations
        elif node in pooled and not _signed(node, traced):
            text = recipe.pooled_activations
        else:
            text = recipe.signed_activations
        names = (node.name, node.target) if node.op == "call_module" else (node.name,)
        readers = [user for user in node.users if multiplies(user)] if wide else []
        stored = insert(node, limit_step(recipe.activation_quantizer(text, names), limits.get(node)))
        if readers:
            name = f"{node.name}_low"
            traced.quantizers[name] = recipe.activation_quantizer(recipe.activations, (name, *names[1:]))
            with graph.inserting_after(stored):
                low = graph.call_module(f"quantizers.{name}", (stored,))
            for reader in readers:
                reader.replace_input_with(stored, low)
        return stored

    for node in list(graph.nodes):
        kind = kind_of(node, modules)
        for source in tensors(node):
            if source in pending and len([user for user in source.users if kind_of(user, modules) != "size"]) > 1:
                store(source)
        sources = tensors(node)
        if kind == "input":
            largest = max(max(abs((0 - m) / s), abs((1 - m) / s)) for m, s in zip(recipe.mean, recipe.std))
            form = Signed(recipe.input_bits)
            insert(node, InputQuantizer(form, largest / form.max))
        elif kind in ("conv", "linear"):
            store(sources[0])
            if not isinstance(modules.get(node.target), SelectChannels):
                pending[node] = "open"
                if kind == "conv":
                    takes_residual.add(node)
        elif kind == "avgpool":
            store(sources[0])
            pending[node] = "open"
            pooled.add(node)
        elif kind == "norm":
            if pending.get(sources[0]) not in (None, "open"):
                store(sources[0])
            if pending.pop(sources[0], None) is None or sources[0] in takes_residual:
                takes_residual.add(node)
            pending[node] = "open"
        elif kind == "add":
            for source in sources:
                if len(sources) == 1 or source not in takes_residual:  # x + x
                    store(source)
            sources = tensors(node)
            # The last producer takes the other operand as its residual.
            for source in sources[:-1] if len(sources) > 1 else []:
                if any(pending.get(other) == "open" for other in sources[sources.index(source) + 1:]):
                    store(source)
            for source in list(node.all_input_nodes):
                if pending.get(source) not in (None, "open"):
                    store(source)
            pending.pop(next((s for s in node.all_input_nodes if s in pending), None), None)
            pending[node] = "added"
        elif kind == "relu":
            if pending.get(sources[0]) == "relu":
                store(sources[0])
            pending.pop(sources[0], None)
            pending[node] = "relu"
            limits[node] = clip_limit(node, modules.get(node.target) if node.op == "call_module" else None)
            if sources[0] in pooled:
                pooled.add(node)
        elif kind == "concat":
            for source in sources:
                store(source)
        elif kind in ("maxpool", "upsample", "pass"):
            store(sources[0])


def _signed(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Whether what reaches a node was stored in a format with negative levels."""
    if node.op == "call_module" and isinstance(traced.get_submodule(node.target), Quantizer):
        return traced.get_submodule(node.target).form.signed
    return any(_signed(source, traced) for source in node.all_input_nodes)
