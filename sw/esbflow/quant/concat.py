"""One format and scale for tensors that are concatenated.

Tensors that meet in a concatenation, directly or through others, form a group (a dense block is one). The group's format
and scale hold what all of them can be. A tensor that only concatenations read is stored so from the start; one that
others read too keeps its own scale and is requantized once a group.
"""

from dataclasses import dataclass

from torch import fx

from esbflow.numbers import Format
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.layers import SelectChannels
from esbflow.quant.trace import kind_of, tensors


@dataclass(frozen=True, eq=False)
class Group:
    """What concatenated tensors share."""

    form: Format
    scale: float


def common(members: list) -> Group:
    """The format and scale that hold all of `members`, [(format, scale), ...].

    The format with most levels is taken, of signed ones if any member is signed; the scale is the least that saturates none.

    >>> from esbflow.numbers import Signed, Unsigned
    >>> group = common([(Unsigned(4), 2.0), (Signed(8), 0.1)])
    >>> str(group.form), round(group.scale, 3)
    ('s8', 0.236)
    """
    signed = any(form.signed for form, _ in members)
    form = max((form for form, _ in members if form.signed == signed), key=lambda form: form.bits)
    # The ratio first: it is exactly one for equal formats.
    needs = [other.max / form.max * scale for other, scale in members]
    needs += [other.min / form.min * scale for other, scale in members if other.min < 0]
    return Group(form, max(needs))


class ConcatGroups:
    """The groups of a traced model, whose quantizers must know their scales.

    `of_concat` maps concat nodes and `of_store` quantizer nodes to groups. The latter holds only those which may be
    stored in the group's format from the start.
    """

    def __init__(self, graph: fx.Graph, modules: dict):
        self._modules = modules
        parent = {}

        def root(node):
            while parent.setdefault(node, node) is not node:
                node = parent[node]
            return node

        concats = [node for node in graph.nodes if kind_of(node, modules) == "concat"]
        for concat in concats:
            for store in self._stores(concat):
                parent[root(store)] = root(concat)
        members = {}
        for node in parent:
            members.setdefault(root(node), []).append(node)
        self.of_concat, self.of_store = {}, {}
        for nodes in members.values():
            quantizers = {node: modules[node.target] for node in nodes if node.op == "call_module"}
            if not quantizers:
                continue  # the exporter says what is wrong
            known = [q for q in quantizers.values() if not getattr(q, "blank", False)]  # zeros fit any scale
            group = common([(q.form, q.real_scale()) for q in known or quantizers.values()])
            self.of_concat.update({node: group for node in nodes if node not in quantizers})
            self.of_store.update({node: group for node, module in quantizers.items()
                                  if isinstance(module, ActivationQuantizer) and module.form.signed == group.form.signed
                                  and self._only_concatenated(node)})

    def _keeps(self, node: fx.Node) -> bool:
        """Whether a node hands integers on as they are."""
        return (kind_of(node, self._modules) in ("maxpool", "upsample", "crop", "pass")
                or isinstance(self._modules.get(node.target), SelectChannels))

    def _stores(self, node: fx.Node) -> list:
        """The quantizers whose integers reach a concat node."""
        found = []
        for source in tensors(node):
            if kind_of(source, self._modules) == "quantizer":
                found.append(source)
            elif kind_of(source, self._modules) == "concat":
                found.append(source)  # a group of its own until it is joined
            elif self._keeps(source):
                found += self._stores(source)
        return found

    def _only_concatenated(self, node: fx.Node) -> bool:
        return bool(node.users) and all(
            kind_of(user, self._modules) in ("concat", "size") or self._keeps(user) and self._only_concatenated(user)
            for user in node.users)
