"""What a traced model returns: one tensor, or tuples, lists and dicts of them, under one name each."""

from torch import fx

from esbflow.graph.errors import GraphError
from esbflow.quant.trace import is_size


def named_outputs(node: fx.Node) -> dict:
    """{name: node} of an "output" node, in order. Keys of dicts and fields of named tuples are names, places in tuples and
    lists are `output_0`, `output_1`; within each other they are joined by dots, as `boxes.0`.

    Raises
    ------
    GraphError
        for what is no tensor of the network.
    """
    return {name or "output": source for name, source in _named(node.args[0], "")}


def _named(value, name: str):
    if isinstance(value, fx.Node) and not is_size(value):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _named(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple | list):
        for key, part in zip(getattr(value, "_fields", range(len(value))), value):
            yield from _named(part, f"{name}.{key}" if name else f"output_{key}" if isinstance(key, int) else key)
    else:
        raise GraphError(f"the network returns {name or 'a value'} that is no tensor which a layer computes; return tensors "
                         "alone, or compute it on the host")
