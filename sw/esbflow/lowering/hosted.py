"""Tensors that the host computes, as both front doors have them until a quantizer stores them."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from esbflow.graph import host
from esbflow.graph.errors import GraphError
from esbflow.numbers import Format, Signed, Unsigned

OUTPUT_BITS = 16


class OutputFormat(NamedTuple):
    """A network's output: its format, the real size of one step, and the error as `rounding_error` of last_layer has it."""

    form: Format
    scale: float
    error: dict


@dataclass(frozen=True, eq=False)
class Hosted:
    """What an operator of esbflow.graph.host makes of the stored tensors `sources`; `fields` are those of the node."""

    node: type
    name: str
    sources: tuple
    shape: tuple
    fields: dict = field(default_factory=dict)
    low: float = -np.inf
    high: float = np.inf

    def stored_as(self, name: str, form: Format, scale: float) -> host.Host:
        """The node with an output of a format and real scale."""
        return self.node(name=name, inputs=tuple(source.name for source in self.sources), shape=self.shape, format=form,
                         scale=float(scale), low=self.low, high=self.high, **self.fields)

    def last(self) -> OutputFormat:
        """(format, scale, error) as a network's output: 16 bits with which nothing saturates."""
        node = self.stored_as(self.name, Signed(OUTPUT_BITS), 1.0)
        reach = float(node.reach(*(source.largest * source.scale for source in self.sources))) or 1.0
        form = Unsigned(OUTPUT_BITS) if self.low >= 0 else Signed(OUTPUT_BITS)
        scale = reach / form.max
        return OutputFormat(form, scale, {"largest": scale / 2, "share": scale / 2 / reach})


def product(name: str, first, second, where: str) -> Hosted:
    """The product of two stored tensors, of which one may have one value a channel; raises GraphError for other shapes."""
    if first.shape[1:] == (1, 1):
        first, second = second, first
    if second.shape not in (first.shape, (first.shape[0], 1, 1)):
        raise GraphError(f"{where}: a product of tensors of shapes {first.shape} and {second.shape} is not known; it needs "
                         "equal shapes, or one value a channel")
    return Hosted(host.Product, name, (first, second), first.shape)


def bilinear(name: str, source, shape: tuple, corners: bool, where: str) -> Hosted:
    """An upsampling of a stored tensor to `shape` (c, h, w); raises GraphError unless its factors are whole."""
    factor = tuple(new // old for new, old in zip(shape[1:], source.shape[1:]))
    if shape != (source.shape[0], *(old * by for old, by in zip(source.shape[1:], factor))):
        raise GraphError(f"{where}: bilinear upsampling from {source.shape[1:]} to {shape[1:]} is not known; use whole "
                         "factors")
    return Hosted(host.Bilinear, name, (source,), shape, dict(factor=factor, corners=corners))


def shuffle(node: type, name: str, source, block: int, crd: bool) -> host.Host:
    """A host.DepthToSpace or SpaceToDepth of a stored tensor, whose integers stay what they are."""
    made = node(name=name, inputs=(source.name,), shape=(0, 0, 0), format=source.form, scale=source.scale, block=block,
                crd=crd)
    return replace(made, shape=made.shape_of(source.shape))
