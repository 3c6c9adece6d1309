"""What a graph was hardly meant to be: an input of next to no codes, layers that say the same of every image."""

import warnings

import numpy as np

from esbflow.graph import ir
from esbflow.graph.bounds import factors
from esbflow.graph.execute import execute
from esbflow.graph.host import Host
from esbflow.numbers import Format

LOOKED_AT = 8
"""Images are enough to see whether a layer tells them apart."""

NAMED = 5


class GraphWarning(UserWarning):
    """A network computes, but most likely not what was meant."""


def few_codes(form: Format) -> int:
    """An input's pixels become at least so many codes of a format, or their range is wrong: an eighth, and two.

    >>> from esbflow.numbers import Unsigned
    >>> few_codes(Unsigned(8)), few_codes(Unsigned(1))
    (32, 2)
    """
    return max(2, 2 ** form.bits // 8)


def fewest_codes(table: np.ndarray) -> int:
    """Distinct codes of the channel that has fewest, of an input's table (channels, 256)."""
    return min(len(np.unique(row)) for row in table)


def doubts(graph: ir.Graph) -> list:
    """Sentences on what can be seen without images."""
    said = []
    codes, form = fewest_codes(graph.input.table), graph.input.format
    if codes < 2 ** form.bits // 2:
        said.append(f"{graph.name}: pixels become {codes} of the input's {2 ** form.bits} codes; check the range of pixels, "
                    "mean and std")
    ranges = {graph.input.name: (int(graph.input.table.min()), int(graph.input.table.max()))}
    for node in graph.nodes[1:]:
        low, high = _levels(node, ranges)
        ranges[node.name] = int(low.min()), int(high.max())
        if (low == high).all() and getattr(node, "requantizer", None) is not None:
            said.append(f"{node.name}: it stores the same whatever the image is; the layer is dead, or its input has "
                        "another range than it was made for")
    return said


def _levels(node: ir.Node, ranges: dict) -> tuple:
    """(lowest, highest) level that each channel of a node can store when its inputs have such ranges."""
    q = getattr(node, "requantizer", None)
    if isinstance(node, Host):
        return np.array([node.format.min]), np.array([node.format.max])
    if isinstance(node, ir.Lookup):
        low, high = ranges[node.inputs[0]]
        entries = node.table[np.arange(low, high + 1) & ir.LOOKUP_ENTRIES - 1]
        return entries.min(keepdims=True), entries.max(keepdims=True)
    if q is None:
        return tuple(np.array(ends) for ends in zip(*(ranges[name] for name in node.inputs)))
    low, high = ranges[node.inputs[0]]
    low, high = min(0, low), max(0, high)  # zeros around a map count too
    positive, negative = factors(vars(node), node.shape[0])
    ends = [positive * low + negative * high, positive * high + negative * low]
    products = np.stack([end * q.m for end in ends])
    total_low, total_high = products.min(axis=0) + q.b, products.max(axis=0) + q.b
    if len(node.inputs) > 1:
        products = np.stack([end * q.n for end in ranges[node.inputs[1]]])
        total_low, total_high = total_low + products.min(axis=0), total_high + products.max(axis=0)
    return tuple(node.format.nearest(total / 2.0 ** q.s) for total in (total_low, total_high))


def unmoved(graph: ir.Graph, images: np.ndarray) -> list:
    """A sentence, or none, on layers that store the same for every one of the first images, uint8 (n, c, h, w)."""
    images = images[:LOOKED_AT]
    if len(images) < 2 or (images == images[:1]).all():
        return []
    values = execute(graph, images, keep=True)
    still = [node.name for node in graph.nodes[1:] if (values[node.name] == values[node.name][:1]).all()]
    if not still:
        return []
    names = ", ".join(still[:NAMED]) + (f" and {len(still) - NAMED} more" if len(still) > NAMED else "")
    return [f"{graph.name}: the same is stored for all of {len(images)} images in {names}; these layers are dead, or the "
            "images have another range than the network was trained on"]


def warn(sentences: list) -> None:
    """Each as a GraphWarning, which the command line prints."""
    for sentence in sentences:
        warnings.warn(sentence, GraphWarning, stacklevel=3)
