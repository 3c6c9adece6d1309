"""Functions of single values, as tables: Sigmoid, HardSwish, x * Sigmoid(x) with or without quantizers between.

All that a model computes of one stored tensor, each value from the value at its own place, is known for each of the 256
integers that the tensor can hold. ONNX's reference implementation computes it; the next quantizer makes the table.
"""

from dataclasses import replace

import numpy as np

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.interchange.node_checks import elementwise
from esbflow.interchange.onnx_file import attributes, fold, title
from esbflow.interchange.values import KNOWN, Function, Image, Open, Quantized

OPERATORS = ("Abs", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Log", "Mish", "Pow",
             "Reciprocal", "Round", "Selu", "Shrink", "Sigmoid", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh",
             "ThresholdedRelu")
"""Operators that no engine layer computes without a table."""


@elementwise
def function(walk, node, value, *others):
    """Any function of single values, of one tensor and perhaps of itself once more."""
    values = (value, *others)
    if isinstance(value, Image) and all(isinstance(other, KNOWN) or other is None for other in others):
        return replace(value, values=_computed(walk, node, values, [value.values]))
    return of_levels(walk, node, values)


def of_levels(walk, node, values: tuple) -> Function:
    """What a node computes of tensors that are functions of the same stored one.

    Raises
    ------
    GraphError
        if they are not, if one is not quantized, or if a constant has more than one number.
    """
    where = title(node)
    operands = [value for value in values if value is not None and not isinstance(value, KNOWN)]
    if any(isinstance(value, KNOWN) and np.size(value.value) != 1 for value in values):
        raise GraphError(f"{where}: its constant is not one number, and a function's table is the same for all channels; "
                         "put a quantizer before it")
    found = alike([_histories(walk, value, where) for value in operands])
    if found is None:
        raise GraphError(f"{where}: the product or ratio of two activations has no integer form, unless both are functions "
                         "of the same quantized one; only sums have")
    return Function(found[0].source, _computed(walk, node, values, [part.values for part in found]))


def as_function(walk, value, where: str) -> Function:
    """A tensor as a function of what is stored: itself, or a stored tensor, scaled, shifted and clipped."""
    if isinstance(value, Function):
        if value.after:
            raise GraphError(f"{where}: it follows a pool of a function that is not quantized; put a quantizer between")
        return value
    if isinstance(value, Open) and is_function(value):
        real = value.gain[0] / value.source.scale * Function.identity(value.source).values + value.offset[0]
        return Function(value.source, np.clip(real, value.low, value.high).astype(np.float32))
    return Function.identity(walk.builder.stored(value, where))


def is_function(value) -> bool:
    """Whether a tensor is a function of a stored one, the same for all channels, which nothing has stored yet."""
    if not isinstance(value, Open):
        return isinstance(value, Function)
    same = np.ptp(value.gain) == 0 == np.ptp(value.offset)
    return value.node is ir.Requantize and value.residual is None and not value.after and bool(same)


def as_functions_of_one(walk, values: tuple, where: str) -> bool:
    """Whether tensors are all functions of the same stored one."""
    return alike([_histories(walk, value, where) for value in values]) is not None


def alike(histories: list) -> list | None:
    """Of each history one function, all of the same stored tensor; None if there is none."""
    for first in histories[0]:
        found = [next((part for part in history if part.source.name == first.source.name), None) for history in histories]
        if None not in found:
            return found
    return None


def _histories(walk, value, where: str) -> list:
    """A tensor as a function of what is stored, of what that is a table of, and so on."""
    found = [as_function(walk, value, where)]
    while found[-1].source.name in walk.builder.tables:
        inner = walk.builder.tables[found[-1].source.name]
        found.append(Function(inner.source, found[-1].values[inner.table & ir.LOOKUP_ENTRIES - 1]))
    return found


def _computed(walk, node, values: tuple, arrays: list) -> np.ndarray:
    """float32, of the shape of `arrays`: a node's result, with an array in the place of each tensor that is not known."""
    arrays, given = iter(arrays), {}
    for tensor, value in zip(node.input, values):
        if value is not None:
            known = isinstance(value, KNOWN)
            given[tensor] = np.asarray(value.value, _kind(value)).reshape(()) if known else next(arrays).astype(np.float32)
    with np.errstate(all="ignore"):
        result = fold(node, given, walk.model.opset)[0]
    return np.asarray(result, np.float32)


def _kind(value) -> np.dtype:
    return np.float32 if isinstance(value, Quantized) else value.value.dtype


FUNCTIONS = dict.fromkeys(OPERATORS, function)


def whole(walk, node, value):
    """Cast of a tensor to integers, which cuts its fractions off."""
    return of_levels(walk, node, (value,)) if attributes(node)["to"] != 1 else value


def looked_up(walk, node, data: np.ndarray, indices) -> Function:
    """Entries of a constant table (n,), whose places are a function of a stored tensor."""
    found = as_function(walk, indices, title(node))
    places = found.values.astype(np.int64)
    if places.min() < -len(data) or places.max() >= len(data):
        raise GraphError(f"{title(node)}: places beyond its table of {len(data)} values")
    return Function(found.source, data[places].astype(np.float32))


