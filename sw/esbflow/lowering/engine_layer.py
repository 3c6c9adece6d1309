"""One engine layer before and after it is closed: real coefficients first, then the integers m, n, b and s.

The exporter of torch models and the importer of ONNX models collect what surrounds a convolution (batch norm, bias,
residual) in an `OpenLayer` and close it here, so that both round alike.
"""

from dataclasses import dataclass, replace

import numpy as np

from esbflow.graph import ir
from esbflow.graph.bounds import SumRange, factors, sum_range
from esbflow.graph.errors import GraphError
from esbflow.lowering.nodes import Stored
from esbflow.lowering.snap import snap_weights
from esbflow.lowering.thresholds import exact_thresholds
from esbflow.numbers import Format

OFFSET_LIMIT = ir.B_LIMIT * 0.98
"""The largest b that is chosen: the compiler adds m times small sums of weights, so that it needs some room."""


@dataclass(frozen=True, eq=False)
class OpenLayer:
    """An engine layer that no quantizer has closed yet: y = gain*acc + residual_gain*r + offset, real, per channel.

    node : class of the graph's node to be. source : what acc sums over. fields : the node's, weights among them.
    gain, offset, residual_gain : float64 (c,). low, high : what y is clipped to: 0 and infinity by a ReLU.
    """

    node: type
    name: str
    source: Stored
    fields: dict
    gain: np.ndarray
    offset: np.ndarray
    residual: Stored | None = None
    residual_gain: np.ndarray | None = None
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def copy_of(cls, stored: Stored, name: str = "", **more) -> "OpenLayer":
        """A Requantize that has changed nothing yet."""
        channels = stored.shape[0]
        return cls(ir.Requantize, name, stored, {}, np.full(channels, stored.scale), np.zeros(channels), **more)

    @classmethod
    def average_of(cls, stored: Stored, name: str, kernel: tuple, stride: tuple, padding: tuple, **more) -> "OpenLayer":
        """An average pool; zeros around the map count as pixels."""
        channels = stored.shape[0]
        return cls(ir.AvgPool2d, name, stored, dict(kernel=kernel, stride=stride, padding=padding),
                   np.full(channels, stored.scale / (kernel[0] * kernel[1])), np.zeros(channels), **more)

    @property
    def is_linear(self) -> bool:
        """Whether nothing but gain and offset has been applied."""
        return self.low == -np.inf and self.high == np.inf

    @property
    def is_copy(self) -> bool:
        """Whether it is a stored tensor, scaled and shifted, and nothing else."""
        return self.node is ir.Requantize and self.residual is None and self.is_linear

    def plus(self, other: "OpenLayer") -> "OpenLayer | None":
        """The sum of two layers. One must be a stored tensor, scaled and shifted, which becomes the residual of the other: a
        convolution, or a stored tensor too. None if the engine has no such sum."""
        layer, added = (other, self) if self.is_copy and not other.is_copy else (self, other)
        adds = layer.node in (ir.Requantize, ir.Conv2d) and layer.residual is None and layer.is_linear
        if not (adds and added.is_copy):
            return None
        return replace(layer, node=ir.Add if layer.node is ir.Requantize else layer.node, residual=added.source,
                       residual_gain=added.gain, offset=layer.offset + added.offset)

    def affine(self, factor: np.ndarray, shift: np.ndarray) -> "OpenLayer":
        """factor * y + shift, float64 (c,)."""
        return replace(self, gain=self.gain * factor, offset=self.offset * factor + shift,
                       residual_gain=None if self.residual is None else self.residual_gain * factor)

    def sums(self) -> SumRange:
        """(c,) each: the smallest and the largest acc that can occur, zeros around the map among what is summed."""
        return sum_range(*factors(self.fields, len(self.gain)), self.source.form)

    @property
    def live_gain(self) -> np.ndarray:
        """The gain, 0 where all weights are zero: sums of such a channel say nothing of how fine a step must be."""
        low, high = self.sums()
        return np.where((low == 0) & (high == 0), 0.0, self.gain)

    def closed(self, form: Format, scale: float, where: str) -> dict:
        """Inputs, requantizer and weights of the node, once format and real `scale` of its output are known.

        Weights are moved to a scale that m expresses exactly (snap.py); where they stay as they are and nothing is added,
        b is chosen so that sums get the level that real coefficients give them (thresholds.py). Raises what `requantizer`
        raises.
        """
        gain, offset = self.live_gain / scale, self.offset / scale
        constants = requantizer(gain, offset, None if self.residual_gain is None else self.residual_gain / scale, where)
        fields, same = self.fields, np.ones(len(gain), bool)
        if "weight" in fields:
            weight, m, step = snap_weights(fields["weight"], fields["weight_format"], np.ldexp(gain, constants.s))
            same = (weight == fields["weight"]).reshape(len(gain), -1).all(axis=1)
            fields = dict(fields, weight=weight, weight_scale=fields["weight_scale"] * step)
            constants = replace(constants, m=m)
        if self.residual is None:
            exact = exact_thresholds(constants, gain, offset, form, *self.sums())
            constants = replace(constants, b=np.where(same, exact.b, constants.b))
        inputs = (self.source.name,) + ((self.residual.name,) if self.residual else ())
        return dict(fields, inputs=inputs, requantizer=constants)


def powers_of_two(gain: np.ndarray) -> np.ndarray:
    """float64 (c,): a power of two, with the sign, for each gain that is one but for the rounding of float32.

    >>> powers_of_two(np.array([0.2500001, -8.0, 0.3, 0.0]))
    array([ 0.25, -8.  ,  0.3 ,  0.  ])
    """
    power = np.sign(gain) * np.exp2(np.round(np.log2(np.where(gain == 0, 1, np.abs(gain)))))
    return np.where(np.abs(gain - power) <= 1e-5 * np.abs(gain), power, gain)


def one_a_channel(array: np.ndarray, rank: int, channels: int) -> np.ndarray | None:
    """float64 (channels,) of a constant that is combined with a tensor of `rank` axes; None if it differs from pixel to
    pixel, or would change the tensor's shape."""
    array = np.asarray(array, np.float64)
    sizes = (1,) * (rank - array.ndim) + array.shape
    if len(sizes) != rank or sizes[0] != 1 or any(size != 1 for size in sizes[2:]) or sizes[1] not in (1, channels):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,)).copy()


def requantizer(gain, offset, residual_gain=None, where: str = "layer") -> ir.Requantizer:
    """Integers with (acc*m + r*n + b) / 2**s as near to gain*acc + residual_gain*r + offset as the widths allow.

    All in output steps, float64 (c,). s is the largest shift in 0..40 with which m and n fit their widths, and b
    fits 98 % of its own: exact thresholds move b afterwards.

    Raises
    ------
    GraphError
        if a gain is beyond 2047 or an offset beyond 2**39 even with s = 0.

    >>> q = requantizer(np.array([0.125]), np.array([3.0]))
    >>> int(q.m[0]), int(q.b[0]), int(q.s[0])
    (1024, 24576, 13)
    """
    gain, offset = np.asarray(gain, np.float64), np.asarray(offset, np.float64)
    residual_gain = np.zeros_like(gain) if residual_gain is None else np.asarray(residual_gain, np.float64)
    if not (np.isfinite(gain).all() and np.isfinite(offset).all() and np.isfinite(residual_gain).all()):
        raise GraphError(f"{where}: a scale or bias is not finite; the model has diverged, or a batch norm has no variance")
    tiny = 1e-300
    widest = np.maximum(np.abs(gain), np.abs(residual_gain))
    room = np.minimum(np.log2(ir.M_LIMIT + 0.49) - np.log2(np.maximum(widest, tiny)),
                      np.log2(OFFSET_LIMIT) - np.log2(np.maximum(np.abs(offset), tiny)))
    if room.min() < 0:
        raise GraphError(f"{where}: a scale of {widest.max():.3g} or bias of {np.abs(offset).max():.3g} output steps does "
                         "not fit the requantizer; its output scale is far too small")
    s = np.clip(np.floor(room), 0, ir.S_MAX).astype(np.int64)
    # ldexp is exact; what is left is one rounding of each constant.
    m, n, b = (np.floor(np.ldexp(v, s) + 0.5).astype(np.int64) for v in (gain, residual_gain, offset))
    return ir.Requantizer(m=m, b=b, s=s, n=n)
