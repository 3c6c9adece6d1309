"""The table of large engines in docs/networks.md: which share of the lanes is at work, and where the other cycles go.

    python -m esbflow.reports.lanes_table docs      # about 5 minutes on 2 cores

Networks are their layers' shapes with random weights of 4 bits, activations of 4 bits and images of 8: cycles depend on no
trained value. Cycles are the exact cycle model's, for ideal memory.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from esbflow.engine_config import engine
from esbflow.files import write_whole
from esbflow.graph import ir
from esbflow.numbers import Signed, Unsigned
from esbflow.reports.estimate import estimate
from esbflow.reports.lost import largest
from esbflow.reports.marks import fill

MARK = "table of large engines"
HEAD = ("| network | engine | lanes | batch | cycles an image | use % | lost to, % of the cycles |\n"
        "|---|---|--:|--:|--:|--:|---|")
MORE = dict(weight_ports=4, channel_unit=32)
"""What the engines of the table have beside their named configuration."""
ROWS = (("resnet18", "table64x64-w4", 1), ("resnet18", "table64x128-w4", 4), ("resnet18", "table128x128-w4", 4),
        ("mobilenet-v2", "table64x64-w4", 1), ("mobilenet-v2", "table64x64-w4", 4),
        ("vgg16-convolutions", "table64x64-w4", 1), ("yolov3-tiny", "table64x64-w4", 1))


class Shapes:
    """Builds a graph layer by layer; methods return the new tensor's name, `last` is the latest."""

    def __init__(self, name: str, size: int):
        table = np.tile(np.arange(-128, 128), (3, 1))
        self.graph = ir.Graph(name, [ir.Input("image", (), (3, size, size), Signed(8), 1.0, table=table)])
        self.random = np.random.default_rng(0)

    @property
    def last(self) -> str:
        return self.graph.output.name

    def add(self, kind, source, shape, form=None, **fields) -> str:
        sources = source if isinstance(source, tuple) else (source,)
        form = form or self.graph[sources[0]].format
        name = f"{kind.__name__.lower()}{len(self.graph.nodes)}"
        self.graph.nodes.append(kind(name, sources, shape, form, 1.0, **fields))
        return self.last

    def _weighted(self, kind, source, shape, weight, form, **fields) -> str:
        rule = _rule(shape[0], 5 if isinstance(source, tuple) else 0)
        return self.add(kind, source, shape, form or Unsigned(4), weight=self.random.integers(-8, 8, weight),
                         weight_format=Signed(4), weight_scale=np.ones(shape[0]), requantizer=rule, **fields)

    def conv(self, channels, kernel=3, stride=1, groups=1, source=None, residual=None, form=None) -> str:
        source = source or self.last
        depth, height, width = self.graph[source].shape
        pad = kernel // 2
        shape = channels, (height + 2 * pad - kernel) // stride + 1, (width + 2 * pad - kernel) // stride + 1
        return self._weighted(ir.Conv2d, (source, residual) if residual else source, shape,
                              (channels, depth // groups, kernel, kernel), form, stride=(stride,) * 2, padding=(pad,) * 2,
                              groups=groups)

    def pool(self, kernel=2, stride=2, padding=0) -> str:
        """As many windows as begin in the map where the stride is 1, as YOLOv3-tiny has it."""
        channels, *size = self.graph[self.last].shape
        size = size if stride == 1 else [(n + 2 * padding - kernel) // stride + 1 for n in size]
        return self.add(ir.MaxPool2d, self.last, (channels, *size), kernel=(kernel,) * 2, stride=(stride,) * 2,
                         padding=(padding,) * 2)

    def classifier(self, classes: int) -> str:
        """Global average pool and linear layer."""
        channels, height, width = self.graph[self.last].shape
        pooled = self.add(ir.AvgPool2d, self.last, (channels, 1, 1), Unsigned(4), kernel=(height, width),
                           stride=(height, width), requantizer=_rule(channels))
        return self._weighted(ir.Linear, pooled, (classes, 1, 1), (classes, channels), Signed(16))


def _rule(channels: int, n: int = 0) -> ir.Requantizer:
    return ir.Requantizer(*(np.full(channels, value, np.int64) for value in (17, 0, 10, n)))


def resnet18(size: int = 224) -> ir.Graph:
    net = Shapes("resnet18", size)
    net.conv(64, 7, 2)
    net.pool(3, 2, 1)
    for channels in (64, 128, 256, 512):
        for block in range(2):
            stride, entry = (2 if channels > 64 and not block else 1), net.last
            inner = net.conv(channels, stride=stride)
            shortcut = net.conv(channels, 1, 2, source=entry, form=Signed(4)) if stride == 2 else entry
            net.conv(channels, source=inner, residual=shortcut)
    net.classifier(1000)
    return net.graph


def mobilenet_v2(size: int = 224) -> ir.Graph:
    net = Shapes("mobilenet-v2", size)
    net.conv(32, stride=2)
    depth = 32
    for factor, channels, blocks, first in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                            (6, 160, 3, 2), (6, 320, 1, 1)):
        for block in range(blocks):
            stride, entry, wide = (1 if block else first), net.last, depth * factor
            if factor > 1:
                net.conv(wide, 1)
            net.conv(wide, stride=stride, groups=wide)
            net.conv(channels, 1, residual=entry if block else None, form=Signed(4))
            depth = channels
    net.conv(1280, 1)
    net.classifier(1000)
    return net.graph


def vgg16_convolutions(size: int = 224) -> ir.Graph:
    net = Shapes("vgg16-convolutions", size)
    for channels, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            net.conv(channels)
        net.pool()
    return net.graph


def yolov3_tiny(size: int = 416) -> ir.Graph:
    net = Shapes("yolov3-tiny", size)
    for channels in (16, 32, 64, 128, 256):
        route = net.conv(channels)
        net.pool()
    net.conv(512)
    net.pool(2, 1)
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


GRAPHS = {"resnet18": resnet18, "mobilenet-v2": mobilenet_v2, "vgg16-convolutions": vgg16_convolutions,
          "yolov3-tiny": yolov3_tiny}


def row(network: str, name: str, batch: int) -> str:
    """One line of the table."""
    config = replace(engine(name), **MORE)
    plan = estimate(GRAPHS[network](), config, batch)
    return (f"| {network} | `{name}` | {config.macs_per_cycle:,} | {batch} | {plan['cycles_per_image']:,.0f} | "
            f"{100 * plan['utilization']:.1f} | {largest(plan['lost'], plan['cycles_per_image'])} |")


def main(arguments: list) -> None:
    """Fill the table of the folder's networks.md."""
    page = Path(arguments[0] if arguments else "docs") / "networks.md"
    content = "\n".join([HEAD, *(row(*entry) for entry in ROWS)])
    write_whole(page, fill(page.read_text(), MARK, content, page.name))


if __name__ == "__main__":
    main(sys.argv[1:])
