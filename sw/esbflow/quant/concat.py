"""Which concatenations of a traced model share one format and scale.

Each has that of `joined.common`. Concatenations that read some of the same tensors, as in a dense block, share one where it
is as wide as each would have alone and its step at most twice as large. Then a tensor is requantized once for all of them.
"""

from dataclasses import dataclass

from torch import fx

from esbflow.lowering.joined import common
from esbflow.numbers import Format
from esbflow.quant.layers import SelectChannels
from esbflow.quant.trace import kind_of, tensors

SHARED = 2.0
"""The largest step of a shared format, in that which a concatenation would have alone: one bit."""


@dataclass(frozen=True, eq=False)
class Group:
    """What concatenated tensors share."""

    form: Format
    scale: float


class ConcatGroups:
    """The groups of a traced model, whose quantizers must know their scales.

    `of_concat` maps concat nodes to groups, `of_store` quantizer nodes to the first group that they are in. A concatenation
    of a concatenation joins the latter's parts (`parts`). One that reads what a pool, a repetition or a choice of channels
    makes of a concatenation is in the latter's group, so that nothing is rounded three times.
    """

    def __init__(self, graph: fx.Graph, modules: dict):
        self._modules = modules
        self.of_concat, self.of_store = {}, {}
        self._alone = {}  # concat node -> the (format, scale) that it would have alone
        found = []  # [(nodes, quantizers)], of each group
        for node in graph.nodes:
            if kind_of(node, modules) == "concat":
                stores, moved = self._stores(node)
                self._alone[node] = self._common(stores) if stores else None
                found = self._placed(found, node, stores, moved)
        for nodes, stores in found:
            if stores:  # else the exporter says what is wrong
                group = Group(*self._common(stores))
                self.of_concat.update({node: group for node in nodes})
                for store in stores:
                    self.of_store.setdefault(store, group)

    def parts(self, node: fx.Node) -> list:
        """What a concat node joins, in order; of a concat node among it that one's parts."""
        given = node.args[0] if node.args else node.kwargs["tensors"]
        return [part for source in given
                for part in (self.parts(source) if kind_of(source, self._modules) == "concat" else [source])]

    def _placed(self, found: list, node: fx.Node, stores: set, moved: set) -> list:
        """The groups with a concat node in a group of its own, in those that it must share, or in the first that it may."""
        needed = [group for group in found if group[0] & moved]
        joined = {node}.union(*(group[0] for group in needed)), stores.union(*(group[1] for group in needed))
        others = [group for group in found if not group[0] & moved]
        for i, group in enumerate(others):
            together = group[0] | joined[0], group[1] | joined[1]
            if group[1] & joined[1] and self._may_share(together):
                return [*others[:i], together, *others[i + 1:]]
        return [*others, joined]

    def _may_share(self, group: tuple) -> bool:
        form, scale = self._common(group[1])
        return all(form == own and scale <= SHARED * step for own, step in filter(None, map(self._alone.get, group[0])))

    def _common(self, stores: set) -> tuple:
        modules = [self._modules[node.target] for node in stores]
        known = [module for module in modules if not getattr(module, "blank", False)]  # zeros fit any scale
        return common([(module.form, module.real_scale()) for module in known or modules])

    def _keeps(self, node: fx.Node) -> bool:
        """Whether a node hands integers on as they are."""
        return (kind_of(node, self._modules) in ("maxpool", "upsample", "crop", "pass")
                or isinstance(self._modules.get(node.target), SelectChannels))

    def _stores(self, node: fx.Node) -> tuple:
        """(quantizers whose integers reach a concat node, concat nodes among what is moved on the way)."""
        stores, moved = set(), set()
        for part in self.parts(node):
            while self._keeps(part):
                part = tensors(part)[0]
            if kind_of(part, self._modules) == "quantizer":
                stores.add(part)
            elif kind_of(part, self._modules) == "concat":
                moved.add(part)
                stores |= self._stores(part)[0]
        return stores, moved
