"""One name for a layer: a recipe's overrides take it, and graphs, tables, reports and messages show it.

A layer is called as the module with its weights is, by path (`layer1.0.conv1`); what has no weights as its module is, or as
torch.fx calls the operation (`add_1`). The second call of a module has `_1` behind its name.
"""

from contextlib import contextmanager
from dataclasses import replace

from torch import fx

from esbflow.graph import ir
from esbflow.graph.errors import GraphError

INPUT = "input"
"""The name of a graph's input, which no layer gets."""


def names_of(graph: fx.Graph) -> dict:
    """{node: name} of a trace, each name once."""
    found, taken = {}, {INPUT}
    nodes = sorted(graph.nodes, key=lambda node: node.op != "call_module")  # paths come first: they are the user's own
    for node in nodes:
        name = base = node.target if node.op == "call_module" else node.name
        count = 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        found[node] = name
    return found


@contextmanager
def shown(graph: fx.Graph):
    """In a GraphError that begins with the name of a node, its place is taken by the layer's."""
    try:
        yield
    except GraphError as error:
        first, colon, rest = str(error).partition(": ")
        name = next((name for node, name in names_of(graph).items() if node.name == first), first)
        if not colon or name == first:
            raise
        raise GraphError(f"{name}: {rest}") from error.__cause__


def renamed(graph: ir.Graph, names: dict, layers: dict) -> ir.Graph:
    """A graph whose nodes are called as nodes of the trace, with the names of layers instead.

    Parameters
    ----------
    names : {name of a node of the trace: name}.
    layers : {name of a graph's node: name of the layer with weights that it is}.

    What the exporter puts beside a tensor (`relu_low`, `pool_repeated`) keeps its ending.
    """
    known, new, taken = names | layers, {}, set()
    for node in graph.nodes:
        parts = node.name.split("_")
        starts = ("_".join(parts[:length]) for length in range(len(parts), 0, -1))
        start = next((start for start in starts if start in known), None)
        name = base = node.name if start is None or isinstance(node, ir.Input) else known[start] + node.name[len(start):]
        count = 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        new[node.name] = name
    nodes = [replace(node, name=new[node.name], inputs=tuple(new[source] for source in node.inputs)) for node in graph.nodes]
    info = dict(graph.info)
    if "modules" in info:
        info["modules"] = {new[name]: module for name, module in info["modules"].items()}
    return ir.Graph(graph.name, nodes, info, {output: new[name] for output, name in graph.outputs.items()})
