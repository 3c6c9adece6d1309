"""Useful multiply-accumulates of a graph; padding counts as a layer's own work, as is usual."""

import numpy as np

from esbflow.graph import ir


def macs(node: ir.Node) -> int:
    """Multiply-accumulates of one node for one image; additions of pools count, copies and rounding do not."""
    _, height, width = node.shape
    if isinstance(node, ir.Conv2d):
        return int(node.weight.size) * height * width
    if isinstance(node, ir.Linear):
        return int(node.weight.size)
    if isinstance(node, ir.AvgPool2d):
        return int(np.prod(node.shape)) * node.kernel[0] * node.kernel[1]
    return 0


def macs_per_image(graph: ir.Graph) -> int:
    """Sum over all nodes."""
    return sum(macs(node) for node in graph.nodes)
