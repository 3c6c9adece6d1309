"""What a tensor of an ONNX model can be while the model is walked."""

from dataclasses import dataclass

import numpy as np

from esbflow.lowering.engine_layer import OpenLayer
from esbflow.lowering.lookup import entries
from esbflow.lowering.nodes import Stored
from esbflow.lowering.view import shape_of
from esbflow.numbers import Format


@dataclass(frozen=True, eq=False)
class Constant:
    """Known numbers, of whatever shape."""

    value: np.ndarray


@dataclass(frozen=True, eq=False)
class Quantized:
    """Known and quantized: `levels` times `scale`, which broadcasts. `form` is None if the engine has no such format."""

    levels: np.ndarray
    scale: np.ndarray
    form: Format | None

    @property
    def value(self) -> np.ndarray:
        """The real values, float64."""
        return self.levels * self.scale.astype(np.float64)


KNOWN = (Constant, Quantized)
"""What is the same for every image."""

@dataclass(frozen=True, eq=False)
class Image:
    """The model's input, or an elementwise function of it: float32 (c, 256), a real value for each value of a pixel."""

    values: np.ndarray
    shape: tuple


@dataclass(frozen=True, eq=False)
class Open(OpenLayer):
    """An open layer whose output of `shape` is pooled, repeated or chosen from after it was clipped.

    In the graph these nodes come after rounding: `after` has, for each, its shape and a function that makes it of a name and
    the stored tensor that it reads. Rounding and clipping are done to each value by itself and keep the order of values, so
    that it makes no difference.
    """

    shape: tuple = ()
    after: tuple = ()
    slope: np.ndarray | None = None  # (c,) of what is below zero, in a LeakyRelu or PRelu

    @property
    def is_linear(self) -> bool:
        """Whether nothing but gain and offset has been applied."""
        return not self.after and self.slope is None and super().is_linear

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of what the last node after the layer makes."""
        return self.after[-1][0] if self.after else self.shape

    def is_multiple_of(self, step: float) -> bool:
        """Whether every value that it can have is a whole number of steps."""
        factors = np.concatenate([self.gain, self.offset, *(() if self.residual is None else (self.residual_gain,))]) / step
        return self.is_linear and bool(np.abs(factors - np.rint(factors)).max() < 1e-4)


@dataclass(frozen=True, eq=False)
class Function:
    """A function of single values, of a stored tensor: float32 (256,), a real value for each integer of 8 bits, as the table
    of a Lookup has them. Nodes come `after` it as after an Open: pools keep the order of values, rounded or not."""

    source: Stored
    values: np.ndarray
    after: tuple = ()

    @classmethod
    def identity(cls, source: Stored) -> "Function":
        """The stored tensor itself as a function."""
        return cls(source, (entries(source.form) * source.scale).astype(np.float32))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of what the last node after the table makes."""
        return self.after[-1][0] if self.after else self.source.shape


@dataclass(frozen=True, eq=False)
class Table:
    """Of a stored tensor that is a Lookup: what it looks up, and the table, int64 (256,)."""

    source: Stored
    table: np.ndarray


@dataclass(frozen=True, eq=False)
class Joined:
    """Several tensors, their channels in order, that do not share format and scale yet."""

    parts: tuple

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of all parts together."""
        return (sum(shape_of(part)[0] for part in self.parts), *shape_of(self.parts[0])[1:])


@dataclass(frozen=True, eq=False)
class Codes:
    """Between QuantizeLinear and DequantizeLinear: the tensor, and the scale and zero point it was coded with."""

    value: object
    scale: np.ndarray
    zero_point: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the tensor."""
        return shape_of(self.value)
