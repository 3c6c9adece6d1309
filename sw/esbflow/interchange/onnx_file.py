"""Reads ONNX files: whole, of a known version, in float32, with fixed shapes, quantized; or refused by one sentence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from esbflow.errors import BadValue
from esbflow.graph.errors import GraphError

OPSETS = range(9, 25)
"""Versions of the ONNX operator set whose operators the import knows."""

QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
QONNX_OPERATORS = ("Quant", "IntQuant", "FloatQuant", "BipolarQuant", "Trunc", "MultiThreshold")
OPERATOR_FORMAT = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm")
CODE_INPUTS = {TensorProto.UINT8: "uint8", TensorProto.INT8: "int8"}
UNSUPPORTED_TYPES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}


@dataclass(eq=False)
class Model:
    """What the import needs of a file. Shapes are those of ONNX, with the batch axis."""

    name: str
    nodes: list
    constants: dict  # name -> array
    input: str
    outputs: dict  # name of an output -> the tensor that it is
    shapes: dict  # name -> tuple of ints
    metadata: dict
    producer: str
    opset: int
    input_codes: str | None  # uint8: pixels as they are; int8: pixels less 128; None: real numbers

    def shape(self, tensor: str, where: str) -> tuple[int, ...]:
        """Raises GraphError if shape inference does not know it."""
        if tensor not in self.shapes:
            raise GraphError(f"{where}: the shape of {tensor!r} is not known; run onnx.shape_inference on the model, or "
                             "export it with fixed shapes")
        return self.shapes[tensor]


def read(path) -> Model:
    """Read and check a file.

    Raises
    ------
    GraphError
        if it is missing, not whole, not quantized, of a newer version, in another precision, or of unknown shapes.
    """
    path = Path(path)
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(without_quantizers(proto))
        return from_proto(proto, path)
    except GraphError:
        raise
    except FileNotFoundError as error:
        what = path if not path.exists() else f"the weights of {path}, {error.filename or error}"
        raise GraphError(f"there is no file {what}") from None
    except IsADirectoryError:
        raise GraphError(f"{path} is a folder, not an ONNX file") from None
    except (DecodeError, onnx.checker.ValidationError, ValueError, TypeError, LookupError, AttributeError,
            RuntimeError, EOFError) as error:
        _check_version(path, locals().get("proto"))
        raise GraphError(f"{path} is not a whole ONNX file ({first_line(error)}); export the model again") from None


def from_proto(proto: onnx.ModelProto, where) -> Model:
    """The same for a model in memory; `where` is what sentences call it."""
    opset = _check_version(where, proto)
    graph = proto.graph
    for node in graph.node:
        # protobuf gives bytes where a text is damaged.
        if not all(isinstance(text, str) for text in (node.name, node.op_type, node.domain, *node.input, *node.output)):
            raise BadValue("a name is no text")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or not graph.output:
        raise GraphError(f"{where} has {len(inputs)} inputs and {len(graph.output)} outputs; the integer graph has one "
                         "input, and at least one output")
    _check_types(where, graph)
    _check_quantized(where, graph)
    return Model(
        name=Path(str(where)).stem, nodes=list(graph.node), constants=constants, input=inputs[0].name,
        outputs={value.name: value.name for value in graph.output}, shapes=_shapes(where, proto, inputs[0]),
        metadata={entry.key: entry.value for entry in proto.metadata_props},
        producer=" ".join(part for part in (proto.producer_name, proto.producer_version) if part),
        opset=opset, input_codes=CODE_INPUTS.get(inputs[0].type.tensor_type.elem_type))


def first_line(error: Exception) -> str:
    """What a library says, on one line and not too long."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def _check_version(where, proto) -> int:
    if proto is None:
        return 0
    opset = _opset(proto)
    if opset and opset not in OPSETS:
        raise GraphError(f"{where} uses ONNX opset {opset} and the import knows {OPSETS[0]} to {OPSETS[-1]}; export it with "
                         "opset_version=17, or use onnx.version_converter")
    return opset


def _opset(proto) -> int:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    return versions.get("", versions.get("ai.onnx", 0))


def _check_types(where, graph) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = UNSUPPORTED_TYPES.get(value.type.tensor_type.elem_type)
        if kind:
            raise GraphError(f"{where}: tensor {value.name!r} is {kind}; export the model in float32")
    for tensor in graph.initializer:
        kind = UNSUPPORTED_TYPES.get(tensor.data_type)
        if kind and tensor.data_type != TensorProto.DOUBLE:
            raise GraphError(f"{where}: tensor {tensor.name!r} is {kind}; export the model in float32")


def _check_quantized(where, graph) -> None:
    kinds = {node.op_type for node in graph.node}
    for kind in OPERATOR_FORMAT:
        if kind in kinds:
            raise GraphError(f"{where} has {kind} nodes; quantize it with quant_format=QuantFormat.QDQ and static scales")
    if not kinds & {"QuantizeLinear", "DequantizeLinear", *QONNX_OPERATORS}:
        raise GraphError(f"{where} is not quantized; quantize it with onnxruntime.quantization.quantize_static, or train it "
                         "with Brevitas or esbflow, first")


def without_quantizers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that onnx itself understands: QONNX's quantizers do not change a shape, so they become Identity."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        if node.op_type in QONNX_OPERATORS and (node.domain in QONNX_DOMAINS or not node.domain):
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
    for value in copy.graph.output:
        value.type.tensor_type.shape.SetInParent()  # the checker wants one; it is inferred later
    return copy


def _shapes(where, proto: onnx.ModelProto, image) -> dict:
    copy = without_quantizers(proto)
    axes = next(v for v in copy.graph.input if v.name == image.name).type.tensor_type.shape.dim
    if len(axes) not in (2, 3, 4):
        raise GraphError(f"{where}: its input has {len(axes)} axes; the integer graph takes images (n, channels, height, "
                         "width), sequences (n, channels, length) and rows (n, features)")
    if not axes[0].HasField("dim_value") or axes[0].dim_value < 1:
        axes[0].dim_value = 1
    for axis in axes[1:]:
        if not axis.HasField("dim_value") or axis.dim_value < 1:
            raise GraphError(f"{where}: its input has an axis of unknown size {axis.dim_param!r}; only the batch may be "
                             "dynamic, export it with a fixed height and width")
    # What the file says of later tensors may hold the batch's name; it is inferred anew.
    del copy.graph.value_info[:]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    shapes = _inferred(where, copy)
    while _fold_sizes(copy, shapes):
        shapes = _inferred(where, copy)
    return shapes


def _inferred(where, proto: onnx.ModelProto) -> dict:
    try:
        inferred = shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise GraphError(f"{where}: its shapes do not fit together ({first_line(error)}); export the model again") from None
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
            shapes[value.name] = tuple(axis.dim_value for axis in kind.shape.dim)
    return shapes


def _fold_sizes(proto: onnx.ModelProto, shapes: dict) -> bool:
    """Compute what depends on known shapes only, of which onnx's own inference does a part; whether there was any."""
    graph, opset = proto.graph, _opset(proto)
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) < 2}
    constants = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    sizes = {}
    for node in graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "Shape" and names and names[0] in shapes:
            sizes[node.output[0]] = sizes_of(node, shapes[names[0]])
        elif sizes.keys() & set(names) and all(name in sizes or name in given or name in constants for name in names):
            given.update({name: fold(constants[name], {}, opset)[0] for name in names if name in constants})
            arrays = {name: sizes[name] if name in sizes else given[name] for name in names}
            sizes[node.output[0]] = fold(node, arrays, opset)[0]
    kept = [node for node in graph.node if node.output[0] not in sizes]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in sizes.items())
    return bool(sizes)


def fold(node, arrays: dict, opset: int) -> list:
    """The results of a node whose inputs are known, {name: array}, by the reference implementation of onnx: all parts of a
    Split, of other nodes the first; what else they give is a mask or an index.

    Raises
    ------
    GraphError
        if that cannot compute it.
    """
    outputs = node.output if node.op_type == "Split" else node.output[:1]
    try:
        known, result = ([onnx.helper.make_empty_tensor_value_info(tensor) for tensor in tensors]
                         for tensors in (arrays, outputs))
        graph = onnx.helper.make_graph([node], "constant", known, result)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, arrays)]
    except Exception as error:  # the evaluator raises whatever its implementations raise
        raise GraphError(f"{title(node)}: its constant cannot be computed ({error}); simplify the model first") from None


def sizes_of(node, shape: tuple) -> np.ndarray:
    """What a Shape node gives for a tensor of `shape`: int64, all axes or those from `start` to `end`."""
    options = attributes(node)
    return np.array(shape[options.get("start", 0):options.get("end", len(shape))], np.int64)


def attributes(node) -> dict:
    """A node's attributes as Python values; strings, not bytes."""
    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def title(node) -> str:
    """How sentences call a node."""
    return f"{node.op_type} node {node.name or node.output[0]!r}"

