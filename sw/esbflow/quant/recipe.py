"""A recipe: which format each layer gets. Frozen, and refuses nonsense when it is made."""

import dataclasses
import fnmatch
import json
from dataclasses import dataclass

import numpy as np
from torch import nn

from esbflow.numbers import Signed, Unsigned
from esbflow.quant.activation import ACTIVATION_SCALES, ActivationQuantizer, InputQuantizer
from esbflow.quant.esb import SCALE_MODES
from esbflow.quant.last_layer import WIDTHS
from esbflow.quant.methods import Options, activation_quantizer, weight_quantizer
from esbflow.quant.weights import WeightQuantizer


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized. Formats and methods are texts as `esbflow.quant.methods` reads them.

    Parameters
    ----------
    weights, activations : of all layers; activations are those after a ReLU.
    signed_activations : format of stored tensors that no ReLU precedes.
    pooled_activations : format after average pooling.
    residual_activations : format in which a rectified tensor is stored that an addition or an average pool reads; layers
        that multiply read it rounded once more, to `activations`. None is `activations` alone. It costs the engine a
        requantization, and is what published results at 2 and 3 bits do (their shortcuts are real numbers).
    first_weights, last_weights : of the first and the last layer.
    input_bits : of the input's codes, 1 to 8; they are unsigned where no mean is above 0, so that no pixel is negative, else
        signed, of 2 bits or more.
    output_bits : 16 or 32, of the last layer's integers; None takes 16 where they hold the finest step that the engine has
        for the layer (`esbflow.quant.last_layer`), else 32.
    per_channel : one scale an output channel or one a tensor; None is as each method was published (ESB: a channel).
    scale_mode : of weights given as a format; see ESBWeightQuantizer.
    activation_scale : "learned" or "ema", of activations given as a format.
    overrides : ((name pattern, weights), ...), the first match counts; names as in `named_modules()`.
    activation_overrides : ((name pattern, activations), ...); names of layers whose output is stored, as in
        `named_modules()`, or of operations as torch.fx calls them.
    exclude : name patterns of layers that stay real. Such a model trains and evaluates, but has no integer form.
    mean, std : of the input's normalisation, per channel, for pixels divided by 255.

    Raises
    ------
    ValueError
        for an unknown format, method, mode or width, saying which are known.
    """

    weights: str = "esb4.1"
    activations: str = "u4"
    signed_activations: str = "s8"
    pooled_activations: str = "u8"
    residual_activations: str | None = None
    first_weights: str = "s8"
    last_weights: str = "s8"
    input_bits: int = 8
    output_bits: int | None = None
    per_channel: bool | None = None
    scale_mode: str = "refined"
    activation_scale: str = "learned"
    overrides: tuple = ()
    activation_overrides: tuple = ()
    exclude: tuple = ()
    mean: tuple = (0.0,)
    std: tuple = (1.0,)

    def __post_init__(self):
        options = Options(self.per_channel, self.scale_mode)
        if self.scale_mode not in SCALE_MODES:
            raise ValueError(f"scale_mode must be one of {', '.join(SCALE_MODES)}, not {self.scale_mode!r}")
        for text in (self.weights, self.first_weights, self.last_weights, *(text for _, text in self.overrides)):
            weight_quantizer(text, options)
        for text in (self.activations, self.signed_activations, self.pooled_activations,
                     self.residual_activations or self.activations, *(text for _, text in self.activation_overrides)):
            activation_quantizer(text)
        for text in (self.activations, self.residual_activations):
            if text and activation_quantizer(text).form.signed:
                raise ValueError(f"activations follow a ReLU and need an unsigned format, not {text}")
        if not activation_quantizer(self.signed_activations).form.signed:
            raise ValueError(f"signed_activations needs a signed format, not {self.signed_activations}")
        if self.output_bits not in (None, *WIDTHS):
            raise ValueError(f"output_bits must be 16 or 32, not {self.output_bits}")
        if self.activation_scale not in ACTIVATION_SCALES:
            raise ValueError(f"activation_scale must be one of {', '.join(ACTIVATION_SCALES)}, "
                             f"not {self.activation_scale!r}")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError("mean and std need one entry a channel, and std must be positive")
        least = 2 if max(self.mean) > 0 else 1
        if not least <= self.input_bits <= 8:
            raise ValueError(f"input_bits must be in {least}..8, not {self.input_bits}")

    def weight_quantizer(self, name: str, first: bool, last: bool) -> WeightQuantizer:
        """The quantizer of the weights of the layer called `name`."""
        text = _match(self.overrides, name) or (
            self.first_weights if first else self.last_weights if last else self.weights)
        return weight_quantizer(text, Options(self.per_channel, self.scale_mode), f"layer {name}: weight")

    def activation_quantizer(self, text: str, names: tuple) -> ActivationQuantizer:
        """The quantizer of a stored tensor: `text`, unless an override matches one of its names."""
        for name in names:
            text = _match(self.activation_overrides, name) or text
        return activation_quantizer(text, self.activation_scale, f"activation {names[0]}")

    def input_quantizer(self) -> InputQuantizer:
        """The quantizer of the image: its largest level is the largest magnitude that a pixel has."""
        form = Signed(self.input_bits) if max(self.mean) > 0 else Unsigned(self.input_bits)
        largest = max(max(abs(0 - m), abs(1 - m)) / s for m, s in zip(self.mean, self.std))
        return InputQuantizer(form, largest / form.max)

    def excludes(self, name: str) -> bool:
        """Whether the layer stays real."""
        return any(fnmatch.fnmatch(name, pattern) for pattern in self.exclude)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        fields = json.loads(text)
        for name in ("overrides", "activation_overrides", "exclude", "mean", "std"):
            fields[name] = tuple(tuple(v) if isinstance(v, list) else v for v in fields.get(name, ()))
        return cls(**fields)


def _match(overrides: tuple, name: str) -> str | None:
    return next((text for pattern, text in overrides if fnmatch.fnmatch(name, pattern)), None)


def recipe_of(model: nn.Module) -> tuple:
    """(recipe, shape of images or None) that `quantize` made a model with; (None, None) of any other."""
    inputs = (module for module in model.modules() if isinstance(module, InputQuantizer))
    return next(((module.recipe, module.shape) for module in inputs), (None, None))


def by_channel(values: tuple, channels: int) -> np.ndarray:
    """float64 (channels,): a mean or deviation a channel, from one for all or one each.

    Raises
    ------
    ValueError
        for any other number of values.

    >>> by_channel((0.5,), 3)
    array([0.5, 0.5, 0.5])
    """
    if len(values) not in (1, channels):
        raise ValueError(f"mean and std have {len(values)} entries and images {channels} channels; give one for all or one "
                         "each")
    return np.resize(np.asarray(values, np.float64), channels)
