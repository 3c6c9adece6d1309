"""The exported network as a frozen torch module: integer-valued float64, the same m, n, b and s as the graph."""

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from esbflow.graph import host, ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import compute
from esbflow.maps import as_maps
from esbflow.quant.base import round_to_levels
from esbflow.quant.export import export

EXACT = 2 ** 53
"""Integers below this are exact in float64; a requantizer's sum has 42 bits at most."""


class IntegerModule(nn.Module):
    """Computes what the integer graph computes, value for value, on any device that has float64.

    Shapes: images (n, c, h, w) of uint8, or sequences or rows as the graph takes them -> (n, c, h, w) float64, integers of
    the output format; {name: output} where the graph has several.
    """

    def __init__(self, graph: ir.Graph):
        super().__init__()
        self.graph = graph
        self.register_buffer("table", torch.tensor(graph.input.table, dtype=torch.float64))
        for i, node in enumerate(graph.nodes):
            if getattr(node, "weight", None) is not None and not isinstance(node, host.Host):
                self.register_buffer(f"weight_{i}", torch.tensor(node.weight, dtype=torch.float64))
            if isinstance(node, ir.Lookup):
                self.register_buffer(f"table_{i}", torch.tensor(node.table, dtype=torch.float64))
            constants = getattr(node, "requantizer", None)
            if constants is not None:
                for name in "mnbs":
                    values = torch.tensor(getattr(constants, name), dtype=torch.float64)
                    self.register_buffer(f"{name}_{i}", values.reshape(1, -1, 1, 1))

    @torch.no_grad()
    def forward(self, images: torch.Tensor):
        values: dict[str, torch.Tensor] = {}
        images = as_maps(images, self.graph.input.shape, GraphError)
        for i, node in enumerate(self.graph.nodes):
            values[node.name] = self._run(i, node, images, [values[name] for name in node.inputs])
        results = {name: values[node.name] for name, node in self.graph.results.items()}
        return results if self.graph.outputs else results[self.graph.output.name]

    def _requantize(self, i, node, acc, residual=None):
        total = acc * getattr(self, f"m_{i}") + getattr(self, f"b_{i}")
        if residual is not None:
            total = total + residual * getattr(self, f"n_{i}")
        return round_to_levels(total * torch.exp2(-getattr(self, f"s_{i}")), node.format)

    def _run(self, i, node, images, inputs):
        x = inputs[0] if inputs else None
        if isinstance(node, ir.Input):
            index = images.to(torch.int64)
            return torch.stack([self.table[c][index[:, c]] for c in range(node.shape[0])], dim=1)
        if isinstance(node, ir.Conv2d):
            (py, px), (below, right) = node.padding, node.behind(x.shape[1:])
            padded, weight = F.pad(x, (px, right, py, below)), getattr(self, f"weight_{i}")
            acc = F.conv2d(padded, weight, None, node.stride, 0, node.dilation, node.groups)
            return self._requantize(i, node, acc, *inputs[1:])
        if isinstance(node, ir.Linear):
            return self._requantize(i, node, F.linear(x.flatten(1), getattr(self, f"weight_{i}"))[:, :, None, None])
        if isinstance(node, ir.AvgPool2d):
            ones = torch.ones(x.shape[1], 1, *node.kernel, dtype=x.dtype, device=x.device)
            return self._requantize(i, node, F.conv2d(x, ones, None, node.stride, node.padding, 1, x.shape[1]))
        if isinstance(node, ir.MaxPool2d):
            (py, px), (below, right) = node.padding, node.behind(x.shape[1:])
            padded = F.pad(x, (px, right, py, below), value=-float(EXACT))
            return F.max_pool2d(padded, node.kernel, node.stride)[:, :, :node.shape[1], :node.shape[2]]
        if isinstance(node, ir.Concat):
            return torch.cat(inputs, dim=1)
        if isinstance(node, ir.Upsample):
            return x.repeat_interleave(node.factor[0], 2).repeat_interleave(node.factor[1], 3)
        if isinstance(node, ir.Lookup):
            return getattr(self, f"table_{i}")[x.to(torch.int64) & ir.LOOKUP_ENTRIES - 1]
        if isinstance(node, (ir.Add, ir.Requantize)):
            return self._requantize(i, node, *inputs)
        # The host's operators, and those that have no torch here: NumPy computes the same integers.
        integers = (value.cpu().numpy().astype(np.int64) for value in inputs)
        result = compute(self.graph, node, images.cpu().numpy(), *integers)
        return torch.from_numpy(result.copy()).to(images.device, torch.float64)


def integer_module(model: fx.GraphModule, shape: tuple, name: str = "network") -> IntegerModule:
    """The frozen integer module of a model that `quantize` made; raises what `export` raises."""
    return IntegerModule(export(model, name, shape))
