"""What torch models compute that has no exact integer form: the host computes it between two programs of the engine."""

import numpy as np
from torch import fx

from esbflow.graph import host
from esbflow.graph.errors import GraphError
from esbflow.lowering.hosted import Hosted, bilinear, product
from esbflow.quant.trace import PRODUCTS, options


def hosted(node: fx.Node, module, shape: tuple, sources: tuple) -> Hosted:
    """What a "hosted" node computes of stored tensors, of output `shape` (c, h, w).

    Raises
    ------
    GraphError
        for axes, sizes and options that the host's operators do not have.
    """
    if node.target in PRODUCTS:
        return product(node.name, *(sources if len(sources) == 2 else sources * 2), node.name)
    if module is not None and hasattr(module, "output_padding"):
        bias = np.zeros(module.out_channels) if module.bias is None else _numpy(module.bias)
        return Hosted(host.ConvTranspose2d, node.name, sources, shape, dict(
            weight=_numpy(module.weight), bias=bias, stride=module.stride, padding=module.padding,
            more=module.output_padding, dilation=module.dilation, groups=module.groups))
    if "softmax" in (type(module).__name__ if module is not None else node.name).lower():
        if options(node, module, ("dim",))["dim"] != 1:
            raise GraphError(f"{node.name}: the host computes a softmax over channels only; use dim=1")
        return Hosted(host.Softmax, node.name, sources, shape)
    corners = bool(options(node, module, ("size", "scale_factor", "mode", "align_corners"))["align_corners"])
    return bilinear(node.name, *sources, shape, corners, node.name)


def _numpy(values) -> np.ndarray:
    return values.detach().float().cpu().numpy()
