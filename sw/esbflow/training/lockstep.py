"""A quantized network and the real one, on the same images, layer by layer: what each step of a correction looks at."""

from collections.abc import Callable

import torch
from torch import fx, nn

BATCH = 100


def walk(model: fx.GraphModule, real: fx.GraphModule, images: torch.Tensor, visit: Callable) -> None:
    """Run a quantized model once on normalised images, and call visit(name, module, input, wanted) before each of its
    modules computes. `wanted` is the module's (input, output) in the real network, or None where that has no such module.

    What `visit` changes in a module counts for all that comes after it: each layer is seen with the inputs that the layers
    before it give by then. All images go through together, so that nothing is computed twice.
    """
    _Walk(model, _calls(real, images), {name for name, _ in real.named_modules()}, visit).run(images)


def _calls(real, images):
    """(name, input, output) of each call of a module, in order."""
    found = []

    class Recorded(fx.Interpreter):
        def call_module(self, target, args, kwargs):
            result = in_parts(super().call_module, target, args, kwargs)
            found.append((target, args[0], result))
            return result

    interpreter = Recorded(real)
    environment = {}
    last = {}
    for node in real.graph.nodes:
        for used in node.all_input_nodes:
            last[used] = node
    for node in real.graph.nodes:
        interpreter.env = environment
        if node.op == "placeholder":
            environment[node] = images
        elif node.op != "output":
            environment[node] = interpreter.run_node(node)
        for used in node.all_input_nodes:
            if last[used] is node:
                del environment[used]
        yield from found
        found.clear()


class _Walk(fx.Interpreter):
    def __init__(self, model, calls, known, visit):
        super().__init__(model)
        self.calls, self.known, self.visit = calls, known, visit

    @torch.no_grad()
    def run_node(self, node):
        return super().run_node(node)

    def call_module(self, target, args, kwargs):
        wanted = None
        if target in self.known:
            wanted = next(((before, after) for name, before, after in self.calls if name == target), None)
        self.visit(target, self.fetch_attr(target), args[0], wanted)
        return in_parts(super().call_module, target, args, kwargs)


def in_parts(call: Callable, target: str, args: tuple, kwargs: dict):
    """A module's output, computed for so many images at a time that they stay in the cache."""
    if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor):
        return call(target, args, kwargs)
    return torch.cat([call(target, (part,), kwargs) for part in args[0].split(BATCH)])


def has_weights(module: nn.Module) -> bool:
    """Whether a module multiplies with quantized weights."""
    return hasattr(module, "weight_quantizer")
