"""A graph on its way to a program: what was asked for, and what passes have made of it."""

from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from esbflow.compiler.cycles import Cycles, count_cycles
from esbflow.compiler.fold import Fold
from esbflow.compiler.images import RawImage, Unfolding
from esbflow.compiler.layout import Source, TensorLayout
from esbflow.compiler.lower import Layer
from esbflow.compiler.planned_layer import PlannedLayer
from esbflow.compiler.program import Program
from esbflow.compiler.weights import LayerWeights
from esbflow.engine_config import EngineConfig
from esbflow.graph.ir import Graph


@dataclass(frozen=True, eq=False)
class Compilation:
    """What a pass takes and gives. Passes change no value in place, so several of them may go on from the same one.

    The first eight fields are the arguments of compile_graph. Passes settle those that it leaves open, as None.
    """

    graph: Graph
    config: EngineConfig
    batch: int = 1
    fold: bool = True
    packing: dict | None = None  # {tensor: pixels in a word}
    stripes: bool | None = None
    raw: bool = True
    channels_last: bool = False

    images_apart: bool = False  # no tile has the maps of several images
    host: str = ""  # why the host makes the first layer's map, on an engine that could
    layers: list[Layer] = field(default_factory=list)
    first: Layer | None = None  # layer 0 before its input was folded, if that may be
    folded: Fold | None = None
    pixels: RawImage | None = None  # the input, where the load unit makes the first layer's map
    unfolding: Unfolding | None = None  # and how
    shapes: dict[str, tuple] = field(default_factory=dict)  # of maps before they are packed
    layouts: dict[str, TensorLayout] = field(default_factory=dict)
    weights: list[LayerWeights] = field(default_factory=list)  # of each layer
    region: np.ndarray = field(default_factory=partial(np.zeros, 0, np.uint8))  # content of the weights region
    plans: list[PlannedLayer] = field(default_factory=list)
    made: Program | None = None

    @property
    def images(self) -> int:
        """Images that a slice works on."""
        return self.config.rounds(self.batch, bool(self.stripes))

    @cached_property
    def cycles(self) -> Cycles:
        """What the program takes on ideal memory; several passes that try compare it."""
        return count_cycles(self.program)

    @property
    def program(self) -> Program:
        """What the last pass has made."""
        assert self.made is not None, "passes are left"
        return self.made

    def source(self, layer: Layer) -> Source:
        """What a layer reads, as it lies in memory."""
        return Source(tuple(self.layouts[name] for name in layer.sources))
