"""Takes out clamps that the layer before can do itself.

onnxruntime quantizes before and after a ReLU with one scale, and Brevitas's QCDQ clips int8 codes to fewer bits. Nothing is
rounded then: the levels are those of the first quantizer, clamped. So the layer before may have the second format, and no
layer of the engine is spent on the clamp.
"""

from dataclasses import replace

import numpy as np

from esbflow.graph import ir
from esbflow.numbers import ESB, Format, Signed, Unsigned


def merge_clamps(graph: ir.Graph) -> ir.Graph:
    """The same graph with each clamp merged into the node before it, which keeps its name; outputs do not change."""
    readers = dict.fromkeys(graph.outputs.values(), 1)
    for node in graph.nodes:
        for source in node.inputs:
            readers[source] = readers.get(source, 0) + 1
    nodes, renamed = {}, {}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(renamed.get(source, source) for source in node.inputs))
        before = nodes.get(node.inputs[0]) if node.inputs else None
        if before is not None and _is_clamp(node, before) and readers[before.name] == 1:
            merged = replace(before, format=node.format)
            if isinstance(before, ir.Input):
                merged = replace(merged, table=np.clip(before.table, node.format.min, node.format.max))
            nodes[before.name] = merged
            renamed[node.name] = before.name
            readers[before.name] = readers.get(node.name, 0)
        else:
            nodes[node.name] = node
    graph.nodes = list(nodes.values())
    graph.outputs = {output: renamed.get(name, name) for output, name in graph.outputs.items()}
    return graph


def _is_clamp(node: ir.Node, before: ir.Node) -> bool:
    q = node.requantizer if isinstance(node, ir.Requantize) else None
    rounds = isinstance(before, ir.Input) or getattr(before, "requantizer", None) is not None
    return (q is not None and rounds and node.scale == before.scale and (q.m == np.left_shift(1, q.s)).all()
            and not q.b.any() and _within(node.format, before.format))


def _within(inner: Format, outer: Format) -> bool:
    """Whether rounding to `outer` and then to `inner` is rounding to `inner`."""
    linear = (isinstance(form, (Signed, Unsigned)) or (isinstance(form, ESB) and form.exponent_bits == 1)
              for form in (inner, outer))
    return all(linear) and outer.min <= inner.min and inner.max <= outer.max
