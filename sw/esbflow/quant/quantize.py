"""Any torch model -> a model that trains with quantized weights and activations.

The model is traced by torch.fx, its layers are given weight quantizers, and its stored tensors quantizers of their own
(see insert.py).
"""

from numbers import Integral
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from esbflow.errors import BadValue
from esbflow.graph.errors import GraphError
from esbflow.quant.activation import InputQuantizer
from esbflow.quant.channels import replace_channel_moves
from esbflow.quant.constants import replace_constants
from esbflow.quant.elementwise import replace_functions
from esbflow.quant.functional import replace_functional_layers
from esbflow.quant.in_place import replace_in_place
from esbflow.quant.insert import QuantizerInsertion
from esbflow.quant.layers import CONVOLUTIONS, QUANTIZED, SelectChannels, padding_in_numbers
from esbflow.quant.model_checks import check_model
from esbflow.quant.names import names_of, shown
from esbflow.quant.recipe import Recipe, check_normalisation
from esbflow.quant.sums import replace_sums
from esbflow.quant.trace import PRODUCTS, check_upsample, is_size, kind_of, options, trace

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def quantize(model: nn.Module, recipe: Recipe = Recipe(), shape: tuple | None = None) -> fx.GraphModule:
    """Put quantizers into a model; parameters are shared with it, so it should not be used any further.

    `shape` (c, h, w) of the images, or (c, length) of sequences, is needed only for models that compute with the sizes of
    tensors, and decide by them. Such a model is for images of that shape.

    Returns an fx.GraphModule that trains, evaluates, is copied and saved as any other module. `recipe_of` gives its recipe.

    Raises
    ------
    GraphError
        for an operator without an integer form, naming it and the nearest fix; for a model that cannot be looked into
        (`check_model`).
    ValueError
        if a weight or a statistic holds NaN or infinity, is not float32, or has no values yet, naming it; if a name pattern
        of the recipe matches nothing, listing what there is; if the model was trained with another mean or std than the
        recipe's; for a recipe or a shape that is none.
    """
    if not isinstance(recipe, Recipe):
        raise BadValue(f"recipe must be a Recipe, such as Recipe(weights='esb4.1', activations='u4'), not {recipe!r}")
    if shape is not None and not (isinstance(shape, tuple | list)
                                  and all(isinstance(size, Integral) and int(size) > 0 for size in shape)):
        raise BadValue(f"shape must be sizes of one image, (channels, height, width), not {shape!r}")
    traced = real_layers(model, shape)
    check_normalisation(model, recipe)
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        kind, module = kind_of(node, modules), modules.get(node.target) if node.op == "call_module" else None
        if kind == "add" and (len([a for a in node.args if isinstance(a, fx.Node)]) != 2 or node.kwargs):
            raise GraphError(f"{node.name}: only the plain sum of two tensors, or of a tensor and a constant, has an "
                             "integer form; leave alpha and out away")
        if kind == "upsample":
            check_upsample(node, module)
    _pad_unequal_sides(traced, modules)
    _rectify_before_shuffles(traced, modules)
    with shown(traced.graph):
        layers = _swap_layers(traced, modules, recipe)
        if recipe.power_of_two:
            _follow_norms(traced)
        insertion = QuantizerInsertion(traced, recipe)
        insertion.run()
    recipe.check_names(layers, insertion.stored)
    for module in traced.modules():
        if isinstance(module, InputQuantizer):
            module.recipe, module.shape = recipe, None if shape is None else tuple(shape)
    traced.graph.lint()
    traced.recompile()
    return traced


def real_layers(model: nn.Module, shape: tuple | None = None) -> fx.GraphModule:
    """A model as the layers that `quantize` finds in it, under the same names, in real numbers; parameters are shared.

    Raises what `quantize` raises for what cannot be traced, and for parameters.
    """
    check_model(model)
    traced = trace(model, shape)
    _remove_identities(traced)
    replace_in_place(traced)
    _remove_expansions(traced)
    traced.graph.eliminate_dead_code()
    replace_functions(traced)
    replace_functional_layers(traced)
    replace_sums(traced)
    replace_constants(traced)
    replace_channel_moves(traced, shape)
    traced.recompile()
    return traced


def _follow_norms(traced: fx.GraphModule) -> None:
    """Each weight quantizer with a batch norm behind its layer, and nothing else, gets to know it."""
    for node in traced.graph.nodes:
        module: Any = traced.get_submodule(node.target) if node.op == "call_module" else None
        user = next(iter(node.users)) if len(node.users) == 1 else None
        norm = traced.get_submodule(user.target) if user is not None and user.op == "call_module" else None
        if hasattr(module, "weight_quantizer") and isinstance(norm, NORMS) and norm.running_var is not None:
            module.weight_quantizer.follow(norm)


def _remove_identities(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        identity = node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.Identity)
        if identity or (node.target is F.pad and not any(options(node, None, ("pad",))["pad"])):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _remove_expansions(traced: fx.GraphModule) -> None:
    """y * x.expand_as(y) is y * x, and so it is with x.expand(y.size()): a product repeats single values itself."""
    for node in list(traced.graph.nodes):
        if node.op != "call_method" or node.target not in ("expand_as", "expand") or len(node.args) != 2:
            continue
        source, like = node.args
        if isinstance(like, fx.Node) and node.target == "expand":
            like = like.args[0] if is_size(like) and len(like.args) == 1 + (like.op == "call_function") else None
        if all(user.target in PRODUCTS and set(user.args) == {node, like} for user in node.users):
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)


def _pad_unequal_sides(traced: fx.GraphModule, modules: dict) -> None:
    """A convolution that pads "same" by an odd number of zeros reads a padded tensor instead."""
    unequal = [node for node in traced.graph.nodes if isinstance(modules.get(node.target), CONVOLUTIONS)
               and modules[node.target].padding_mode == "zeros" and padding_in_numbers(modules[node.target]) is None]
    for node in unequal:
        conv = modules[node.target]
        zeros = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation)]
        around = [n for zero in reversed(zeros) for n in (zero // 2, zero - zero // 2)]
        source = node.all_input_nodes[0]
        with traced.graph.inserting_before(node):
            node.replace_input_with(source, traced.graph.call_function(F.pad, (source, around)))
    for node in unequal:
        modules[node.target].padding = (0,) * len(modules[node.target].kernel_size)


def _swap_layers(traced: fx.GraphModule, modules: dict, recipe: Recipe) -> list:
    """Give layers their weight quantizers; returns the names of each layer."""
    names: dict[str, list] = {}
    for node, name in names_of(traced.graph).items():
        names.setdefault(node.target, []).append(name)
    order = [node.target for node in traced.graph.nodes if node.op == "call_module"
             and isinstance(modules[node.target], tuple(QUANTIZED))
             and not isinstance(modules[node.target], SelectChannels)]
    if not order:
        raise GraphError("the model has no convolution or Linear layer: there is nothing to quantize")
    for i, name in enumerate(order):
        module = modules[name]
        if isinstance(module, tuple(QUANTIZED.values())):
            continue
        if isinstance(module, CONVOLUTIONS) and module.padding_mode != "zeros":
            raise GraphError(f"{name}: padding {module.padding!r}, mode {module.padding_mode!r} has no integer form; pad "
                             "with zeros")
        if recipe.excludes(name, *names[name]):
            continue
        quantizer = recipe.weight_quantizer(name, i == 0, i == len(order) - 1, tuple(names[name]))
        cls: Any = next(cls for base, cls in QUANTIZED.items() if isinstance(module, base))
        parent, _, leaf = name.rpartition(".")
        setattr(traced.get_submodule(parent), leaf, cls.from_float(module, quantizer))
    return [(name, *names[name]) for name in dict.fromkeys(order)]


def _rectify_before_shuffles(traced: fx.GraphModule, modules: dict) -> None:
    """A ReLU that alone reads a pixel shuffle comes before it: so it is the layer's own, and nothing is stored signed."""
    for node in list(traced.graph.nodes):
        if kind_of(node, modules) == "shuffle" and [kind_of(user, modules) for user in node.users] == ["relu"]:
            (source,), (relu,) = node.all_input_nodes, node.users
            relu.replace_all_uses_with(node)
            node.replace_input_with(source, relu)
            relu.replace_input_with(node, source)
            relu.append(node)
