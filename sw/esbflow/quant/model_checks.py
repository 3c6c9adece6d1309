"""What `quantize` cannot look into: wrapped, scripted, compiled, prepared or quantized models, and weights that are not
plain."""

import torch
from torch import fx, nn
from torch.nn.utils import parametrize, prune

from esbflow.errors import BadValue
from esbflow.graph.errors import GraphError
from esbflow.quant.base import Quantizer, check_finite


def check_model(model: nn.Module) -> None:
    """One sentence, with the way out, for a model that cannot be traced as it is.

    Raises
    ------
    GraphError
        for what is no module, for models or parts of them behind a wrapper (DataParallel, torch.compile), in TorchScript, of
        torch.export, quantized already, or prepared by torch.ao.quantization; for weights that are computed anew in each
        pass (parametrizations, weight norm, pruning).
    ValueError
        for parameters and statistics that are NaN or infinite, not float32, or without values yet.
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}; make an object of it" if isinstance(model, type) else type(model).__name__
        raise GraphError(f"a model is a torch.nn.Module, not {given}")
    for name, module in model.named_modules():
        _check_wrapper(name, module)
        _check_observer(name, module)
        _check_computed(name, module)
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        _check_values(name, values)


def _check_wrapper(name, module):
    where, place = (name, f"model.{name}") if name else ("the model", "model")
    if isinstance(module, torch.jit.ScriptModule):
        raise GraphError(f"{where} is in TorchScript, which has no layers; give the nn.Module that it was made from")
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise GraphError(f"{where} is wrapped in {type(module).__name__}; give {place}.module, and wrap it after quantize()")
    if hasattr(module, "_orig_mod"):
        raise GraphError(f"{where} is wrapped by torch.compile; give {place}._orig_mod, and compile it after quantize()")
    if isinstance(module, Quantizer):
        raise GraphError(f"the model is quantized already ({where}); give the model in real numbers that it was made from")
    if isinstance(module, fx.GraphModule) and any(isinstance(n.target, torch._ops.OpOverload) for n in module.graph.nodes):
        raise GraphError(f"{where} comes of torch.export, which has no layers; give the nn.Module that it was made from")


def _check_observer(name, module):
    if type(module).__module__.startswith(("torch.ao.", "torch.quantization")) or hasattr(module, "activation_post_process"):
        raise GraphError(f"{name or 'the model'}: it was prepared or converted by torch.ao.quantization; give the model in "
                         "real numbers, as it was before")


def _check_computed(name, module):
    place = f"model.get_submodule({name!r})" if name else "model"
    where = name or "the model"
    if parametrize.is_parametrized(module):
        computed = next(iter(module.parametrizations))
        raise GraphError(f"{where}: its {computed} is computed in each pass; make it plain with torch.nn.utils."
                         f"parametrize.remove_parametrizations({place}, {computed!r})")
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            raise GraphError(f"{where}: its {hook._tensor_name} is pruned anew in each pass; make that permanent with "
                             f"torch.nn.utils.prune.remove({place}, {hook._tensor_name!r})")
        kind = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}.get(type(hook).__name__)
        if kind:
            raise GraphError(f"{where}: its {hook.name} is computed in each pass; make it plain with torch.nn.utils."
                             f"{kind}({place}, {hook.name!r})")


def _check_values(name, values):
    if nn.parameter.is_lazy(values):
        raise BadValue(f"{name} has no values yet; run the model once on images before quantizing it")
    if values.is_meta:
        raise BadValue(f"{name} has no values: it is on torch's meta device; load the weights before quantizing the model")
    if not values.is_floating_point():
        return
    if values.dtype != torch.float32:
        raise BadValue(f"{name} is {str(values.dtype).removeprefix('torch.')}; quantize the model in float32 "
                         "(model.float())")
    check_finite(values, name)
