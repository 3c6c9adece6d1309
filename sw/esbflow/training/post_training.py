"""Quantization without training, from a few hundred unlabelled images: scales by search, weights rounded so that outputs
stay, batch norms and biases corrected, and all of it tuned together by gradient if asked for.

Sources: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, sections 4.1
(equalize.py) and 4.2 (the empirical bias correction); Frantar et al., "GPTQ", ICLR 2023 (gptq.py); those of reconstruct.py.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from esbflow.errors import BadValue
from esbflow.quant.activation import ActivationQuantizer, least_error_scale, sampled
from esbflow.quant.quantize import quantize, real_layers
from esbflow.quant.recipe import Recipe, recipe_of
from esbflow.training import gptq
from esbflow.training.equalize import equalize
from esbflow.training.lockstep import has_weights, in_parts, walk
from esbflow.training.loop import calibrate, checked_images, normalise
from esbflow.training.reconstruct import reconstruct

ROUNDINGS = ("outputs", "nearest")


@dataclass(frozen=True)
class PostTraining:
    """What is done to a network that is not trained.

    Parameters
    ----------
    rounding : of weights: "outputs" keeps what a layer gives (GPTQ, on the inputs that the quantized layers before it give),
        "nearest" keeps the weights.
    ranges : of activations: "error" is the scale of least squared error on the images; a percentile (such as 99.9) puts the
        largest level at that percentile of the magnitudes.
    equalize : first share ranges of channels between neighbouring layers (cross-layer equalization).
    batch_norms : move the statistics of batch norms by what quantization has moved them.
    biases : shift each layer without a batch norm behind it by what quantization has moved its mean output.
    tune : times that the images then pass to tune weights, scales and norms together (reconstruct.py); 0 is without.

    Raises
    ------
    ValueError
        for an unknown rounding or range, naming the known ones, or a negative `tune`.
    """

    rounding: str = "outputs"
    ranges: str | float = "error"
    equalize: bool = False
    batch_norms: bool = True
    biases: bool = True
    tune: int = 0

    def __post_init__(self):
        if self.rounding not in ROUNDINGS:
            raise BadValue(f"rounding must be one of {', '.join(ROUNDINGS)}, not {self.rounding!r}")
        if self.ranges != "error" and (isinstance(self.ranges, str) or not 0 < self.ranges <= 100):
            raise BadValue(f"ranges must be error or a percentile above 0 and up to 100, not {self.ranges!r}")
        if self.tune < 0:
            raise BadValue(f"tune must be 0 or a number of passes over the images, not {self.tune}")


def post_train(model: nn.Module, recipe: Recipe, images: np.ndarray, how: PostTraining = PostTraining(), report=None,
               shape: tuple | None = None) -> fx.GraphModule:
    """Quantize a trained model by `recipe` with the help of unlabelled images; the model itself is left as it is.

    Parameters
    ----------
    model : a trained network in real numbers.
    images : uint8 (n, c, h, w), a few hundred. All go through a layer together: their largest map must fit into memory.
    report : called with a sentence at each stage, or None.
    shape : as for `quantize`.

    Returns the quantized model in eval mode, ready for `export`.

    Raises
    ------
    ValueError
        if there are no images.
    """
    say = report or (lambda _: None)
    images, model = checked_images(model, images, "calibrate on"), copy.deepcopy(model).eval()
    if how.equalize:
        # Layers of the traced model share the parameters of the copy.
        say(f"equalize {equalize(real_layers(model, shape))} pairs of layers")
    real, quantized = real_layers(copy.deepcopy(model), shape).eval(), quantize(model, recipe, shape).eval()
    say(f"calibrate on {len(images)} images")
    calibrate(quantized, images, recipe.mean, recipe.std)
    say("round and correct layer by layer")
    correct(quantized, real, images, how)
    if how.tune:
        reconstruct(quantized, real, images, recipe.mean, recipe.std, how.tune,
                    lambda done, error: say(f"tuned {done} of {how.tune} times: error {error:.4f}"))
    return quantized.eval()


@torch.no_grad()
def correct(model: fx.GraphModule, real: fx.GraphModule, images: np.ndarray, how: PostTraining) -> None:
    """Improve a calibrated model in place, layer by layer in the order of the network, each on the inputs that the layers
    before it, corrected by then, give."""
    recipe, _ = recipe_of(model)
    followed = {node.target for node in model.graph.nodes if _norm_follows(node, dict(model.named_modules()))}
    done = set()

    def visit(name, module, inputs, wanted):
        if name in done:
            return
        done.add(name)
        if type(module) is ActivationQuantizer and bool(module.seen):
            module.step.copy_(activation_scale(inputs, module, how.ranges))
        elif has_weights(module) and wanted is not None:
            if how.rounding == "outputs":
                gptq.round_weights(module, inputs)
            if how.biases and name not in followed:
                _correct_bias(module, in_parts(lambda _, args, __: module(*args), name, (inputs,), {}), wanted[1])
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.track_running_stats and how.batch_norms:
            _correct_norm(module, inputs, wanted[0], not recipe.power_of_two)

    walk(model, real, normalise(images, recipe.mean, recipe.std), visit)


def activation_scale(values: torch.Tensor, quantizer: ActivationQuantizer, ranges: str | float) -> torch.Tensor:
    """The scale () of values of any shape, by least squared error or by a percentile of magnitudes. Zeros keep the present
    one."""
    values = sampled(values, quantizer.form)
    if not values.any():
        return quantizer.step.detach()
    if ranges == "error":
        return least_error_scale(values, quantizer.form)
    place = max(1, round(len(values) * ranges / 100))
    reached = values.abs().kthvalue(place).values
    return (reached if reached > 0 else values.abs().max()) / quantizer.form.max


def _correct_norm(norm, inputs, wanted, gain: bool) -> None:
    """Move running mean and, if the norm's gain may change, variance by what quantization has moved them on the images.

    The difference of two networks on the same images is far less noisy than statistics estimated anew: on 300 CIFAR-10
    images those cost ResNet-20 five points, this gains.
    """
    (mean, variance), (real_mean, real_variance) = _moments(inputs), _moments(wanted)
    norm.running_mean += (mean - real_mean).float()
    if gain:
        norm.running_var *= ((variance + norm.eps) / (real_variance + norm.eps)).clamp(0.1, 10).float()


def _correct_bias(layer, found, wanted) -> None:
    """Add to the bias the mean that quantization took away."""
    shift = (_moments(wanted)[0] - _moments(found)[0]).float()
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(shift))
    layer.bias += shift


def _norm_follows(node, modules) -> bool:
    return any(user.op == "call_module" and isinstance(modules[user.target], nn.BatchNorm1d | nn.BatchNorm2d)
               for user in node.users)


def _moments(values) -> tuple:
    """(mean, variance) of each channel (c,), float64."""
    values = values.double()
    axes = [axis for axis in range(values.dim()) if axis != 1]
    mean = values.mean(dim=axes)
    return mean, (values.square().mean(dim=axes) - mean.square()).clamp(min=0)
