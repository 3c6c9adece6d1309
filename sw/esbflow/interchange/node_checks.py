"""What is known of an operator's handler, and whether a node has the inputs and attributes that its operator takes: what
onnx's checker lets through, and QONNX's nodes, which it does not know."""

import inspect
from collections.abc import Callable

import onnx
from onnx import AttributeProto

from esbflow.graph.errors import GraphError
from esbflow.interchange.onnx_file import QONNX_DOMAINS, title


def elementwise(handler: Callable) -> Callable:
    """Marks a handler of what is done to each value by itself: it does not ask for the order of axes or values."""
    handler.elementwise = True
    return handler


_QONNX_TYPES = {**dict.fromkeys(("rounding_mode", "data_layout", "out_dtype"), AttributeProto.STRING),
                **dict.fromkeys(("out_scale", "out_bias"), AttributeProto.FLOAT)}
"""Attributes of QONNX's nodes that are no integers."""


def check_attributes(node: onnx.NodeProto, opset: int) -> None:
    """GraphError if an attribute has another type than the operator's schema says."""
    wanted = _qonnx_types(node) if node.domain in QONNX_DOMAINS else _schema_types(node, opset)
    for attribute in node.attribute:
        kind = wanted.get(attribute.name, attribute.type)
        if attribute.type != kind:
            found, right = (AttributeProto.AttributeType.Name(value) for value in (attribute.type, kind))
            raise GraphError(f"{title(node)}: its attribute {attribute.name} is of type {found}, not {right}; export the "
                             "model again")


def check_inputs(node: onnx.NodeProto, handler: Callable, inputs: list) -> None:
    """GraphError if a node has other inputs than its handler takes: (walk, node, inputs..., optional inputs...)."""
    parameters = list(inspect.signature(handler).parameters.values())[2:]
    wanted = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    needed = sum(p.default is p.empty for p in wanted)
    most = len(inputs) if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(wanted)
    if len(inputs) > most or any(i >= len(inputs) or inputs[i] is None for i in range(needed)):
        raise GraphError(f"{title(node)}: its inputs or attributes are not those of {node.op_type} (it has "
                         f"{sum(value is not None for value in inputs)} inputs); export the model again")


def _schema_types(node, opset) -> dict:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return {}  # an operator that nobody knows is refused by name
    return {name: attribute.type.value for name, attribute in schema.attributes.items()}


def _qonnx_types(node) -> dict:
    return {attribute.name: _QONNX_TYPES.get(attribute.name, AttributeProto.INT) for attribute in node.attribute}
