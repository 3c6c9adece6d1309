"""What a quantizer of ONNX or QONNX says: its number format, the real value of one level, and how it rounds.

Three families: linear (QuantizeLinear, Quant), floating point (FloatQuant), and bipolar (BipolarQuant). Codes with a zero
point are taken as code - zero point, so that level 0 is real zero.
"""

from dataclasses import dataclass

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.numbers import ESB, Binary, Format, Signed, Unsigned

ROUNDINGS = {"ROUND": "nearest", "HALF_EVEN": "nearest", "HALF_UP": "nearest", "HALF_DOWN": "nearest", "FLOOR": "floor"}
"""Of QONNX's rounding modes those that the requantizer can do; which way ties go is the only difference."""


class Inexpressible(GraphError):
    """The levels of a quantizer are no number format of this project."""


class NoFormat(GraphError):
    """What a clip leaves of a quantizer's levels is no number format of this project."""


def linear_format(low: int, high: int, where: str) -> Format:
    """The format of all integers low..high.

    Raises
    ------
    Inexpressible
        if the engine has none.

    >>> [str(linear_format(*ends, "q")) for ends in ((-8, 7), (0, 15), (-7, 7))]
    ['s4', 'u4', 'esb4.2']
    """
    bits = (high - low).bit_length()
    if low == 0 and high == (1 << bits) - 1 and 1 <= bits <= 32:
        return Unsigned(bits)
    if low == -(1 << bits - 1) and high == (1 << bits - 1) - 1 and bits <= 32:
        return Signed(bits)
    if low == -high and high == (1 << bits - 1) - 1 and 2 <= bits <= 31:
        return ESB(bits, bits - 2)  # one exponent bit: every integer of the range, without the lowest
    raise Inexpressible(f"{where}: its zero point gives the levels {low}..{high}, which the engine does not have; quantize "
                        "activations symmetrically (ActivationSymmetric=True in onnxruntime, zero point 0 in QONNX), or "
                        "put a ReLU before")


@dataclass(frozen=True, eq=False)
class Quantization:
    """How a tensor is quantized.

    Attributes
    ----------
    form : None if the levels low..high are no format of the engine; `reason` then says so.
    scale : float32 array, the real value of one level; one element, or one a channel in the shape that broadcasts.
    low, high : smallest and largest level.
    rounding : "nearest" or "floor".
    shift : a zero point that is added before rounding (QONNX); onnx rounds first. It matters for ties alone.
    """

    form: Format | None
    scale: np.ndarray
    low: int
    high: int
    rounding: str = "nearest"
    shift: float = 0.0
    reason: str = ""

    def levels(self, values: np.ndarray) -> np.ndarray:
        """int64 levels of real values, in float32 and with ties to even, as the executors of ONNX and QONNX have them."""
        ratio = np.asarray(values, np.float32) / self.scale
        if isinstance(self.form, Binary):
            return np.where(ratio >= 0, 1, -1)
        if isinstance(self.form, ESB) and self.form.exponent_bits > 1:
            return float_levels(ratio, self.form)
        shifted = np.clip(ratio + np.float32(self.shift), self.low + self.shift, self.high + self.shift)
        rounded = np.floor(shifted) if self.rounding == "floor" else np.rint(shifted)
        return (rounded - self.shift).astype(np.int64)

    @property
    def step(self) -> float:
        """The scale of a tensor that has one scale."""
        return float(self.scale.reshape(-1)[0])


def float_levels(ratio: np.ndarray, form: ESB) -> np.ndarray:
    """int64 levels nearest to `ratio`, ties to the even mantissa, clamped.

    >>> float_levels(np.array([2.5, 5.0, 7.0, 10.0, -99.0]), ESB(4, 1))
    array([  2,   4,   8,   8, -12])
    """
    exponent = np.frexp(ratio)[1] - 1 - form.significand
    step = np.ldexp(1.0, np.maximum(exponent, 0))
    rounded = step * np.rint(ratio / step)
    return np.clip(rounded, form.min, form.max).astype(np.int64)


def check_scale(scale, where: str) -> np.ndarray:
    """The scale as float32.

    Raises
    ------
    GraphError
        if one is not positive and finite.
    """
    scale = np.asarray(scale, np.float32)
    if scale.size == 0 or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise GraphError(f"{where}: its scale must be positive and finite; calibrate or train the model again")
    return scale


def linear(low: int, high: int, scale, where: str, zero_point: int = 0, rounding: str = "nearest",
           shift: float = 0.0) -> Quantization:
    """A linear quantizer with codes low..high."""
    scale, low, high = check_scale(scale, where), low - zero_point, high - zero_point
    try:
        form, reason = linear_format(low, high, where), ""
    except Inexpressible as error:
        form, reason = None, str(error)
    return Quantization(form, scale, low, high, rounding, shift, reason)


def floating(exponent_bits: int, mantissa_bits: int, bias: float, largest: float | None, scale, where: str) -> Quantization:
    """A floating-point quantizer with subnormals and without infinities: its values are those of an ESB format.

    The smallest step is scale * 2**(1 - bias - mantissa_bits). `largest` is in units of scale, None for the format's own.
    """
    form = ESB(1 + exponent_bits + mantissa_bits, mantissa_bits)
    unit = 2.0 ** (1 - bias - mantissa_bits)
    if largest is not None and largest < form.max * unit:
        raise GraphError(f"{where}: its largest value {largest:g} leaves out codes of {form}, which reaches "
                         f"{form.max * unit:g}; use a format whose codes are all finite values")
    return Quantization(form, check_scale(scale, where) * np.float32(unit), form.min, form.max)


def bipolar(scale, where: str) -> Quantization:
    """+scale for values of at least zero, else -scale."""
    return Quantization(Binary(), check_scale(scale, where), -1, 1)


def limited(form: Format, low: float, high: float, where: str) -> Format:
    """The format of the levels that are left when values are clipped to low..high steps before they are rounded.

    Raises
    ------
    NoFormat
        if there is none.

    >>> [str(limited(form, 0, high, "q")) for form, high in ((Signed(8), np.inf), (ESB(4, 1), np.inf), (Unsigned(4), 7))]
    ['u7', 'uesb3.1', 'u3']
    """
    first, last = (int(v) for v in form.nearest([low, high]))
    if (first, last) == (form.min, form.max):
        return form
    if isinstance(form, ESB) and form.exponent_bits > 1 and (first, last) == (0, form.max):
        return ESB(form.bits - 1, form.significand, signed=False)
    if not isinstance(form, Binary) and (not isinstance(form, ESB) or form.exponent_bits == 1) and last > first:
        try:
            return linear_format(first, last, where)
        except Inexpressible:
            pass
    raise NoFormat(f"{where}: a clip to {low:g}..{high:g} steps before it leaves levels {first}..{last} of {form}, which "
                   "are no format; let the quantizer's range be the clip's")
