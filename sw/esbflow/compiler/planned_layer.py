"""A layer whose memory, tiles and weights are settled: what becomes instructions."""

from dataclasses import dataclass

from esbflow.compiler.images import Unfolding
from esbflow.compiler.layout import Source, TensorLayout
from esbflow.compiler.lower import Layer
from esbflow.compiler.tile import Tiling
from esbflow.compiler.weights import LayerWeights


@dataclass(frozen=True, eq=False)
class PlannedLayer:
    """Everything that emission needs of one layer. `number` counts layers of the program."""

    number: int
    layer: Layer
    source: Source
    residual: Source | None
    target: TensorLayout
    tiling: Tiling
    weights: LayerWeights
    resident: bool  # all weight tiles stay in their slots for the whole layer
    unfolding: Unfolding | None = None  # of raw pixels
