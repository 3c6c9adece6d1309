"""ONNX (QDQ) and QONNX -> the integer graph.

The model is walked once. Quantizers become tensors that the graph stores; what lies between two of them becomes one engine
layer, y = gain[c]*acc + residual_gain[c]*r + offset[c], whose real coefficients the requantizer takes with 12 bits. So the
result is not bit for bit what onnxruntime computes in float32: a value may be one step off (docs/interchange.md).
"""

from dataclasses import replace

import numpy as np
import onnx

from esbflow.graph import ir
from esbflow.graph.doubts import doubts, few_codes, fewest_codes, warn
from esbflow.graph.errors import GraphError
from esbflow.graph.validate import validate
from esbflow.interchange import channels_last, moves
from esbflow.interchange.functions import FUNCTIONS
from esbflow.interchange.handlers import HANDLERS
from esbflow.interchange.layer_nodes import LAYERS
from esbflow.interchange.layers import Builder
from esbflow.interchange.merge import merge_clamps
from esbflow.interchange.moves import MOVES
from esbflow.interchange.node_checks import check_attributes, check_inputs
from esbflow.interchange.onnx_file import QONNX_DOMAINS, Model, attributes, first_line, fold, read, sizes_of, title
from esbflow.interchange.quantizer_nodes import BEFORE_FINN, QUANTIZERS, clip_codes
from esbflow.interchange.shape_nodes import SHAPES
from esbflow.interchange.values import Codes, Constant, Image, Quantized
from esbflow.lowering.view import View
from esbflow.maps import map_shape

DAMAGE = (ValueError, LookupError, ArithmeticError)
"""What handlers raise on a node that onnx's checker lets through, but that does not have what its operator needs. Other
exceptions are faults of handlers, and keep their traceback."""

PIXEL_MAX = "esbflow.pixel_max"
"""Metadata of a model that `esbflow export` wrote: the real input of the brightest pixel."""

FIXES = {
    "LogSoftmax": "leave it to the host: cut it off, the largest value stays the largest",
    "ArgMax": "leave it to the host: cut it off",
    "Trunc": "use Quant", "QuantAvgPool2d": "use AveragePool and Quant",
    "LayerNormalization": "use BatchNormalization",
}


def import_onnx(path, name: str | None = None, mean=0.0, std=1.0, pixel_max: float | None = None) -> ir.Graph:
    """Read a quantized ONNX or QONNX model.

    Parameters
    ----------
    path : of the file.
    name : of the graph; the file's by default.
    mean, std : one number, or one a channel. The model's input is (pixel / 255 * pixel_max - mean) / std for a pixel 0..255.
    pixel_max : 1 by default, or what the file's metadata says. A model with uint8 input takes pixels as they are, one
        with int8 input pixels less 128: so TensorFlow Lite stores images.

    Returns
    -------
    A validated graph. Its `info` has `imported` (producer, opset) and `notes`, a list of sentences on what was left out.

    Raises
    ------
    GraphError
        if the file or something in it has no integer form, naming the node and the nearest fix; if pixels of this range,
        mean and std leave the input next to no codes.
    """
    return import_model(read(path), name, mean, std, pixel_max)


def import_model(model: Model, name: str | None = None, mean=0.0, std=1.0, pixel_max: float | None = None) -> ir.Graph:
    """The same for a model that was read."""
    if pixel_max is None:
        try:
            pixel_max = float(model.metadata.get(PIXEL_MAX, 1.0))
        except ValueError:
            raise GraphError(f"the model's metadata {PIXEL_MAX} is no number; give --pixel-max") from None
    model, left_out = _before_softmax(model)
    shape = model.shapes[model.input][1:]
    walk = Walk(model, name or model.name)
    walk.builder.notes += left_out
    last = channels_last.input_is_last(model.nodes, model.input, model.shapes)
    shape = map_shape((shape[-1], *shape[:-1]) if last else shape)
    image = Image(_pixels(shape[0], mean, std, pixel_max, walk.codes_in), shape)
    walk.values[model.input] = channels_last.last(image) if last else image
    if last:
        axes = "(height, width, channels)" if len(model.shapes[model.input]) == 4 else "(length, channels)"
        walk.builder.notes.append(f"the model's images are {axes}, the graph's {shape}")
    for node in model.nodes:
        walk.visit(node)
    graph = merge_clamps(walk.builder.finish({name: _output(walk, name, tensor) for name, tensor in model.outputs.items()}))
    graph.info.update(imported=f"{model.producer or 'unknown producer'}, opset {model.opset}", notes=walk.builder.notes)
    validate(graph)
    codes, form = fewest_codes(graph.input.table), graph.input.format
    if codes < few_codes(form):
        raise GraphError(f"pixels become {codes} of the input's {2 ** form.bits} codes: the model takes another range; give "
                         "--pixel-max 255 (pixel_max) if it was trained on pixels of 0..255, or its --mean and --std")
    warn(doubts(graph))
    return graph


def _output(walk, name: str, tensor: str):
    """The stored tensor of an output."""
    if tensor not in walk.values:
        raise GraphError(f"output {name!r} is not computed by any node; export the model again")
    value, note = moves.as_output(walk.values[tensor])
    which = f"output {name!r}: " if len(walk.model.outputs) > 1 else ""
    walk.builder.notes += [which + note] if note else []
    return walk.builder.output(value.value if isinstance(value, Codes) else value, tensor)


def _before_softmax(model: Model) -> tuple:
    """(the model without a Softmax, Sigmoid or Tanh of an output and quantizers behind it; notes on that)."""
    makers = {output: node for node in model.nodes for output in node.output}
    outputs, notes = {}, []
    for name in model.outputs:
        node = makers.get(name)
        while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear", "Quant", "Identity"):
            node = makers.get(node.input[0])
        cut = node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid", "Tanh")
        outputs[name] = node.input[0] if cut else name
        notes += [f"{title(node)} is left to the host: the largest value stays the largest"] if cut else []
    if not notes:
        return model, []
    needed, kept = set(outputs.values()), []
    for node in reversed(model.nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return replace(model, nodes=kept[::-1], outputs=outputs), notes


def _pixels(channels: int, mean, std, pixel_max: float, codes: str | None) -> np.ndarray:
    """float32 (c, 256): the model's input for every value of a pixel."""
    pixels = np.tile(np.arange(256.0), (channels, 1))
    if codes:
        return (pixels - (128 if codes == "int8" else 0)).astype(np.float32)
    mean, std = (np.atleast_1d(np.asarray(v, np.float64)) for v in (mean, std))
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels) or not np.isfinite(values).all() or (what == "std" and not (values > 0).all()):
            raise GraphError(f"{what} must be one number or {channels}, finite, and a std positive; not {values.tolist()}")
    if not (np.isfinite(pixel_max) and pixel_max > 0):
        raise GraphError(f"the brightest pixel's value must be positive and finite, not {pixel_max}")
    return ((pixels * (pixel_max / 255) - mean[:, None]) / std[:, None]).astype(np.float32)


class Walk:
    """One pass over a model. Handlers get (walk, node, *values of the inputs), None for an input left out."""

    def __init__(self, model: Model, name: str):
        self.model = model
        self.builder = Builder(name)
        self.values = {key: Constant(value) for key, value in model.constants.items()}
        self.codes_in = model.input_codes
        self.thresholds = any(node.op_type == "MultiThreshold" for node in model.nodes)
        self.consumers = {}
        for node in model.nodes:
            for tensor in node.input:
                self.consumers.setdefault(tensor, []).append(node)

    def visit(self, node) -> None:
        """Take a node in: what its outputs are. Raises GraphError for what has no integer form, naming the node."""
        inputs = []
        for tensor in node.input:
            if tensor and tensor not in self.values:
                raise GraphError(f"{title(node)}: its input {tensor!r} is not computed before it; export the model again")
            inputs.append(self.values[tensor] if tensor else None)
        try:
            results = self.compute(node, inputs)
            self.values.update(zip(node.output, results if isinstance(results, list) else [results]))
        except GraphError:
            raise
        except DAMAGE as error:
            raise GraphError(f"{title(node)}: its inputs or attributes are not those of {node.op_type} "
                             f"({first_line(error)}); export the model again") from error

    def compute(self, node, inputs: list):
        """What a node makes of the values of its inputs, a list if it has several outputs."""
        check_attributes(node, self.model.opset)
        if node.op_type == "Constant":
            return Constant(_constant(node))
        if node.op_type == "Shape":
            return Constant(sizes_of(node, self.model.shape(node.input[0], title(node))))
        first = _in_order(inputs[0]) if inputs else None
        moves_codes = node.op_type in {*MOVES, "Identity"} - {"Pad"}  # what a Pad puts between codes need not be zero
        if moves_codes and isinstance(first, Codes) and not isinstance(first.value, Quantized):
            return self._moved_codes(node, first, inputs)
        moved = node.op_type in MOVES and not isinstance(inputs[0], (Constant, Quantized))
        handler = moves.move if moved else HANDLERS.get(node.op_type)
        if node.domain and node.domain != "ai.onnx" and node.domain not in QONNX_DOMAINS:
            theirs = node.domain.startswith(("finn.", "qonnx."))
            fix = BEFORE_FINN if theirs else "export it with ONNX's own operators, or QONNX's"
            raise GraphError(f"{title(node)}: the integer graph has no operators of {node.domain}; {fix}")
        known = all(value is None or isinstance(value, (Constant, Quantized)) for value in inputs)
        codes = isinstance(inputs[0] if inputs else None, Quantized)
        keeps = node.op_type in QUANTIZERS or (codes and node.op_type in SHAPES)
        if known and not keeps and not node.domain:
            arrays = {tensor: _array(value) for tensor, value in zip(node.input, inputs) if value is not None}
            found = [Constant(array) for array in fold(node, arrays, self.model.opset)]
            return found if len(found) > 1 else found[0]
        if handler is None:
            raise GraphError(f"{title(node)}: the integer graph has no {node.op_type}; "
                             f"{FIXES.get(node.op_type, 'it has ' + ', '.join(sorted({*LAYERS, *MOVES})))}")
        if node.op_type == "Clip" and isinstance(_in_order(inputs[0]), Codes):
            handler = clip_codes
        check_inputs(node, handler, inputs)
        for value, tensor in zip(map(_in_order, inputs), node.input):
            if isinstance(value, Codes) and handler is not clip_codes and node.op_type != "DequantizeLinear":
                if node.op_type not in SHAPES or not isinstance(value.value, Quantized):
                    raise GraphError(f"{title(node)}: it computes with codes {tensor!r}; export the model in QDQ format")
        if not moved and any(isinstance(value, View) for value in inputs):
            return moves.compute(self, handler, node, inputs)
        return handler(self, node, *inputs)

    def _moved_codes(self, node, codes: Codes, inputs: list):
        """What moves between QuantizeLinear and DequantizeLinear, as in files from TensorFlow Lite, moves before both."""
        found = self.compute(node, [_changed(inputs[0], codes.value), *inputs[1:]])
        results = [_changed(part, replace(codes, value=_in_order(part))) for part in (
            found if isinstance(found, list) else [found])]
        return results if isinstance(found, list) else results[0]

    def shape(self, tensor: str, node) -> tuple[int, int, int]:
        """(c, h, w) of a tensor of the model; sequences have h = 1, rows h = w = 1."""
        found = self.model.shape(tensor, title(node))
        if len(found) not in (2, 3, 4):
            raise GraphError(f"{title(node)}: a tensor of shape {found} has no integer form; only (n, channels, height, "
                             "width), (n, channels, length) and (n, features) have")
        return map_shape(found[1:])

    def only_feeds_functions(self, node) -> bool:
        """Whether all that reads the codes of a QuantizeLinear, through DequantizeLinear, is a function of single values."""
        readers = self.consumers.get(node.output[0], [])
        users = [user for reader in readers for user in self.consumers.get(reader.output[0], [])]
        return (bool(users) and all(reader.op_type == "DequantizeLinear" for reader in readers)
                and all(user.op_type in (*FUNCTIONS, "Mul") for user in users)
                and any(user.op_type in FUNCTIONS for user in users))

    def only_feeds_output(self, node) -> bool:
        """Whether a QuantizeLinear, perhaps with its DequantizeLinear, stands before an output, and nowhere else."""
        readers = self.consumers.get(node.output[0], [])
        ends = self.model.outputs.values()
        if not readers:
            return node.output[0] in ends
        return len(readers) == 1 and readers[0].op_type == "DequantizeLinear" and readers[0].output[0] in ends


def _changed(value, inner):
    """The tensor `inner` in the order that `value` has."""
    return replace(value, value=inner) if isinstance(value, View) else inner


def _in_order(value):
    """A tensor, whatever the order of its values."""
    return value.value if isinstance(value, View) else value


def _array(value) -> np.ndarray:
    array = np.asarray(value.value)
    return array.astype(np.float32) if isinstance(value, Quantized) else array


def _constant(node) -> np.ndarray:
    options = attributes(node)
    if "value" in options:
        return onnx.numpy_helper.to_array(options["value"])
    for name in ("value_float", "value_floats", "value_int", "value_ints"):
        if name in options:
            return np.asarray(options[name], np.float32 if "float" in name else np.int64)
    raise GraphError(f"{title(node)}: only tensors and numbers can be constants")
