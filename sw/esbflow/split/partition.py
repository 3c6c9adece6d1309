"""Shares a graph out: which nodes are programs of the engine, and which the host computes between them.

A program has one input. So all that the engine can compute from one tensor, and from nothing else, is one part: from the
image, or from a tensor that the host made. The host computes the rest: in the integers of the reference executor or, for
operators without an integer form, in real numbers (esbflow.graph.host).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from esbflow.engine_config import EngineConfig
from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.host import Host
from esbflow.graph.validate import validate
from esbflow.numbers import Format, Signed


@dataclass(frozen=True, eq=False)
class Part:
    """What is run at once: `graph` on the engine, from tensor `source` (None: the images); or without it `node` on the host,
    because of `why`."""

    source: str | None = None
    graph: ir.Graph | None = None
    node: ir.Node | None = None
    why: str = ""


def input_table(form: Format, channels: int) -> np.ndarray:
    """The table of a program that reads a stored tensor as bytes: `integer & 255` is that integer. int64 (channels, 256)."""
    integers = np.arange(256).astype(np.int8 if form.min < 0 or form.signed else np.uint8)
    return np.tile(form.nearest(integers), (channels, 1))


class SplitGraph(NamedTuple):
    """A graph whose nodes the host and the engine share, and its parts in the order in which they run."""

    graph: ir.Graph
    parts: list[Part]


def split(graph: ir.Graph, config: EngineConfig) -> SplitGraph:
    """(graph, parts in the order in which they run). The graph's tensors are those of the given one, and integers are the
    same; sums of a convolution may be a tensor of their own, where the host adds to them.

    A graph that the engine can run alone is one part.
    """
    nodes: list[ir.Node] = []
    homes: dict[str, str] = {}
    why: dict[str, str] = {}
    for node in graph.nodes:
        for piece in _pieces(node, homes):
            nodes.append(piece)
            reason = _reason(piece, homes, config)
            if reason and not isinstance(piece, ir.Input):
                why[piece.name] = reason
            homes[piece.name] = piece.name if reason or isinstance(piece, ir.Input) else homes[piece.inputs[0]]
    graph = validate(replace(graph, nodes=nodes))
    if not why:
        return SplitGraph(graph, [Part(graph=graph)])
    _leave_small_parts(graph, homes, why)
    return SplitGraph(graph, _parts(graph, homes, why))


def _pieces(node: ir.Node, homes: dict):
    """A convolution that adds a tensor from another part has its exact sums as a tensor, and the host adds and rounds."""
    if not (isinstance(node, ir.Conv2d) and len({homes[name] for name in node.inputs}) > 1):
        return (node,)
    sums = replace(node, name=f"{node.name}_sums", inputs=node.inputs[:1], format=Signed(32), scale=1.0,
                   requantizer=ir.Requantizer.pass_through(node.shape[0]))
    return sums, ir.Add(node.name, (sums.name, node.inputs[1]), node.shape, node.format, node.scale,
                        requantizer=node.requantizer)


def _reason(node: ir.Node, homes: dict, config: EngineConfig) -> str:
    """Why the host computes a node; empty if the engine does."""
    if isinstance(node, Host):
        return f"{type(node).__name__} {node.WHY}"
    if isinstance(node, ir.Lookup) and not config.function_table:
        return "the engine has no function table"
    return "it joins tensors of several parts" if len({homes[name] for name in node.inputs}) > 1 else ""


def _leave_small_parts(graph: ir.Graph, homes: dict, why: dict) -> None:
    """A part without weights is not worth a program."""
    worth = {homes[node.name] for node in graph.nodes if isinstance(node, (ir.Conv2d, ir.Linear))}
    for node in graph.nodes[1:]:
        if node.name not in why and homes[node.name] not in worth:
            why[node.name] = "its part has no weights, and is not worth a program"


def _parts(graph: ir.Graph, homes: dict, why: dict) -> list:
    read = {name for node in graph.nodes for name in node.inputs if node.name in why} | graph.ends
    read |= {homes[node.name] for node in graph.nodes if node.name not in why}
    parts = []
    for node in graph.nodes:
        if node.name in why:
            parts.append(Part(node=node, why=why[node.name]))
        own = [other for other in graph.nodes[1:] if other.name not in why and homes[other.name] == node.name]
        if own:
            parts.append(_program(graph, node, own, read))
    return parts


def _input(source: ir.Node) -> ir.Input:
    form = source.format
    low, high = (-128, 127) if form.min < 0 or form.signed else (0, 255)
    if form.min < low or form.max > high:
        raise GraphError(f"layer {source.name}: what the host makes in the format {form} does not fit the bytes that a "
                         "program reads; use at most 8 bits, without large ESB levels")
    return ir.Input(source.name, (), source.shape, form, source.scale, table=input_table(form, source.shape[0]))


def _program(graph: ir.Graph, source: ir.Node, own: list, read: set) -> Part:
    """The part of the nodes `own`, which are computed from `source`."""
    first = source if isinstance(source, ir.Input) else _input(source)
    outputs = {node.name: node.name for node in own if node.name in read}
    name = graph.name if isinstance(source, ir.Input) else f"{graph.name}.{source.name}"
    part = ir.Graph(name, [first, *own], outputs=outputs if len(outputs) > 1 else {})
    return Part(None if isinstance(source, ir.Input) else source.name, validate(part))
