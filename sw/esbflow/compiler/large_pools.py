"""A max pool over a whole side of more than 15 pixels becomes two.

The engine's windows end at 15. The maximum of a side is that of the maxima of its parts: a pool of parts of equal size, the
last of which may hang over the edge, and one over what those leave. Smaller sides are left to the second.
"""

from dataclasses import replace

from esbflow.compiler.lower import POOL_LIMIT
from esbflow.graph import ir


def split_large_pools(graph: ir.Graph) -> ir.Graph:
    """The graph with global max pools of sides up to 225 pixels in two steps; the graph itself where it has none."""
    if not any(_is_large(graph, node) for node in graph.nodes):
        return graph
    return replace(graph, nodes=[part for node in graph.nodes
                                 for part in (_halves(graph, node) if _is_large(graph, node) else (node,))])


def _is_large(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether a side is too long for one window of a max pool and is all that the window reads."""
    if not isinstance(node, ir.MaxPool2d) or max(node.kernel) <= POOL_LIMIT:
        return False
    sides = zip(node.kernel, node.padding, node.shape[1:], graph[node.inputs[0]].shape[1:])
    return all(kernel <= POOL_LIMIT or (out == 1 and padding == 0 and kernel == size)
               for kernel, padding, out, size in sides)


def _halves(graph: ir.Graph, node: ir.MaxPool2d) -> tuple:
    channels, *sizes = graph[node.inputs[0]].shape
    counts = [-(-size // POOL_LIMIT) if kernel > POOL_LIMIT else None for size, kernel in zip(sizes, node.kernel)]
    parts = [1 if count is None else -(-size // count) for size, count in zip(sizes, counts)]
    left = [-(-size // part) for size, part in zip(sizes, parts)]
    name = graph.unused(f"{node.name}_parts")
    first = replace(node, name=name, shape=(channels, *left), kernel=tuple(parts), stride=tuple(parts), padding=(0, 0))
    kernel, stride = (tuple(own if count is None else size for count, own, size in zip(counts, given, left))
                      for given in (node.kernel, node.stride))
    return first, replace(node, inputs=(name,), kernel=kernel, stride=stride)
