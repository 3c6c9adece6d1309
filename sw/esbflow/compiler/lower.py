"""Integer graph -> engine layers. Everything becomes a convolution with a drain.

Pools that stand alone, additions and requantizations are diagonal convolutions; a linear layer is a convolution as
large as its map, over which the images of a batch lie one below the other; a max pool that alone follows a
convolution happens on the convolution's way out. (Not behind a residual: its tile would begin at a column that no
beat begins with.) A lookup is the function table behind the requantizer of the layer that makes its
input, and a max pool behind it joins them where the table rises with its input: then the largest entry is that of the
largest level. A concatenation costs nothing: the layer that reads it reads its parts. Only as the graph's output, or
where it is added, it is a diagonal convolution that copies them. Repeating pixels is a diagonal convolution that takes
each column several times, and whose drain stores each row several times.
"""

from dataclasses import dataclass, replace

import numpy as np

from esbflow.compiler.errors import CompileError
from esbflow.engine_config import EngineConfig
from esbflow.engine_facts import SPLIT_CYCLES
from esbflow.graph import ir
from esbflow.numbers import ESB, Format, Signed, Unsigned

POOL_LIMIT = 15
"""Kernel, stride and padding of a pool are 4-bit fields of the DRAIN instruction."""


@dataclass(frozen=True)
class Pool:
    """A window of a pool, (y, x) each; of one pixel where there is no pool."""

    kernel: tuple = (1, 1)
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)


@dataclass(frozen=True)
class Stripe:
    """How the slices' parts of a layer follow each other, where each makes a stripe of its output.

    made : rows of the output from one slice's to the next's, which is as many as a slice makes
    taken : rows of the map that is loaded from one slice's to the next's;  above : rows that windows begin above the map
    height : rows of the map that is loaded
    """

    made: int
    taken: int
    above: int
    height: int


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution and its drain. Shapes are (c, h, w); `conv_shape` is before the pool, `out_shape` after it."""

    name: str
    op: str
    sources: tuple  # tensors whose channels, in order, it reads
    source_channels: tuple  # of each
    residual: str | None
    target: str
    in_shape: tuple
    conv_shape: tuple
    out_shape: tuple
    weight: np.ndarray
    groups: int
    stride: tuple
    padding: tuple
    dilation: tuple
    pool: Pool
    repeat: tuple  # how often the drain stores a row, and the array takes a column (conv_shape counts those)
    requantizer: ir.Requantizer
    in_format: Format
    residual_format: Format | None
    out_format: Format
    stacked: bool  # the images of a batch are rows of one tall map
    macs: int  # useful multiply-accumulates for one image
    maximum: bool = False  # of a window, in place of its weighed sum: on the channel unit only
    phases: int = 1  # see packing.py: so many accumulators next to each other have weights of their own, one after the other
    lookup: ir.Lookup | None = None  # behind rounding, and behind the pool
    levels: Format | None = None  # what its requantizer rounds to; None where there is no lookup
    row_step: int = 1  # rows of the stored map from one row that is loaded to the next; in_shape counts the loaded ones
    column_step: int = 1  # the same of columns
    stripe: Stripe | None = None  # see stripes.py; shapes are then those of one slice's rows

    @property
    def kernel(self) -> tuple[int, int]:
        """(y, x) of the weights."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def rounded_format(self) -> Format:
        """What the requantizer rounds to: the output's format, or the levels that the function table is asked for."""
        return self.out_format if self.levels is None else self.levels


def skip_rows(layer: Layer, row_beats: int) -> Layer:
    """The layer that loads only the rows it reads, where windows of one row stand `stride` rows apart, as in shortcuts.

    row_beats : of a stored row. Each row is a burst of its own, which takes SPLIT_CYCLES or more.
    """
    step, height, stripe = layer.stride[0], layer.conv_shape[1], layer.stripe
    if layer.kernel[0] > 1 or layer.stacked or layer.padding[0] or step == 1 or step * row_beats < SPLIT_CYCLES:
        return layer
    if stripe is not None:
        if stripe.above:
            return layer
        stripe = replace(stripe, taken=stripe.taken // step, height=-(-stripe.height // step))
    read = min(height, -(-layer.in_shape[1] // step))
    return replace(layer, in_shape=(layer.in_shape[0], read, layer.in_shape[2]), stride=(1, layer.stride[1]), row_step=step,
                   stripe=stripe)


def skip_columns(layer: Layer, config: EngineConfig) -> Layer:
    """The layer that loads only the columns it reads, where windows of one column stand `stride` columns apart.

    Each word is a burst of its own then. So it must be whole beats, and those that are left out must take longer than the
    bursts do: the splitter's SPLIT_CYCLES, or with slices two cycles for each that shares the port and one more.
    """
    step, shared = layer.stride[1], config.slices_per_port
    burst = max(SPLIT_CYCLES, 2 * shared + 1)
    if (layer.kernel[1] > 1 or layer.padding[1] or step == 1 or layer.stacked or layer.phases > 1 or layer.repeat != (1, 1)
            or config.words_per_beat > 1 or step * config.beats_per_word * shared <= burst):
        return layer
    channels, height, width = layer.in_shape
    read = min(layer.conv_shape[2], -(-width // step))
    return replace(layer, in_shape=(channels, height, read), stride=(layer.stride[0], 1), column_step=step)


def storage_bits(form: Format) -> int:
    """Bits in memory that hold a format's integers: 2, 4, 8, 16 or 32; an engine stores whole digits.

    >>> storage_bits(Unsigned(4)), storage_bits(ESB(4, 1)), storage_bits(Signed(16)), storage_bits(Signed(2))
    (4, 8, 16, 2)
    """
    for bits in (2, 4, 8, 16, 32):
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if form.min < 0 or form.signed else (0, (1 << bits) - 1)
        if low <= form.min and form.max <= high:
            return bits
    raise CompileError(f"format {form} needs more than 32 bits")


def _check_format(name: str, form: Format, is_output: bool) -> None:
    if isinstance(form, ESB):
        if form.max > 255 or _octaves(form) > 7:
            raise CompileError(
                f"layer {name}: the engine requantizes to ESB levels up to 255, {form} reaches {form.max}; "
                "use fewer exponent bits")
    elif not isinstance(form, (Signed, Unsigned)):
        raise CompileError(f"layer {name}: the engine has no activations of format {form}; use u4, s4, u8, s8 or ESB")
    if not is_output and storage_bits(form) > 8:
        raise CompileError(f"layer {name}: the engine reads activations of at most 8 bits, not {form}")


def _octaves(form: ESB) -> int:
    exponent_bits = form.bits - form.significand - (1 if form.signed else 0)
    return max(0, 2 ** exponent_bits - 2)


def rounding_fields(form: Format) -> dict:
    """The DRAIN instruction's fields for an output format."""
    if isinstance(form, ESB):
        return dict(bits=storage_bits(form), signed=int(form.signed), esb=1, significand=form.significand,
                    octaves=_octaves(form))
    return dict(bits=form.bits, signed=int(form.signed), esb=0)


def identity(channels: int) -> np.ndarray:
    """Weights of a diagonal convolution that changes nothing."""
    return np.ones((channels, 1, 1, 1), dtype=np.int64)


def lower(graph: ir.Graph) -> list:
    """Engine layers in execution order.

    Raises
    ------
    CompileError
        for an operator or a format that the engine does not have, naming it and the nearest fix.
    """
    consumers: dict[str, list] = {node.name: [] for node in graph.nodes}
    for node in graph.nodes:
        for source in node.inputs:
            consumers[source].append(node)
    nodes, ends = {node.name: node for node in graph.nodes}, graph.ends
    joined = {node.name for node in graph.nodes if isinstance(node, ir.Concat) and node.name not in ends
              and not any(_adds(reader, node) for reader in consumers[node.name])}
    layers, fused = [], set()
    for node in graph.nodes[1:]:
        if node.name in fused or node.name in joined:
            continue
        layer = _lower_node(nodes, joined, node)
        while layer.target not in ends and len(consumers[layer.target]) == 1:
            following = consumers[layer.target][0]
            if isinstance(following, ir.MaxPool2d) and _takes_pool(node, layer):
                _check_pool(following)
                layer = replace(layer, target=following.name, out_shape=following.shape,
                                pool=Pool(following.kernel, following.stride, following.padding))
            elif isinstance(following, ir.Lookup) and layer.lookup is None:
                layer = _looked_up(layer, following, layer.out_format)
            else:
                break
            fused.add(following.name)
        is_output = layer.target in ends and not consumers[layer.target]
        _check_format(layer.name, layer.in_format, False)
        _check_format(layer.name, layer.out_format, is_output)
        _check_format(layer.name, layer.rounded_format, is_output and layer.lookup is None)
        if layer.residual_format is not None:
            _check_format(layer.name, layer.residual_format, False)
        layers.append(layer)
    if not layers:
        raise CompileError(f"graph {graph.name} has no layer after its input")
    return layers


def _takes_pool(node: ir.Node, layer: Layer) -> bool:
    """Whether a max pool that alone reads the layer of `node` can be on its way out."""
    return (isinstance(node, (ir.Conv2d, ir.Linear, ir.AvgPool2d, ir.Add, ir.Requantize)) and layer.pool == Pool()
            and not layer.stacked and layer.residual is None
            and (layer.lookup is None or layer.lookup.rises(layer.rounded_format)))


def _looked_up(layer: Layer, node: ir.Lookup, levels: Format) -> Layer:
    """The layer with the function table of `node` behind its requantizer, which rounds to `levels`."""
    return replace(layer, target=node.name, out_format=node.format, lookup=node, levels=levels)


def _check_pool(node: ir.MaxPool2d) -> None:
    if max(*node.kernel, *node.stride, *node.padding) > POOL_LIMIT:
        raise CompileError(f"layer {node.name}: the engine pools windows and strides up to {POOL_LIMIT}")


def _adds(reader: ir.Node, node: ir.Node) -> bool:
    """Whether `reader` adds what `node` makes, which the residual buffer must find in one piece."""
    return isinstance(reader, (ir.Conv2d, ir.Add)) and node.name in reader.inputs[1:]


def _parts(nodes: dict, joined: set, name: str) -> list:
    """The stored tensors that a tensor consists of."""
    if name not in joined:
        return [nodes[name]]
    return [part for source in nodes[name].inputs for part in _parts(nodes, joined, source)]


def _lower_node(nodes: dict, joined: set, node: ir.Node) -> Layer:
    source = nodes[node.inputs[0]]
    read = node.inputs if isinstance(node, ir.Concat) else node.inputs[:1]
    parts = [part for name in read for part in _parts(nodes, joined, name)]
    in_shape = (sum(part.shape[0] for part in parts), *source.shape[1:])
    common = dict(
        name=node.name, op=type(node).__name__, sources=tuple(part.name for part in parts),
        source_channels=tuple(part.shape[0] for part in parts), residual=None, target=node.name,
        in_shape=in_shape, conv_shape=node.shape, out_shape=node.shape, groups=1, stride=(1, 1), padding=(0, 0),
        dilation=(1, 1), pool=Pool(), repeat=(1, 1), in_format=source.format, residual_format=None,
        out_format=node.format, stacked=False)
    channels = in_shape[0]
    if isinstance(node, ir.Conv2d):
        common.update(weight=node.weight, groups=node.groups, stride=node.stride, padding=node.padding,
                      dilation=node.dilation, requantizer=node.requantizer)
        if len(node.inputs) > 1:
            common.update(residual=node.inputs[1], residual_format=nodes[node.inputs[1]].format)
    elif isinstance(node, ir.Linear):
        weight = node.weight.reshape(-1, *source.shape)
        common.update(weight=weight, stride=source.shape[1:], requantizer=node.requantizer, stacked=True)
    elif isinstance(node, ir.MaxPool2d):
        _check_pool(node)
        common.update(weight=identity(channels), groups=channels, requantizer=ir.Requantizer.pass_through(channels),
                      conv_shape=source.shape, pool=Pool(node.kernel, node.stride, node.padding))
    elif isinstance(node, ir.AvgPool2d):
        ones = np.ones((channels, 1, *node.kernel), dtype=np.int64)
        common.update(weight=ones, groups=channels, stride=node.stride, padding=node.padding,
                      requantizer=node.requantizer)
    elif isinstance(node, ir.Add):
        common.update(weight=identity(channels), groups=channels, requantizer=node.requantizer,
                      residual=node.inputs[1], residual_format=nodes[node.inputs[1]].format)
    elif isinstance(node, (ir.Concat, ir.Upsample)):
        common.update(weight=identity(channels), groups=channels, requantizer=ir.Requantizer.pass_through(channels))
        if isinstance(node, ir.Upsample):
            common.update(repeat=tuple(node.factor), conv_shape=(channels, source.shape[1], node.shape[2]))
    elif isinstance(node, ir.Lookup):
        # Levels come as the integers that they are, whatever format they are of.
        levels = (Signed if source.format.signed else Unsigned)(8)
        common.update(weight=identity(channels), groups=channels, requantizer=ir.Requantizer.pass_through(channels),
                      lookup=node, levels=levels)
    elif isinstance(node, ir.Requantize):
        common.update(weight=identity(channels), groups=channels, requantizer=node.requantizer)
    else:
        raise CompileError(
            f"layer {node.name}: the engine does not run {type(node).__name__}; compile it with `esbflow compile` "
            "or esbflow.split, where the host runs it")
    useful = isinstance(node, (ir.Conv2d, ir.Linear, ir.AvgPool2d))
    layer = Layer(**common, macs=common["weight"].size * node.shape[1] * node.shape[2] if useful else 0)
    # A valid convolution as large as its map is a linear layer.
    if (isinstance(node, ir.Conv2d) and layer.conv_shape[1:] == (1, 1) and layer.kernel == layer.in_shape[1:]
            and layer.padding == (0, 0) and layer.dilation == (1, 1)):
        layer = replace(layer, stride=layer.in_shape[1:], stacked=True)
    if layer.stacked and layer.residual is None and max(layer.stride) > 63:
        layer = replace(layer, stacked=False, stride=(1, 1))
    if not layer.stacked:  # after a single window there is no step to the next
        layer = replace(layer, stride=tuple(1 if step > 63 and size == 1 else step
                                            for step, size in zip(layer.stride, layer.conv_shape[1:])))
    if max(layer.stride) > 63:
        raise CompileError(f"layer {layer.name}: the engine's strides reach 63, not {max(layer.stride)}")
    return layer
