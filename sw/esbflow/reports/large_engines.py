"""Large engines, and the networks that docs/networks.md has figures of on them: graphs, programs and estimates.

Weights are random and of 4 bits, activations of 4 bits, images of 8: cycles depend on no trained value. Networks that
are not in the registry are made of their layers' shapes.
"""

from dataclasses import replace
from functools import cache

import numpy as np

from esbflow.compiler.pipeline import compile_graph
from esbflow.compiler.program import Program
from esbflow.engine_config import EngineConfig
from esbflow.engines import engine
from esbflow.graph import ir
from esbflow.networks.registry import NETWORKS
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.recipe import Recipe
from esbflow.reports.estimate import estimate
from esbflow.reports.networks_table import random_network

MORE = dict(weight_ports=4, channel_unit=32)
"""What these engines have beside their named configuration, but for those of OTHERS."""
LATENCY = 40
_WIDE = dict(rows=32, cols=128, accumulator_depth=1024, requantize_lanes=32, queue_depth=32)
_STRIPES = {**MORE, "stripes": True}
_BATCH_TILES = {**MORE, "batch_tiles": True}
OTHERS = {
    "zcu102-w4a4": {}, "table16x16-w4-slices16": {}, "table32x128-w4": {**MORE, **_WIDE},
    "table64x64-w4-stripes4": _STRIPES,
    **dict.fromkeys(("table64x128-w4", "table128x64-w4", "table128x128-w4"), _BATCH_TILES),
    "table32x32-w4-stripes4": dict(_STRIPES, table_groups=8, accumulator_depth=1024, requantize_lanes=32, queue_depth=32),
}
BASES = {"table32x128-w4": "table64x64-w4", "table64x64-w4-stripes4": "table64x64-w4-slices4",
         "table32x32-w4-stripes4": "table32x32-w4-slices4"}
"""Engines that have no name elsewhere, and those that they differ from."""


class Shapes:
    """Builds a graph layer by layer; methods return the new tensor's name, `last` is the latest."""

    def __init__(self, name: str, size: int):
        table = np.tile(np.arange(-128, 128), (3, 1))
        self.graph = ir.Graph(name, [ir.Input("image", (), (3, size, size), Signed(8), 1.0, table=table)])
        self.random = np.random.default_rng(0)

    @property
    def last(self) -> str:
        """The name of the node that was added last."""
        return self.graph.output.name

    def add(self, kind, source, shape, form=None, **fields) -> str:
        """Append a node of `kind` that reads `source`, by name, and has `shape`; its name."""
        sources = source if isinstance(source, tuple) else (source,)
        form = form or self.graph[sources[0]].format
        name = f"{kind.__name__.lower()}{len(self.graph.nodes)}"
        self.graph.nodes.append(kind(name, sources, shape, form, 1.0, **fields))
        return self.last

    def conv(self, channels, kernel=3, source=None, form=None) -> str:
        """Of the map's size."""
        source = source or self.last
        depth, *size = self.graph[source].shape
        rule = ir.Requantizer(**{name: np.full(channels, value, np.int64)
                                 for name, value in (("m", 17), ("b", 0), ("s", 10), ("n", 0))})
        return self.add(ir.Conv2d, source, (channels, *size), form or Unsigned(4),
                        weight=self.random.integers(-8, 8, (channels, depth, kernel, kernel)), weight_format=Signed(4),
                        weight_scale=np.ones(channels), requantizer=rule, stride=(1, 1), padding=(kernel // 2,) * 2)

    def pool(self, stride=2) -> str:
        """Windows of two by two; as many as begin in the map where the stride is 1, as YOLOv3-tiny has it."""
        channels, *size = self.graph[self.last].shape
        return self.add(ir.MaxPool2d, self.last, (channels, *(n // stride for n in size)), kernel=(2, 2),
                        stride=(stride,) * 2, padding=(0, 0))


def vgg16_convolutions(size: int = 224) -> ir.Graph:
    """The convolutions and pools of VGG-16, shapes only, for images of size x size."""
    net = Shapes("vgg16-convolutions", size)
    for channels, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            net.conv(channels)
        net.pool()
    return net.graph


def yolov3_tiny(size: int = 416) -> ir.Graph:
    """YOLOv3-tiny with both heads, shapes only, for images of size x size."""
    net = Shapes("yolov3-tiny", size)
    for channels in (16, 32, 64, 128, 256):
        route = net.conv(channels)
        net.pool()
    net.conv(512)
    net.pool(1)
    net.conv(1024)
    neck = net.conv(256, 1)
    net.conv(512)
    net.conv(255, 1, form=Signed(8))
    _, height, width = net.graph[net.conv(128, 1, source=neck)].shape
    up = net.add(ir.Upsample, net.last, (128, 2 * height, 2 * width), factor=(2, 2))
    both = net.add(ir.Concat, (up, route), (384, 2 * height, 2 * width))
    net.conv(256, source=both)
    net.conv(255, 1, form=Signed(8))
    return net.graph


GRAPHS = {"vgg16-convolutions": vgg16_convolutions, "yolov3-tiny": yolov3_tiny}
RECIPE = Recipe(weights="s4", activations="u4", signed_activations="s4", residual_activations=None,
                first_weights="s4", last_weights="s4")


@cache
def graph_of(name: str) -> ir.Graph:
    """The graph of a network of the registry, or of one of GRAPHS."""
    return random_network(name, RECIPE).graph if name in NETWORKS else GRAPHS[name]()


def config_of(name: str) -> EngineConfig:
    """The configuration of a row's engine: the named one with MORE, or with what OTHERS says.

    Raises
    ------
    ValueError
        if there is no such engine, listing the known ones.
    """
    return replace(engine(BASES.get(name, name)), **OTHERS.get(name, MORE))


@cache
def program_of(network: str, name: str, batch: int) -> Program:
    """The program of a row, compiled once for all tables."""
    return compile_graph(graph_of(network), config_of(name), batch)


@cache
def plan_of(network: str, name: str, batch: int, bandwidth: float | None = None) -> dict:
    """The estimate of a row, on ideal memory or one whose ports together move so many bytes a cycle."""
    program = program_of(network, name, batch)
    return estimate(graph_of(network), config_of(name), batch, LATENCY, program=program, bandwidth=bandwidth)
