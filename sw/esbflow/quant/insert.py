"""Where quantizers go: behind every tensor that the engine stores.

What one engine layer computes in one go (a convolution or linear layer, batch norm, the addition of one residual, ReLU)
stays real inside. Going through a traced model in order, a tensor that a layer is still working on is `Open`; it is closed,
by a quantizer, when something reads it that the same layer cannot compute.
"""

from dataclasses import dataclass

from torch import fx, nn

from esbflow.graph.errors import GraphError
from esbflow.quant.base import Quantizer
from esbflow.quant.elementwise import can_be_negative, function_of
from esbflow.quant.layers import SelectChannels
from esbflow.quant.limit import limit_step
from esbflow.quant.names import names_of
from esbflow.quant.recipe import Recipe
from esbflow.quant.trace import clip_limit, drops, kind_of, tensors, zeros_around

LEVELS = {False: "u8", True: "s8"}
"""The format of what a function of single values reads, by whether it can be negative: all that its table is asked for."""

_WITHIN = {"sums": ("norm", "add", "relu"), "added": ("relu",), "relu": (), "looked up": ()}
"""What the layer of an open tensor can still compute, by the tensor's state."""


@dataclass(frozen=True)
class Open:
    """What an engine layer has computed so far.

    state : "sums" of products or of pixels, "added" when a residual has come in, "relu" at the end. "looked up" is what a
        function of single values, or the host, has made of stored tensors.
    takes_residual : whether the layer can still add another tensor: convolutions, norms of stored tensors.
    copied : whether it is a stored tensor with a gain and an offset so far, which a sum can read as a residual too.
    pooled : by average, which keeps the range and the sign of what it reads.
    limit : where its ReLU clips, or None.
    positive : whether a function gives no value below zero.
    layer : the name of the layer with weights, or None.
    """

    state: str
    takes_residual: bool = False
    copied: bool = False
    pooled: bool = False
    limit: float | None = None
    positive: bool = False
    layer: str | None = None


class QuantizerInsertion:
    """Inserts the quantizers of a recipe into a traced model, whose layers have been swapped; `traced.quantizers` holds
    them by the name of the tensor in the trace. `stored` has the names that a recipe may call each by."""

    def __init__(self, traced: fx.GraphModule, recipe: Recipe):
        self.traced, self.recipe = traced, recipe
        self.graph, self.modules = traced.graph, dict(traced.named_modules())
        self.open = {}  # node -> Open
        self.names, self.stored = names_of(traced.graph), []
        traced.quantizers = nn.ModuleDict()

    def run(self) -> None:
        """Once."""
        readers = {"input": self._input, "conv": self._conv, "linear": self._conv, "avgpool": self._avgpool,
                   "norm": self._norm, "add": self._add, "relu": self._relu, "concat": self._moved, "maxpool": self._moved,
                   "pad": self._pad, "upsample": self._moved, "crop": self._moved, "shuffle": self._moved,
                   "positive": self._moved, "pass": self._pass, "host": self._pass, "lookup": self._lookup,
                   "hosted": self._hosted}
        for node in list(self.graph.nodes):
            for source in tensors(node):
                if source in self.open and len([user for user in source.users if self._kind(user) != "size"]) > 1:
                    self._store(source)
            read = readers.get(self._kind(node))
            if read:
                read(node)

    # -- what each kind of node does to the layer that it belongs to ---------------------------------------------------
    def _input(self, node: fx.Node) -> None:
        self._insert(node, node.name, self.recipe.input_quantizer())

    def _conv(self, node: fx.Node) -> None:
        self._moved(node)
        if not isinstance(self.modules.get(node.target), SelectChannels):
            self.open[node] = Open("sums", takes_residual=self._kind(node) == "conv", layer=self.names[node])

    def _avgpool(self, node: fx.Node) -> None:
        self._moved(node)
        self.open[node] = Open("sums", pooled=True)

    def _norm(self, node: fx.Node) -> None:
        source = tensors(node)[0]
        if self._state(source) != "sums":
            self._store(source)
        before = self.open.pop(source, None)
        self.open[node] = Open("sums", takes_residual=before is None or before.takes_residual,
                               copied=before is None or before.copied, layer=before and before.layer)

    def _add(self, node: fx.Node) -> None:
        sources = tensors(node)
        for source in sources:
            if len(sources) == 1 or (source in self.open and not self.open[source].takes_residual):  # the first: x + x
                self._store(source)
        # The last producer takes the other operand as its residual, scaled if that is all that was done to it.
        if ([self._state(source) for source in tensors(node)] == ["sums", "sums"]
                and not any(self.open[source].copied for source in tensors(node))):
            self._store(tensors(node)[0])
        for source in tensors(node):
            if self._state(source) != "sums":
                self._store(source)
        parts = [self.open.pop(source) for source in tensors(node) if source in self.open]
        self.open[node] = Open("added", layer=next((part.layer for part in parts if part.layer), None))

    def _relu(self, node: fx.Node) -> None:
        source = tensors(node)[0]
        if self._state(source) in ("relu", "looked up"):
            self._store(source)
        before = self.open.pop(source, None)
        self.open[node] = Open("relu", limit=clip_limit(node, self._module(node)), layer=before and before.layer)

    def _lookup(self, node: fx.Node) -> None:
        source = tensors(node)[0]
        layer = self.open.get(source)
        if layer is not None:
            self._store(source, LEVELS[self._can_be_negative(source, layer)])
        positive = not can_be_negative(function_of(node, self._module(node)))
        self.open[node] = Open("looked up", positive=positive)

    def _hosted(self, node: fx.Node) -> None:
        self._moved(node)
        sums = isinstance(self._module(node), nn.ConvTranspose2d)
        self.open[node] = Open("looked up", positive=not sums and not any(map(self._signed, tensors(node))))

    def _moved(self, node: fx.Node) -> None:
        """Reads stored tensors only."""
        for source in tensors(node):
            self._store(source)

    def _pass(self, node: fx.Node) -> None:
        """Dropout before the norm, sum or ReLU of a layer, or between the last layer and the output, parts neither."""
        source = tensors(node)[0]
        if source in self.open and self._continued(node, self.open[source].state):
            self.open[node] = self.open.pop(source)
        else:
            self._moved(node)

    def _continued(self, node: fx.Node, state: str) -> bool:
        """Whether all that reads a "pass" node is the output, or what the layer in this state can still compute."""
        within = _WITHIN[state] if drops(node, self._module(node)) else ()
        kinds = {user: self._kind(user) for user in node.users}
        return all(kind in (*within, "output", "host") or (kind == "pass" and self._continued(user, state))
                   for user, kind in kinds.items())

    def _pad(self, node: fx.Node) -> None:
        """The layers that read it take the zeros over."""
        zeros_around(node, self._module(node))
        self._moved(node)
        for user in node.users:
            kind = self._kind(user)
            if kind not in ("conv", "maxpool"):
                raise GraphError(f"{node.name}: {user.name} cannot take over its zeros; only convolutions and max pools can")
            if kind == "maxpool" and self._signed(node):
                raise GraphError(f"{node.name}: its zeros stand beside values below zero, where the max pool {user.name} "
                                 "would take them for the largest; put a ReLU before it, or use the pool's own padding")

    # -- closing a layer -----------------------------------------------------------------------------------------------
    def _store(self, node: fx.Node, form: str | None = None) -> None:
        """Put a quantizer behind an open tensor, and a second one behind that where what multiplies reads fewer bits than
        what adds. `form` is what the recipe does not say."""
        layer = self.open.pop(node, None)
        if layer is None:
            return
        operation = (node.name, node.target) if node.op == "call_module" else (node.name,)
        names = (layer.layer or self.names[node], self.names[node], *operation)
        self.stored.append(names)
        wide = self.recipe.residual_activations and layer.state == "relu" and any(map(self._adds, node.users))
        multipliers = [user for user in node.users if self._multiplies(user)] if wide else []
        quantizer = self.recipe.activation_quantizer(form or self._format(node, layer, wide), names)
        stored = self._insert(node, node.name, limit_step(quantizer, layer.limit))
        if multipliers:
            self.stored.append((f"{names[0]}_low", f"{node.name}_low"))
            low = self.recipe.activation_quantizer(self.recipe.activations, (*self.stored[-1], *names))
            self._insert(stored, f"{node.name}_low", low, multipliers)

    def _format(self, node: fx.Node, layer: Open, wide: bool) -> str:
        recipe = self.recipe
        if wide:
            return recipe.residual_activations
        if layer.state == "relu" or layer.positive:
            return recipe.activations
        return recipe.signed_activations if self._can_be_negative(node, layer) else recipe.pooled_activations

    def _insert(self, node: fx.Node, name: str, quantizer: Quantizer, readers: list | None = None) -> fx.Node:
        """The node of a quantizer behind `node`, which `readers` (all, if None) read in its place."""
        self.traced.quantizers[name] = quantizer
        with self.graph.inserting_after(node):
            stored = self.graph.call_module(f"quantizers.{name}", (node,))
        for reader in [user for user in node.users if user is not stored] if readers is None else readers:
            reader.replace_input_with(node, stored)
        return stored

    # -- what is asked of nodes ----------------------------------------------------------------------------------------
    def _kind(self, node: fx.Node) -> str | None:
        return kind_of(node, self.modules)

    def _module(self, node: fx.Node):
        return self.modules.get(node.target) if node.op == "call_module" else None

    def _state(self, node: fx.Node) -> str | None:
        """Of an open tensor; None of a stored one."""
        return self.open[node].state if node in self.open else None

    def _can_be_negative(self, node: fx.Node, layer: Open) -> bool:
        return not (layer.state == "relu" or layer.positive or (layer.pooled and not self._signed(node)))

    def _multiplies(self, user: fx.Node) -> bool:
        kind = self._kind(user)
        return ((kind in ("conv", "linear") and not isinstance(self.modules.get(user.target), SelectChannels))
                or (kind == "pad" and any(map(self._multiplies, user.users))))

    def _adds(self, user: fx.Node) -> bool:
        kind = self._kind(user)
        return (kind in ("add", "avgpool", "crop") or isinstance(self.modules.get(user.target), SelectChannels)
                or (kind == "pass" and any(map(self._adds, user.users))))

    def _signed(self, node: fx.Node) -> bool:
        """Whether what reaches a node was stored in a format with negative levels."""
        if node.op == "call_module" and isinstance(self.traced.get_submodule(node.target), Quantizer):
            return self.traced.get_submodule(node.target).form.signed
        return any(map(self._signed, node.all_input_nodes))
