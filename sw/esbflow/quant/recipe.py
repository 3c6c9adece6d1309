"""A recipe: which format each layer gets. Frozen, and refuses nonsense when it is made."""

import dataclasses
import fnmatch
import json
from dataclasses import dataclass

from esbflow.numbers import ESB, Format, Signed, Unsigned
from esbflow.quant.activation import ACTIVATION_SCALES
from esbflow.quant.esb import SCALE_MODES


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized. Formats are texts as `Format.parse` reads them.

    Parameters
    ----------
    weights, activations : formats of all layers; activations are those after a ReLU.
    signed_activations : format of stored tensors that no ReLU precedes.
    pooled_activations : format after average pooling.
    first_weights, last_weights : formats of the first and the last layer.
    input_bits : of the input's codes, 8 or less.
    output_bits : 16 or 32, of the last layer's integers.
    per_channel, scale_mode : of weights; see ESBWeightQuantizer.
    activation_scale : "learned" or "ema".
    overrides : ((name pattern, weight format), ...), the first match counts; names as in `named_modules()`.
    mean, std : of the input's normalisation, per channel, for pixels divided by 255.

    Raises
    ------
    ValueError
        for an unknown format, mode or width, saying which are known.
    """

    weights: str = "esb4.1"
    activations: str = "u4"
    signed_activations: str = "s8"
    pooled_activations: str = "u8"
    first_weights: str = "s8"
    last_weights: str = "s8"
    input_bits: int = 8
    output_bits: int = 16
    per_channel: bool = True
    scale_mode: str = "refined"
    activation_scale: str = "learned"
    overrides: tuple = ()
    mean: tuple = (0.0,)
    std: tuple = (1.0,)

    def __post_init__(self):
        texts = [getattr(self, name) for name in ("weights", "first_weights", "last_weights")]
        for text in texts + [text for _, text in self.overrides]:
            if not Format.parse(text).signed:
                raise ValueError(f"weights need a signed format, not {text}: negative ones would be lost")
        for name in ("activations", "signed_activations", "pooled_activations"):
            form = Format.parse(getattr(self, name))
            if not isinstance(form, (ESB, Signed, Unsigned)) or not form.contains(0):
                raise ValueError(f"{name}: an activation format must contain zero, {form} does not")
        if Format.parse(self.activations).signed:
            raise ValueError(f"activations follow a ReLU and need an unsigned format, not {self.activations}")
        if not Format.parse(self.signed_activations).signed:
            raise ValueError(f"signed_activations needs a signed format, not {self.signed_activations}")
        if not 2 <= self.input_bits <= 8:
            raise ValueError(f"input_bits must be in 2..8, not {self.input_bits}")
        if self.output_bits not in (16, 32):
            raise ValueError(f"output_bits must be 16 or 32, not {self.output_bits}")
        if self.scale_mode not in SCALE_MODES:
            raise ValueError(f"scale_mode must be one of {', '.join(SCALE_MODES)}, not {self.scale_mode!r}")
        if self.activation_scale not in ACTIVATION_SCALES:
            raise ValueError(f"activation_scale must be one of {', '.join(ACTIVATION_SCALES)}, "
                             f"not {self.activation_scale!r}")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ValueError("mean and std need one entry a channel, and std must be positive")

    def weight_format(self, name: str, first: bool, last: bool) -> Format:
        """The format of the layer called `name`."""
        for pattern, text in self.overrides:
            if fnmatch.fnmatch(name, pattern):
                return Format.parse(text)
        return Format.parse(self.first_weights if first else self.last_weights if last else self.weights)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        fields = json.loads(text)
        for name in ("overrides", "mean", "std"):
            fields[name] = tuple(tuple(v) if isinstance(v, list) else v for v in fields.get(name, ()))
        return cls(**fields)
