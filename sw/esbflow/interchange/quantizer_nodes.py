"""QuantizeLinear and DequantizeLinear of ONNX; Quant, FloatQuant, BipolarQuant and Trunc of QONNX."""

from dataclasses import replace

import numpy as np

from esbflow.graph.errors import GraphError
from esbflow.interchange import quantization
from esbflow.interchange.node_checks import elementwise
from esbflow.interchange.onnx_file import attributes, title
from esbflow.interchange.quantization import ROUNDINGS, Quantization
from esbflow.interchange.values import Codes, Constant, Function, Image, Open, Quantized
from esbflow.lowering.view import shape_of

CODE_RANGES = {"int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15), "int8": (-128, 127), "uint8": (0, 255),
               "int16": (-(1 << 15), (1 << 15) - 1), "uint16": (0, (1 << 16) - 1), "int32": (-(1 << 31), (1 << 31) - 1)}
BEFORE_FINN = "import the QONNX model as it was before FINN's conversion"
EVEN = 1e-3
"""How far a threshold may be from where even steps would have it, in steps."""
_OUTPUT_TYPES = {2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 21: "uint4", 22: "int4"}  # numbers of onnx.TensorProto


def _known(node, value, what: str) -> np.ndarray:
    if not isinstance(value, (Constant, Quantized)):
        raise GraphError(f"{title(node)}: its {what} is computed at run time; the integer graph needs static quantization")
    return np.asarray(value.value)


def _whole(node, value, what: str) -> int:
    array = _known(node, value, what)
    if array.size != 1 or float(array.reshape(-1)[0]) != int(array.reshape(-1)[0]):
        raise GraphError(f"{title(node)}: its {what} must be one whole number")
    return int(array.reshape(-1)[0])


def _apply(walk, node, value, rule: Quantization):
    if isinstance(value, (Constant, Quantized)):
        return Quantized(rule.levels(value.value), rule.scale, rule.form)
    return walk.builder.quantize(value, rule, node.output[0], title(node))


def _rounding(node, options: dict) -> str:
    mode = options.get("rounding_mode", "ROUND").upper()
    if mode not in ROUNDINGS:
        raise GraphError(f"{title(node)}: the engine cannot round by {mode}; use rounding_mode ROUND")
    return ROUNDINGS[mode]


# -- QONNX ------------------------------------------------------------------------------------------------------
@elementwise
def quant(walk, node, value, scale, zero_point, bits):
    """QONNX's Quant: linear levels, or signs for one signed bit."""
    options, where = attributes(node), title(node)
    bits, scale = _whole(node, bits, "bit width"), _known(node, scale, "scale")
    zero = _whole(node, zero_point, "zero point")
    signed, narrow = options.get("signed", 1), options.get("narrow", 0)
    if not 1 <= bits <= 32:
        raise GraphError(f"{where}: its bit width must be in 1..32, not {bits}")
    if bits == 1 and signed:
        if zero:
            raise GraphError(f"{where}: a signed bit with zero point {zero} has no integer form; use zero point 0")
        return _apply(walk, node, value, quantization.bipolar(scale, where))
    rule = quantization.linear(*_ends(bits, signed, narrow), scale, where, zero, _rounding(node, options), zero)
    return _apply(walk, node, value, rule)


def _ends(bits: int, signed: int, narrow: int) -> tuple:
    return (-(1 << bits - 1) + narrow, (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1 - narrow)


@elementwise
def trunc(walk, node, value, scale, zero_point, bits, output_scale, output_bits=None):
    """Levels of `scale` to those of `output_scale`, a power of two as large: how Brevitas stores average pools. What is not
    a whole number of the former is rounded to one first, in a layer of its own where both steps differ."""
    options, where = attributes(node), title(node)
    if output_bits is None:
        raise GraphError(f"{where}: a Trunc without an output scale is of QONNX's first version; export the model again "
                         "with a newer Brevitas")
    if _whole(node, zero_point, "zero point"):
        raise GraphError(f"{where}: a Trunc with a zero point has no integer form; use zero point 0")
    fine, coarse = (quantization.check_scale(_known(node, v, what), where)
                    for v, what in ((scale, "scale"), (output_scale, "output scale")))
    power = np.log2(float(coarse.max()) / float(fine.max()))
    if fine.size != 1 or coarse.size != 1 or not 0 <= round(power) < 32 or abs(power - round(power)) > 1e-5:
        raise GraphError(f"{where}: its output scale must be its scale times a power of two, one for the whole tensor")
    signed, narrow = options.get("signed", 1), options.get("narrow", 0)
    ends = _ends(_whole(node, output_bits, "output bit width"), signed, narrow)
    layer, rounding = walk.builder.open(value, where), _rounding(node, options)
    if round(power) == 0:
        rounding = "nearest"
    elif not layer.is_multiple_of(float(fine.max())):
        whole = quantization.linear(*_ends(_whole(node, bits, "bit width"), signed, 0), fine, where)
        layer = walk.builder.quantize(layer, whole, f"{node.output[0]}_whole", where)
    return _apply(walk, node, layer, quantization.linear(*ends, coarse, where, rounding=rounding))


@elementwise
def float_quant(walk, node, value, scale, exponent, mantissa, bias, largest=None):
    """QONNX's FloatQuant: levels of an ESB format."""
    options, where = attributes(node), title(node)
    if not options.get("saturation", 1) or not options.get("has_subnormal", 0):
        raise GraphError(f"{where}: the engine's floating point saturates and has subnormals; use saturation=1 and "
                         "has_subnormal=1")
    if ROUNDINGS.get(options.get("rounding_mode", "ROUND").upper()) != "nearest":
        raise GraphError(f"{where}: the engine rounds floating point to nearest only; use rounding_mode ROUND")
    exponent, mantissa = _whole(node, exponent, "exponent width"), _whole(node, mantissa, "mantissa width")
    limit = None if largest is None else float(_known(node, largest, "largest value").reshape(-1)[0])
    try:
        rule = quantization.floating(exponent, mantissa, _whole(node, bias, "exponent bias"), limit,
                                     _known(node, scale, "scale"), where)
    except GraphError:
        raise
    except ValueError as error:
        raise GraphError(f"{where}: {exponent} exponent and {mantissa} mantissa bits are no ESB format ({error})") from None
    return _apply(walk, node, value, rule)


@elementwise
def bipolar_quant(walk, node, value, scale):
    """QONNX's BipolarQuant: signs times a scale."""
    return _apply(walk, node, value, quantization.bipolar(_known(node, scale, "scale"), title(node)))


def multi_threshold(walk, node, value, thresholds):
    """FINN's: out_scale * (how many thresholds of its channel a value reaches) + out_bias. Where they step evenly that is a
    gain, an offset and a rounding down."""
    options, where = attributes(node), title(node)
    if options.get("data_layout", "NCHW") not in ("NCHW", "NC"):
        raise GraphError(f"{where}: its channels are last; import the model as it was before qonnx made them so")
    rows = np.atleast_2d(np.asarray(_known(node, thresholds, "thresholds"), np.float64))
    scale, bias, count = options.get("out_scale", 1.0), options.get("out_bias", 0.0), rows.shape[1]
    first, step = rows[:, 0], (rows[:, -1] - rows[:, 0]) / max(1, count - 1)
    if scale <= 0 or not np.isfinite(rows).all() or (count > 1 and (step <= 0).any()):
        raise GraphError(f"{where}: its thresholds do not rise; {BEFORE_FINN}")
    step = step if count > 1 else np.full(len(rows), scale)  # of one, any does
    if np.abs(rows - first[:, None] - step[:, None] * np.arange(count)).max(axis=1).max() > EVEN * step.min():
        raise GraphError(f"{where}: its thresholds do not step evenly, which no requantizer does; {BEFORE_FINN}")
    channels = shape_of(value)[0]
    if len(rows) not in (1, channels):
        raise GraphError(f"{where}: it has thresholds for {len(rows)} channels and its input has {channels}")
    low = bias / scale
    if count == 1 and low == -0.5:
        rule, gain, offset = quantization.bipolar(scale / 2, where), np.ones(1), -first
    else:
        if low != round(low):
            raise GraphError(f"{where}: its output has no level at zero; {BEFORE_FINN}")
        rule = quantization.linear(round(low), round(low) + count, scale, where, rounding="floor")
        if rule.form is None:
            raise GraphError(f"{where}: its levels {rule.low}..{rule.high} are no number format; {BEFORE_FINN}")
        gain, offset = scale / step, scale * (1 - first / step) + bias
    gain, offset = (np.broadcast_to(v, (channels,)).astype(np.float64) for v in (gain, offset))
    if isinstance(value, Image):
        value = replace(value, values=(value.values * gain[:, None] + offset[:, None]).astype(np.float32))
    else:
        layer = walk.builder.open(value, where)
        if not layer.is_linear:
            raise GraphError(f"{where}: it follows a ReLU, Clip or pool that is not quantized; {BEFORE_FINN}")
        value = layer.affine(gain, offset)
    return _apply(walk, node, value, rule)


# -- ONNX -------------------------------------------------------------------------------------------------------
def _along(node, array: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """A vector as an array that broadcasts along `axis` of a tensor of `rank` axes."""
    if array.size == 1:
        return array.reshape((1,) * rank)
    if array.ndim != 1:
        raise GraphError(f"{title(node)}: scales by blocks have no integer form; quantize by tensor or by channel")
    return array.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _codes(node, kind: str) -> tuple:
    if kind not in CODE_RANGES:
        raise GraphError(f"{title(node)}: codes of type {kind} have no integer form; quantize to int8 or uint8")
    return CODE_RANGES[kind]


@elementwise
def quantize_linear(walk, node, value, scale, zero_point=None):
    """ONNX's QuantizeLinear: codes of the levels and a zero point."""
    options, where = attributes(node), title(node)
    scale = quantization.check_scale(_known(node, scale, "scale"), where)
    if zero_point is None:
        kind, zeros = _OUTPUT_TYPES.get(options.get("output_dtype", 0) or 2, "float8"), np.zeros(1, np.int64)
    else:
        zeros = _known(node, zero_point, "zero point")
        kind, zeros = str(zeros.dtype), zeros.astype(np.int64).reshape(-1)
    low, high = _codes(node, kind)
    if isinstance(value, (Constant, Quantized)):
        array = np.asarray(value.value)
        scale, zeros = (_along(node, v, options.get("axis", 1), array.ndim) for v in (scale, zeros))
        codes = np.clip(np.rint(np.asarray(array, np.float32) / scale) + zeros, low, high).astype(np.int64)
        form = quantization.linear(low, high, scale, where, int(zeros.max())).form if np.ptp(zeros) == 0 else None
        return Codes(Quantized(codes - zeros, scale, form), scale.reshape(-1), int(zeros.reshape(-1)[0]))
    zero = int(zeros[0])
    rule = quantization.linear(low, high, scale, where, zero)
    if rule.form is None and isinstance(value, Open) and walk.only_feeds_output(node):
        # The host reads 32 bits just as well; nothing has to be rounded to codes that the engine does not have.
        walk.builder.notes.append(f"{where} is left out: zero point {zero} gives levels {rule.low}..{rule.high}")
        return Codes(value, scale.reshape(-1), zero)
    shifts = rule.form is None and isinstance(value, Open) and value.is_linear and scale.size == 1
    if shifts and walk.only_feeds_functions(node):
        return Codes(_shifted_codes(walk, node, value, rule), scale.reshape(-1), zero)
    return Codes(_apply(walk, node, value, rule), scale.reshape(-1), zero)


def _shifted_codes(walk, node, value: Open, rule: Quantization) -> Function:
    """Levels low..high that are no format, for functions alone: stored less the lowest, in 8 bits without sign. A table
    gives each of them the value that it stands for."""
    where, one = title(node), np.ones(len(value.gain))
    shifted = value.affine(one, -rule.low * rule.step * one)
    stored = walk.builder.quantize(shifted, quantization.linear(0, 255, rule.scale, where), node.output[0], where)
    return Function(stored, ((np.arange(256) + rule.low) * rule.step).astype(np.float32))


@elementwise
def dequantize_linear(walk, node, value, scale, zero_point=None):
    """ONNX's DequantizeLinear: the tensor that codes stand for, constant weights among them."""
    options, where = attributes(node), title(node)
    scale = quantization.check_scale(_known(node, scale, "scale"), where)
    zeros = np.zeros(1) if zero_point is None else _known(node, zero_point, "zero point")
    zeros = zeros.astype(np.int64).reshape(-1)
    if isinstance(value, Codes):
        if not np.array_equal(scale.reshape(-1), value.scale) or zeros[0] != value.zero_point:
            raise GraphError(f"{where}: its scale or zero point is not that of the QuantizeLinear before it; quantize the "
                             "model again")
        return value.value
    if isinstance(value, Image) and walk.codes_in:
        rule = quantization.linear(*CODE_RANGES[walk.codes_in], scale, where, int(zeros[0]))
        if rule.form is None:
            raise GraphError(rule.reason)
        table = value.values.astype(np.int64) - zeros[0]
        return walk.builder.input(value.shape, rule.form, rule.step, table, where)
    if not isinstance(value, Constant):
        raise GraphError(f"{where}: its input is neither codes of a QuantizeLinear nor a constant; export the model in "
                         "QDQ format")
    low, high = _codes(node, str(value.value.dtype))
    rank = max(1, value.value.ndim)
    levels = value.value.astype(np.int64).reshape(value.value.shape or (1,))
    scale, zeros = (_along(node, v, options.get("axis", 1), rank) for v in (scale, zeros))
    form = quantization.linear(low, high, scale, where, int(zeros.max())).form if np.ptp(zeros) == 0 else None
    return Quantized(levels - zeros, scale, form)


@elementwise
def clip_codes(walk, node, codes, low=None, high=None):
    """Clip between QuantizeLinear and DequantizeLinear: so Brevitas writes fewer than 8 bits in its QCDQ format."""
    value, where = codes.value, title(node)
    known = value.levels if isinstance(value, Quantized) else np.array([value.form.min, value.form.max])
    first, last = (int(known.min()) if low is None else _whole(node, low, "minimum") - codes.zero_point,
                   int(known.max()) if high is None else _whole(node, high, "maximum") - codes.zero_point)
    rule = quantization.linear(first, last, codes.scale, where)
    if isinstance(value, Quantized):
        clipped = Quantized(np.clip(value.levels, first, last), value.scale, rule.form)
    else:
        clipped = walk.builder.quantize(value, rule, node.output[0], where)
    return Codes(clipped, codes.scale, codes.zero_point)


QUANTIZERS = {"Quant": quant, "IntQuant": quant, "FloatQuant": float_quant, "BipolarQuant": bipolar_quant,
              "Trunc": trunc, "MultiThreshold": multi_threshold,
              "QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear}
