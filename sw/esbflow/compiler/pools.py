"""Max pools that are cheaper as layers of their own.

A pool on a convolution's way out works on one tile of sums. Where its windows overlap, what two tiles share is computed
twice: a pool of three rows every two, behind tiles of three rows as wide maps have them, makes the convolution half as
long again. And the drain may take longer for all taps of all windows than the passes do. A layer of its own takes the
drain's time, which the convolution would have hidden. A pool whose windows do not
fit the tiles of its convolution is a layer of its own too.
"""

from dataclasses import replace

from esbflow.compiler.channels import columns, pool_on_unit
from esbflow.compiler.digits import split_weights
from esbflow.compiler.errors import CompileError
from esbflow.compiler.layout import Source, tensor_layout
from esbflow.compiler.lower import Layer, Pool, identity
from esbflow.compiler.stripes import pool_fits
from esbflow.compiler.tile import TileTask, tile
from esbflow.engine_config import EngineConfig
from esbflow.graph.ir import Requantizer


def split_pools(config: EngineConfig, layers: list, batch: int, stripes: bool = False) -> list:
    """The layers, and behind those whose pool costs less apart, a layer for the pool.

    stripes : slices work on stripes of one image: then a pool that has to know where the map begins or ends is apart, too.
    """
    def is_apart(layer):
        return (stripes and layer.op != "MaxPool2d" and not pool_fits(layer)) or _is_cheaper_apart(config, layer, batch)

    return [part for layer in layers for part in (_apart(layer) if is_apart(layer) else (layer,))]


def _is_cheaper_apart(config, layer, batch) -> bool:
    if layer.op == "MaxPool2d" or all(kernel <= stride for kernel, stride in zip(layer.pool.kernel, layer.pool.stride)):
        return False
    source = Source((tensor_layout(config, "workspace", layer.in_shape, layer.in_format, batch),))
    target = tensor_layout(config, "workspace", layer.out_shape, layer.out_format, batch)
    planes = -(-layer.in_shape[0] // layer.groups // config.rows) * source.digits
    turns = min(config.accumulators_per_pixel, -(-layer.conv_shape[0] // config.cols))
    passes = turns * layer.kernel[0] * layer.kernel[1] * len(split_weights(
        layer.weight, f"layer {layer.name}", False, config.weight_min, config.weight_max, config.radix_bits))
    _, height, width = layer.conv_shape
    try:
        tiling = tile(TileTask(config, layer, source, target, passes, planes))
    except CompileError:
        return True
    computed = sum(row.conv1 - row.conv0 for row in tiling.rows) * sum(col.conv1 - col.conv0 for col in tiling.cols)
    taps = layer.pool.kernel[0] * layer.pool.kernel[1]
    apart = pool_on_unit(config, _apart(layer)[1])
    if apart.maximum:
        taps, words = 1, target.groups * height * -(-width // config.words_per_beat) * config.beats_per_word
        loads = max(words, target.groups * target.height * target.width * (columns(apart).gap + 1))
    else:
        loads = 0
    per_pixel = target.digits * config.tile_channels // config.requantize_lanes  # cycles of the drain
    pooled = target.height * target.width * per_pixel
    within = max(planes * passes * computed, pooled * layer.pool.kernel[0] * layer.pool.kernel[1])
    return within > max(planes * passes * height * width, height * width * per_pixel) + max(pooled * taps, loads)


def _apart(layer: Layer) -> tuple:
    channels = layer.conv_shape[0]
    alone = replace(layer, target=layer.name, out_shape=layer.conv_shape, pool=Pool())
    pooled = replace(layer, lookup=None, levels=None)
    if layer.lookup is not None and not layer.lookup.rises(layer.rounded_format):  # then the pool came first
        alone, pooled = replace(alone, lookup=None, levels=None, out_format=layer.rounded_format), layer
    return alone, replace(
        pooled, name=layer.target, op="MaxPool2d", sources=(alone.target,), source_channels=(channels,),
        in_shape=layer.conv_shape, weight=identity(channels), groups=channels, stride=(1, 1), padding=(0, 0),
        dilation=(1, 1), requantizer=Requantizer.pass_through(channels), in_format=alone.out_format, macs=0)
