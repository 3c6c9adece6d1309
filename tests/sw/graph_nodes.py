"""Nodes from which tests build graphs of one operation."""

import numpy as np
import torch
from hypothesis import strategies as st

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.validate import validate
from esbflow.numbers import Signed

seeds = st.integers(0, 2**32 - 1)


def constants(channels, m=1, b=0, s=0, n=0):
    return ir.Requantizer(**{name: np.full(channels, value, dtype=np.int64)
                             for name, value in dict(m=m, n=n, b=b, s=s).items()})


def input_node(shape, form=Signed(8)):
    """A table that gives pixel - 128, so that every 8-bit code occurs."""
    return ir.Input("input", (), shape, form, 1.0, table=np.tile(np.arange(256) - 128, (shape[0], 1)))


def conv_node(weight, shape, inputs=("input",), form=Signed(32), **fields):
    out = len(weight)
    fields.setdefault("requantizer", constants(out))
    return ir.Conv2d("conv", inputs, shape, form, 1.0, weight=np.asarray(weight, dtype=np.int64),
                     weight_format=Signed(8), weight_scale=np.ones(out), **fields)


def output_of(node, images):
    """What a node makes of images, as float64 torch tensors (codes, result)."""
    graph = validate(ir.Graph("one", [input_node(images.shape[1:]), node]))
    codes = torch.from_numpy(images.astype(np.float64) - 128)
    return codes, torch.from_numpy(execute(graph, images).astype(np.float64))
