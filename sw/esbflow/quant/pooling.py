"""Pools of torch as windows of the integer graph."""

from typing import NamedTuple

from torch import fx, nn

from esbflow.graph.errors import GraphError
from esbflow.graph.ir import zeros_behind
from esbflow.maps import plane
from esbflow.quant.sized_trace import known_sizes
from esbflow.quant.trace import options

_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
OPTIONS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def _pair(value, neutral: int, rank: int) -> tuple:
    """(y, x) of what torch takes as either, for a tensor of `rank` axes: sequences have three."""
    return plane((value,) * (rank - 2) if isinstance(value, int) else value, neutral)


def _rank(node: fx.Node) -> int:
    return len(node.all_input_nodes[0].meta["tensor_meta"].shape)


class PoolWindow(NamedTuple):
    """A pool's window, (y, x) each. Kernel and padding are None where a pool repeats pixels, and stride how often."""

    kernel: tuple | None
    stride: tuple
    padding: tuple | None


def average_window(node: fx.Node, module, source: tuple, shape: tuple) -> PoolWindow:
    """(kernel, stride, padding) of an average pool from maps of shape `source` (c, h, w) to `shape`.

    An adaptive pool to a larger map, which repeats pixels, has no window: (None, factor, None).

    Raises
    ------
    GraphError
        if it has no integer form.
    """
    if _over_map(node, module) or _adaptive(node, module):
        if all(b % a == 0 for a, b in zip(source[1:], shape[1:])) and source != shape:
            return PoolWindow(None, tuple(b // a for a, b in zip(source[1:], shape[1:])), None)
        kernel = _parts(node, source, shape)
        return PoolWindow(kernel, kernel, (0, 0))
    found = known_sizes(options(node, module, OPTIONS))
    kernel, stride, padding = _window(node, found)
    if any(behind > p for behind, p in zip(zeros_behind(source[1:], shape[1:], kernel, stride, padding), padding)):
        raise GraphError(f"{node.name}: its windows reach over maps of {source[1]}x{source[2]} (ceil_mode), where an "
                         "average of fewer pixels has no integer form; use ceil_mode=False")
    if found["divisor_override"] is not None:
        raise GraphError(f"{node.name}: average pooling with divisor_override has no integer form; leave it out")
    if padding != (0, 0) and found["count_include_pad"] is False:
        raise GraphError(f"{node.name}: average pooling with padding needs count_include_pad=True")
    return PoolWindow(kernel, stride, padding)


def max_window(node: fx.Node, module, source: tuple, shape: tuple) -> PoolWindow:
    """(kernel, stride, padding) of a max pool from maps of shape `source` (c, h, w) to `shape`.

    Raises
    ------
    GraphError
        if it has no integer form.
    """
    if _over_map(node, module) or _adaptive(node, module):
        kernel = _parts(node, source, shape)
        return PoolWindow(kernel, kernel, (0, 0))
    found = known_sizes(options(node, module, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")))
    if _pair(found["dilation"] or 1, 1, _rank(node)) != (1, 1):
        raise GraphError(f"{node.name}: a dilated max pool has no integer form; use dilation 1")
    return _window(node, found)


def _window(node: fx.Node, found: dict) -> PoolWindow:
    """(kernel, stride, padding) from a pool's options."""
    size, stride, padding = found["kernel_size"], found["stride"] or found["kernel_size"], found["padding"] or 0
    rank = _rank(node)
    return PoolWindow(_pair(size, 1, rank), _pair(stride, 1, rank), _pair(padding, 0, rank))


def _over_map(node: fx.Node, module) -> bool:
    """Whether a node is a mean or a maximum by axes, which must be those of the map."""
    name = getattr(node.target, "__name__", str(node.target))
    if module is not None or name not in ("mean", "amax"):
        return False
    dims, rank = options(node, None, ("dim",))["dim"], _rank(node)
    dims = (dims,) if isinstance(dims, int) else dims or ()
    if rank not in (3, 4) or sorted(d % rank for d in dims) != list(range(2, rank)):
        axes = "the length of a sequence, dim=2" if rank == 3 else "height and width, dim=(2, 3)"
        raise GraphError(f"{node.name}: a {name} has an integer form only over {axes}")
    return True


def _adaptive(node: fx.Node, module) -> bool:
    name = getattr(node.target, "__name__", str(node.target))
    return isinstance(module, _ADAPTIVE) or (module is None and "adaptive" in name)


def _parts(node: fx.Node, source: tuple, shape: tuple) -> tuple:
    """The window that divides a map of shape `source` into as many as `shape` has pixels."""
    if any(a % b for a, b in zip(source[1:], shape[1:])):
        sizes = " to ".join("x".join(map(str, size[1:])) for size in (source, shape))
        raise GraphError(f"{node.name}: adaptive pooling from {sizes} has no integer form; one size must divide the other")
    return tuple(a // b for a, b in zip(source[1:], shape[1:]))
