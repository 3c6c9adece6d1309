"""A recipe: which format each layer gets. Frozen, and refuses nonsense when it is made."""

import dataclasses
import fnmatch
import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from esbflow.errors import BadValue
from esbflow.graph.doubts import few_codes, fewest_codes
from esbflow.lowering.last_layer import WIDTHS
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.activation import ACTIVATION_SCALES, ActivationQuantizer, InputQuantizer
from esbflow.quant.methods.esb import SCALE_MODES
from esbflow.quant.methods.registry import Options, activation_quantizer, weight_quantizer
from esbflow.quant.weights import WeightQuantizer
from esbflow.suggest import nearest

TEXTS = {"weights": "s4", "activations": "u4", "signed_activations": "s8", "pooled_activations": "u8",
         "residual_activations": "u8", "first_weights": "s8", "last_weights": "s8"}
"""Fields that hold a format or a method, with an example of each."""


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized. Formats and methods are texts as `esbflow.quant.methods.registry` reads them.

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
        for the layer (`esbflow.lowering.last_layer`), else 32.
    per_channel : one scale an output channel or one a tensor; None is as each method was published (ESB: a channel).
    scale_mode : of weights given as a format; see ESBWeightQuantizer.
    power_of_two : every scale is a power of two, and that of weights once a batch norm behind them is folded in: for engines
        whose requantizers shift (`requantizer = "shift"`). Weights are given as formats then, and `scale_mode` is left out.
    activation_scale : "learned" or "ema", of activations given as a format.
    overrides : {name pattern: weights}, or such pairs; the first match counts. Layers are named as in `named_modules()`,
        and as `esbflow inspect` shows them.
    activation_overrides : {name pattern: activations}, or such pairs, of what layers store: names of layers with weights,
        and of operations without (see names.py). `NAME_low` is what multiplies reads of a tensor that is stored twice.
    exclude : name pattern, or several, of layers that stay real. Such a model trains and evaluates, but has no integer form.
    mean, std : of the input's normalisation, per channel, for pixels divided by 255. The input's codes are what a pixel can
        be, so a mean far outside 0..1 leaves next to none, and is refused.

    Patterns are those of `fnmatch`. `quantize` refuses one that matches nothing.

    Raises
    ------
    ValueError
        for an unknown format, method, mode or width, saying which are known; for a mean that leaves the input no codes.
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
    power_of_two: bool = False
    activation_scale: str = "learned"
    overrides: tuple = ()
    activation_overrides: tuple = ()
    exclude: tuple = ()
    mean: tuple = (0.0,)
    std: tuple = (1.0,)

    def __post_init__(self):  # noqa: C901 - a sentence for each field that can be wrong
        for field in TEXTS:
            text = getattr(self, field)
            if not isinstance(text, str) and (text is not None or field != "residual_activations"):
                raise BadValue(f"{field} must be the text of a format or method, such as {TEXTS[field]!r}, not {text!r}")
        for field in ("overrides", "activation_overrides"):
            object.__setattr__(self, field, _with_texts(field, pairs(field, getattr(self, field))))
        object.__setattr__(self, "exclude", _patterns(self.exclude))
        for field in ("mean", "std"):
            object.__setattr__(self, field, _numbers(field, getattr(self, field)))
        options = self._options
        if self.scale_mode not in SCALE_MODES:
            raise BadValue(f"scale_mode must be one of {', '.join(SCALE_MODES)}, not {self.scale_mode!r}")
        for text in (self.weights, self.first_weights, self.last_weights, *(text for _, text in self.overrides)):
            quantizer = weight_quantizer(text, options)
            if self.power_of_two and not getattr(quantizer, "power_of_two", False):
                raise BadValue(f"power_of_two: the method {text!r} has scales of its own; use a format (esb4.1, s8)")
        if self.power_of_two and self.scale_mode != "refined":
            raise BadValue(f"power_of_two chooses the scales of weights; leave scale_mode {self.scale_mode!r} out")
        if self.power_of_two and self.per_channel is False:
            raise BadValue("power_of_two needs a scale for each channel; leave per_channel out")
        for text in (self.activations, self.signed_activations, self.pooled_activations,
                     self.residual_activations or self.activations, *(text for _, text in self.activation_overrides)):
            activation_quantizer(text, power_of_two=self.power_of_two)
        for text in (self.activations, self.residual_activations):
            if text and activation_quantizer(text).form.signed:
                raise BadValue(f"activations follow a ReLU and need an unsigned format, not {text}")
        if not activation_quantizer(self.signed_activations).form.signed:
            raise BadValue(f"signed_activations needs a signed format, not {self.signed_activations}")
        if self.output_bits not in (None, *WIDTHS):
            raise BadValue(f"output_bits must be 16 or 32, not {self.output_bits}")
        if self.activation_scale not in ACTIVATION_SCALES:
            raise BadValue(f"activation_scale must be one of {', '.join(ACTIVATION_SCALES)}, "
                             f"not {self.activation_scale!r}")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise BadValue("mean and std need one entry a channel, and std must be positive")
        least = 2 if max(self.mean) > 0 else 1
        if type(self.input_bits) is not int or not least <= self.input_bits <= 8:
            raise BadValue(f"input_bits must be an integer in {least}..8, not {self.input_bits!r}")
        form = self.input_quantizer().form
        for mean, std, row in zip(self.mean, self.std, self.input_table(len(self.mean))):
            codes = fewest_codes(row[None])
            if codes < few_codes(form):
                raise BadValue(f"mean {mean:g} and std {std:g} leave the input {codes} codes of {2 ** form.bits}: they "
                                 "are of pixels divided by 255, so that a mean is in 0..1; divide both by 255")

    def weight_quantizer(self, name: str, first: bool, last: bool, also: tuple = ()) -> WeightQuantizer:
        """The quantizer of the weights of the layer called `name`, and by the names in `also`."""
        text = _match(self.overrides, (name, *also)) or (
            self.first_weights if first else self.last_weights if last else self.weights)
        return weight_quantizer(text, self._options, f"layer {name}: weight")

    @property
    def _options(self) -> Options:
        return Options(self.per_channel, "pow2" if self.power_of_two else self.scale_mode)

    def activation_quantizer(self, text: str, names: tuple) -> ActivationQuantizer:
        """The quantizer of a stored tensor: `text`, unless an override matches one of its names."""
        text = _match(self.activation_overrides, names) or text
        return activation_quantizer(text, self.activation_scale, f"activation {names[0]}", self.power_of_two)

    def input_quantizer(self) -> InputQuantizer:
        """The quantizer of the image: its largest level is the largest magnitude that a pixel has, or, of the powers of two,
        at most one step less."""
        form = Signed(self.input_bits) if max(self.mean) > 0 else Unsigned(self.input_bits)
        largest = max(max(abs(0 - m), abs(1 - m)) / s for m, s in zip(self.mean, self.std))
        return InputQuantizer(form, 2.0 ** math.ceil(math.log2(largest / (form.max + 1))) if self.power_of_two
                              else largest / form.max)

    def input_table(self, channels: int) -> np.ndarray:
        """int64 (channels, 256): the input's code for each value of a pixel."""
        quantizer = self.input_quantizer()
        mean, std = (by_channel(values, channels) for values in (self.mean, self.std))
        real = (np.arange(256)[None, :] / 255 - mean[:, None]) / std[:, None]
        return quantizer.form.nearest(real / quantizer.real_scale())

    def excludes(self, *names: str) -> bool:
        """Whether the layer of these names stays real."""
        return any(_matches(pattern, names) for pattern in self.exclude)

    def check_names(self, layers: list, stored: list) -> None:
        """Every pattern must match something.

        Parameters
        ----------
        layers, stored : the names of each layer with weights, and of each stored tensor, the one that is shown first.

        Raises
        ------
        ValueError
            naming the pattern, and what there is to match.
        """
        weighted = [pattern for pattern, _ in self.overrides], layers, "layer with weights"
        tensors = [pattern for pattern, _ in self.activation_overrides], stored, "stored tensor"
        for field, (patterns, known, what) in (("overrides", weighted), ("exclude", (self.exclude, *weighted[1:])),
                                               ("activation_overrides", tensors)):
            for pattern in patterns:
                if not any(_matches(pattern, names) for names in known):
                    raise BadValue(f"{field}: no {what} is called {pattern!r}; there are "
                                   + ", ".join(names[0] for names in known)
                                   + nearest(pattern, [names[0] for names in known]))

    def to_json(self) -> str:
        """As models and graphs keep it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """What `to_json` gave; raises ValueError for values that no recipe takes."""
        fields = json.loads(text)
        return cls(**fields)


def pairs(field: str, given) -> tuple[tuple[str, Any], ...]:
    """((name pattern, what), ...) of a dict or of pairs.

    Raises
    ------
    ValueError
        for anything else.

    >>> pairs("overrides", {"conv1": "s8"})
    (('conv1', 's8'),)
    """
    found: Any = tuple(given.items()) if isinstance(given, dict) else given
    try:
        if isinstance(found, str):
            raise TypeError
        found = tuple((pattern, what) for pattern, what in found)
    except (TypeError, ValueError):
        found = ((None, None),)
    if not all(isinstance(pattern, str) for pattern, _ in found):
        raise BadValue(f"{field} must be a dict of name patterns, {{'conv1': ...}}, or pairs of them, not {given!r}")
    return found


def _with_texts(field: str, given: tuple) -> tuple:
    for pattern, text in given:
        if not isinstance(text, str):
            raise BadValue(f"{field}: {pattern!r} needs the text of a format or method, such as 's8', not {text!r}")
    return given


def _patterns(given) -> tuple:
    try:
        found = (given,) if isinstance(given, str) else tuple(given)
    except TypeError:
        found = (None,)
    if not all(isinstance(pattern, str) for pattern in found):
        raise BadValue(f"exclude must be a name pattern or several, not {given!r}")
    return found


def _numbers(field: str, given) -> tuple:
    try:
        found = tuple(float(v) for v in np.atleast_1d(given))
    except (TypeError, ValueError):
        found = ()
    if not found or not np.isfinite(found).all():
        raise BadValue(f"{field} must be finite numbers, one for all channels or one each, not {given!r}")
    return found


def _matches(pattern: str, names: tuple) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for name in names)


def _match(overrides: tuple, names: tuple) -> str | None:
    return next((text for pattern, text in overrides if _matches(pattern, names)), None)


class MadeWith(NamedTuple):
    """The recipe that a model was quantized with and the shape of its images, each None if it has none."""

    recipe: Recipe | None
    shape: tuple | None


def recipe_of(model: nn.Module) -> MadeWith:
    """(recipe, shape of images or None) that `quantize` made a model with; (None, None) of any other."""
    inputs = (module for module in model.modules() if isinstance(module, InputQuantizer))
    return next((MadeWith(module.recipe, module.shape) for module in inputs), MadeWith(None, None))


class Normalisation(NamedTuple):
    """Mean and standard deviation of the images that a model takes, one each or one a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalisation_of(model: nn.Module, mean=None, std=None) -> Normalisation:
    """(mean, std) of the images that a model takes: its recipe's, or what it was trained with, or the given, or 0 and 1.

    Raises
    ------
    ValueError
        if what is given is not what the model has.
    """
    recipe, _ = recipe_of(model)
    own = (recipe.mean, recipe.std) if recipe else getattr(model, _NORMALISATION, None)
    given = [None if v is None else _numbers(field, v) for field, v in (("mean", mean), ("std", std))]
    if own is None:
        return Normalisation(given[0] or (0.0,), given[1] or (1.0,))
    for field, v, known in zip(("mean", "std"), given, own):
        if v is not None and not _alike(v, known):
            raise BadValue(f"the model {'has a recipe' if recipe else 'was trained'} with {field} {_text(known)}, and "
                             f"{_text(v)} is given; leave mean and std out, or give the same")
    return Normalisation(*own)


def remember_normalisation(model: nn.Module, mean: tuple, std: tuple) -> None:
    """A model in real numbers, which has no recipe, keeps what its images were made with, for `quantize` and loops."""
    if recipe_of(model).recipe is None:
        setattr(model, _NORMALISATION, (mean, std))


def check_normalisation(model: nn.Module, recipe: Recipe) -> None:
    """ValueError if a model in real numbers was trained here with another mean or std than the recipe's."""
    for field, known in zip(("mean", "std"), getattr(model, _NORMALISATION, ())):
        if not _alike(known, getattr(recipe, field)):
            raise BadValue(f"the model was trained with {field} {_text(known)}, and the recipe has "
                             f"{_text(getattr(recipe, field))}; train and quantize with the same")


_NORMALISATION = "esbflow_normalisation"


def _alike(one: tuple, other: tuple) -> bool:
    """Whether two means, one for all channels or one each, are the same."""
    if len(one) != len(other) and 1 not in (len(one), len(other)):
        return False
    return np.allclose(one, other, rtol=1e-6, atol=1e-9)


def _text(values: tuple) -> str:
    return ", ".join(f"{v:g}" for v in values)


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
        raise BadValue(f"mean and std have {len(values)} entries and images {channels} channels; give one for all or one "
                         "each")
    return np.resize(np.asarray(values, np.float64), channels)
