"""Copies of maps, for readers that take them with several pixels in a word.

A max pool of the channel unit, a depthwise layer or a concatenation makes words of one pixel. A sum needs its residual
packed as its output is, so one such map keeps a whole chain of residuals unpacked. On an engine of more rows than columns
that costs most: a map of `cols` channels leaves half of each word empty, in the array and on every way to and from memory.
There a copy by a convolution of ones pays: from words of one pixel it makes words of several.
"""

from dataclasses import replace

import numpy as np

from esbflow.compiler.lower import Layer, Pool
from esbflow.compiler.packing import keeps_pixels, leaves_room, obstacle, phase_limit
from esbflow.engine_config import EngineConfig
from esbflow.graph.ir import Requantizer


def with_copies(config: EngineConfig, layers: list, outputs: set) -> list:
    """The layers, and behind each that can only make words of one pixel a copy of its map, which those read that can read
    words of several. The same layers where that is not worth a try.

    outputs : the tensors that leave the engine, which are never packed.
    """
    if config.accumulators_per_pixel == 1:
        return layers
    placed: list[Layer] = []
    renamed: dict[str | None, str] = {}
    taken = {layer.target for layer in layers}
    for number, layer in enumerate(layers):
        if _takes_words(config, layer):
            layer = replace(layer, sources=tuple(renamed.get(name, name) for name in layer.sources),
                            residual=renamed.get(layer.residual, layer.residual))
        placed.append(layer)
        readers = [reader for reader in layers[number + 1:] if layer.target in (*reader.sources, reader.residual)]
        if (layer.target not in outputs and leaves_room(config, layer.out_shape[0]) and not _makes_words(config, layer)
                and any(_takes_words(config, reader) for reader in readers)):
            name = f"{layer.target}_packed"
            while name in taken:
                name += "_"
            taken.add(name)
            renamed[layer.target] = name
            placed.append(_copy(layer, name))
    return placed


def without_idle(layers: list, plain: list, pixels: dict) -> list:
    """`layers` as `with_copies` gave them for the `plain` ones, without copies whose map is not packed."""
    targets = {layer.target for layer in plain}
    idle: dict[str | None, str] = {
        layer.target: layer.sources[0] for layer in layers if layer.target not in targets and layer.target not in pixels}
    return [replace(layer, sources=tuple(idle.get(name, name) for name in layer.sources),
                    residual=idle.get(layer.residual, layer.residual)) for layer in layers if layer.target not in idle]


def _makes_words(config: EngineConfig, layer: Layer) -> bool:
    return any(obstacle(layer, taken, 2, limit=phase_limit(config)) is None for taken in (1, 2))


def _takes_words(config: EngineConfig, layer: Layer) -> bool:
    """Whether a layer can read words of two pixels, or add such words to what it makes."""
    return any(obstacle(layer, taken, given, limit=phase_limit(config)) is None
               for taken, given in ((2, 1), (2, 2), *(((1, 2),) if layer.residual is not None else ())))


def _copy(layer: Layer, name: str) -> Layer:
    """What the layer makes, by a convolution that is not taken for one that keeps pixels apart."""
    channels = layer.out_shape[0]
    copy = replace(
        layer, name=name, op="Copy", sources=(layer.target,), source_channels=(channels,), residual=None,
        residual_format=None, target=name, in_shape=layer.out_shape, conv_shape=layer.out_shape,
        weight=np.eye(channels, dtype=np.int64).reshape(channels, channels, 1, 1), groups=1, stride=(1, 1), padding=(0, 0),
        dilation=(1, 1), pool=Pool(), repeat=(1, 1), requantizer=Requantizer.pass_through(channels),
        in_format=layer.out_format, lookup=None, levels=None, stacked=False, maximum=False, macs=0)
    assert not keeps_pixels(copy) or channels == 1
    return copy
