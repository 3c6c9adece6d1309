"""A trace in which the sizes of tensors are numbers, for models whose forward pass asks for them.

torch.fx passes proxies through a model, and a proxy has no size: padding that is computed from the height of a map, as
networks converted from TensorFlow do, cannot be traced. Here each proxy has an example, one image through a copy of the
model. The number of images stays open.
"""

import contextlib
import copy
import io
import operator

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from esbflow.graph.errors import GraphError
from esbflow.quant.proxy import Proxy


class _Shapes(ShapeProp):
    """Notes of each node that is a size what it is, in `meta["size"]`."""

    def run_node(self, n: fx.Node):
        result = super().run_node(n)
        if not isinstance(result, torch.Tensor):
            n.meta["size"] = result
        return result


def known_sizes(value):
    """An argument of a node after `propagate_shapes`: numbers in place of nodes that are sizes."""
    return fx.map_arg(value, lambda node: node.meta.get("size", node))


def propagate_shapes(model: fx.GraphModule, shape: tuple) -> None:
    """Note in `meta["tensor_meta"].shape` of each node what it is for one image of `shape` (c, h, w), or of other axes.

    Raises
    ------
    GraphError
        if the model does not take it.
    """
    image = torch.zeros(1, *shape, device=next((p.device for p in model.parameters()), None))
    try:
        # torch prints a traceback of its own before it raises.
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
            _Shapes(model).propagate(image)
    except RuntimeError as error:
        raise _refused(shape, error.__cause__ or error) from None


def _refused(shape: tuple, error: Exception) -> GraphError:
    return GraphError(f"the network does not take images of shape {tuple(shape)}: {error}")


class _SizedProxy(Proxy):
    @property
    def shape(self) -> tuple:
        """All numbers but that of images, which a node computes."""
        sizes = tuple(self.tracer.example(self.node).shape)
        return (self._images(), *sizes[1:]) if sizes and self.node.op != "get_attr" else sizes

    def size(self, dim: int | None = None):
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> int:
        return self.tracer.example(self.node).dim()

    def dim(self) -> int:
        return self.ndim

    def __len__(self) -> int:
        """Of what is split; the images of a tensor have no number yet."""
        parts = self.tracer.example(self.node)
        return len(parts) if isinstance(parts, (tuple, list)) else super().__len__()

    def _images(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_method", "size", (self, 0), {})


def sized(base: type) -> type:
    """A tracer class whose proxies have sizes, of one that decides what it traces into: sized(base)(model, shape)."""

    class SizedTracer(base):
        def __init__(self, model: nn.Module, shape: tuple):
            super().__init__()
            first = next((p for p in (*model.parameters(), *model.buffers())), torch.zeros(()))
            self._image = torch.zeros(1, *shape, device=first.device)
            self._copy = copy.deepcopy(model).eval()  # examples must not move the model's statistics
            self._examples = {}
            self._computes = False

        def example(self, node: fx.Node):
            """What a node computes of one image; GraphError if it cannot."""
            if node not in self._examples:
                before, self._computes = self._computes, True
                try:
                    with torch.no_grad():
                        self._examples[node] = self._computed(node)
                except RuntimeError as error:
                    raise _refused(self._image.shape[1:], error) from None
                finally:
                    self._computes = before
            return self._examples[node]

        def iter(self, obj: fx.Proxy):
            """The parts of what is split."""
            parts = self.example(obj.node)
            return iter([obj[i] for i in range(len(parts))]) if isinstance(parts, (tuple, list)) else super().iter(obj)

        def call_module(self, m, forward, args, kwargs):
            """torch.fx asks of each module that is called, those of the copy among them."""
            return forward(*args, **kwargs) if self._computes else super().call_module(m, forward, args, kwargs)

        def _computed(self, node: fx.Node):
            if node.op == "placeholder":
                return self._image
            if node.op == "get_attr":
                return operator.attrgetter(node.target)(self._copy)
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.example)
            if node.op == "call_module":
                return self._copy.get_submodule(node.target)(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            return node.target(*args, **kwargs)

        def proxy(self, node: fx.Node) -> fx.Proxy:
            return _SizedProxy(node, self)

    return SizedTracer
