"""Appends nodes to an integer graph: what both front doors do alike."""

from collections.abc import Callable

from esbflow.graph import ir
from esbflow.lowering.engine_layer import OpenLayer
from esbflow.lowering.nodes import Stored
from esbflow.numbers import Format


class GraphBuilder:
    """The graph so far. Every method that appends a node returns what the graph stores."""

    def __init__(self, name: str):
        self.graph = ir.Graph(name)
        self._copies: dict[tuple, Stored] = {}  # (tensor, format, scale) -> the tensor in that format

    def append(self, node: ir.Node) -> Stored:
        """Append a node; the tensor that it stores."""
        self.graph.nodes.append(node)
        return Stored(node.name, node.shape, node.format, node.scale)

    def append_closed(self, layer: OpenLayer, name: str, shape: tuple, form: Format, scale: float, where: str) -> Stored:
        """The node of a layer whose output has a format and a real scale now. Raises what `OpenLayer.closed` raises."""
        return self.append(layer.node(name=name, shape=shape, format=form, scale=float(scale),
                                      **layer.closed(form, scale, where)))

    def alike(self, parts: list, form: Format, scale: float, name: Callable, where: str) -> list:
        """The tensors `parts` in one format and scale. One that has another is requantized, once for all that ask for it, by
        a node called `name(part)`."""
        return [part if (part.form, part.scale) == (form, scale) else self._copy(part, form, scale, name, where)
                for part in parts]

    def _copy(self, part: Stored, form: Format, scale: float, name: Callable, where: str) -> Stored:
        key = part.name, form, scale
        if key not in self._copies:
            copy = OpenLayer.copy_of(part, part.name)
            self._copies[key] = self.append_closed(copy, name(part), part.shape, form, scale, where)
        return self._copies[key]

    def concat(self, name: str, parts: list) -> Stored:
        """The channels of tensors of one format and scale, one after the other."""
        first = parts[0]
        shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
        return self.append(ir.Concat(name, tuple(part.name for part in parts), shape, first.form, first.scale))
