"""The dense products of graph networks as integer graphs for the engine.

A product X W of n nodes is a 1x1 convolution over a map of n x 1 pixels, a node a pixel: the engine reads each weight once
for many nodes. The requantizer passes the accumulator through, so that no bit is lost; scales and offsets, which differ
from node to node, stay with the host:

    x = code * scale + low,   w = integer * weight_scale
    x W = (acc * scale + low * column_sum) * weight_scale + bias,   acc = codes @ integers
"""

import copy
from typing import Any

import numpy as np
import torch

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.graph.validate import validate
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.base import check_finite
from esbflow.quant.layers import QuantLinear
from esbflow.quant.methods.sgquant import FeatureQuantizer, Rows


class IntegerProduct:
    """One dense product in the integers of an executed graph.

    Parameters
    ----------
    layer : QuantLinear (in -> out).
    quantizer : FeatureQuantizer of its input.
    nodes : how many rows are computed at once.
    name : of the graph.
    run : graph, uint8 images -> int64 outputs; the reference executor, or something that equals it.

    Attributes
    ----------
    graph : ir.Graph, uint8 codes (in, nodes, 1) -> exact accumulators (out, nodes, 1).
    shift : what the graph's input table takes off the codes: 128 for 8-bit ones, which the engine reads as signed.

    Raises
    ------
    GraphError
        if weights or features are real numbers, or the accumulator needs more than 32 bits.
    ValueError
        if a weight is not finite.
    """

    def __init__(self, layer: QuantLinear, quantizer: FeatureQuantizer, nodes: int, name: str = "product", run=execute):
        if not hasattr(layer, "weight_quantizer"):
            raise GraphError(f"{name}: its weights are not quantized, so it has no integer form; give the recipe weights")
        if quantizer.real:
            raise GraphError(f"{name}: its features are not quantized, so it has no integer form; give them 8 bits or less")
        self.name, self.quantizer, self.nodes, self.run = name, quantizer, nodes, run
        check_finite(layer.weight, f"{name}: weight")
        layer = copy.deepcopy(layer).eval()  # a scale that training holds must not be the one that is exported
        weight, scale = layer.weight_quantizer.integers(layer.weight)
        self.weight = weight.cpu().numpy()
        self.weight_scale = np.broadcast_to(scale.detach().double().reshape(-1).cpu().numpy(), len(self.weight)).copy()
        self.bias = None if layer.bias is None else layer.bias.detach().double()
        self.form = weight_form = layer.weight_quantizer.form
        bits = quantizer.widest
        self.shift = 128 if bits == 8 else 0
        self.graph = self._graph(Signed(8) if self.shift else Unsigned(bits), weight_form)

    def _graph(self, form, weight_form) -> ir.Graph:
        outputs, inputs = self.weight.shape
        reach = int(np.abs(self.weight).sum(axis=1).max(initial=0)) * max(-form.min, form.max)
        if reach >= 1 << 31:
            raise GraphError(f"{self.name}: its accumulator reaches {reach}, which does not fit 32 bits; use fewer bits")
        table = np.broadcast_to(np.clip(np.arange(256) - self.shift, form.min, form.max), (inputs, 256)).astype(np.int64)
        return validate(ir.Graph(self.name, [
            ir.Input(name="codes", inputs=(), shape=(inputs, self.nodes, 1), format=form, scale=1.0, table=table),
            ir.Conv2d(name=self.name, inputs=("codes",), shape=(outputs, self.nodes, 1),
                      format=Signed(16 if reach < 1 << 15 else 32), scale=1.0, weight=self.weight[:, :, None, None],
                      weight_format=weight_form, weight_scale=self.weight_scale,
                      requantizer=ir.Requantizer.pass_through(outputs))]))

    def images(self, codes: torch.Tensor) -> np.ndarray:
        """Codes (nodes, in) -> the graph's input, uint8 (1, in, nodes, 1)."""
        return np.ascontiguousarray(codes.cpu().numpy().astype(np.uint8).T)[None, :, :, None]

    def accumulate(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes int64 (nodes, in) -> codes @ weight.T, int64 (nodes, out), as the graph computes it."""
        acc = self.run(self.graph, self.images(codes))[0, :, :, 0].T
        return torch.from_numpy(acc + self.shift * self.weight.sum(axis=1))

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Real features (nodes, in) -> real product (nodes, out): quantize, integers, scale."""
        stored = self.quantizer.codes(x, rows)
        sums = torch.from_numpy(self.weight.sum(axis=1))
        result = (self.accumulate(stored.codes) * stored.scale + stored.low * sums) * torch.from_numpy(self.weight_scale)
        return (result if self.bias is None else result + self.bias).to(x.dtype)


def integer_network(network: Any, nodes: int, run=execute) -> torch.nn.Module:
    """A copy, in eval mode, of a quantized graph network whose dense products are computed by integer graphs.

    Raises
    ------
    GraphError
        if a product has no integer form, naming it.
    """
    result = copy.deepcopy(network).eval()
    result.engine = {name: IntegerProduct(getattr(network, name), network.quantizers[point], nodes, name, run)
                     if point in network.quantizers else _refuse(name) for name, point in network.PRODUCTS.items()}
    return result


def _refuse(name: str):
    raise GraphError(f"{name}: its features are not quantized; use quantize_graph_network()")
