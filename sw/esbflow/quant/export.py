"""A quantized torch model -> the integer graph. Here real scales, batch norms and biases become m, n, b and s.

Walks the fx graph that `quantize` made. Between two quantizers lies one engine layer: its accumulator `acc` of exact
integers and real coefficients, y = gain[c]*acc + residual_gain[c]*r + offset[c]. A quantizer closes it:
level = round(y / scale), with y / scale written as (acc*m + r*n + b) / 2**s.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import fx

from esbflow.graph import host, ir
from esbflow.graph.doubts import doubts, warn
from esbflow.graph.errors import GraphError
from esbflow.graph.validate import validate
from esbflow.lowering.builder import GraphBuilder
from esbflow.lowering.engine_layer import OpenLayer, powers_of_two
from esbflow.lowering.hosted import Hosted, shuffle
from esbflow.lowering.last_layer import FINEST as FINEST_OUTPUT
from esbflow.lowering.last_layer import last_format, rounding_error
from esbflow.lowering.lookup import last_table, lookup
from esbflow.lowering.nodes import Stored, crop, maximum, positive_part, repetition, selection
from esbflow.lowering.view import View, padded, rectangle, unpadded
from esbflow.lowering.windows import windows_fit
from esbflow.maps import map_shape, plane
from esbflow.numbers import Format
from esbflow.quant.activation import ActivationQuantizer, InputQuantizer
from esbflow.quant.affine import Affine
from esbflow.quant.base import check_finite
from esbflow.quant.concat import ConcatGroups
from esbflow.quant.elementwise import Function, function_of
from esbflow.quant.hosted import hosted
from esbflow.quant.layers import SelectChannels
from esbflow.quant.names import INPUT, names_of, renamed, shown
from esbflow.quant.outputs import named_outputs
from esbflow.quant.pooling import average_window, max_window
from esbflow.quant.recipe import recipe_of
from esbflow.quant.sized_trace import known_sizes, propagate_shapes
from esbflow.quant.trace import clip_limit, kind_of, options, zeros_around

FINEST = 2.0 ** -20
"""Scale of a tensor that cannot be anything but zero."""


def export(model: fx.GraphModule, name: str = "network", shape: tuple | None = None) -> ir.Graph:
    """Export a model that `quantize` made and that was trained or calibrated.

    Parameters
    ----------
    model : fx.GraphModule
    name : of the graph.
    shape : (c, h, w) of the input images; (c, length) of sequences, (features,) of rows, which the graph has as maps
        (c, 1, length) and (features, 1, 1).

    `info["modules"]` of the graph says which module of the model each node with weights was. `info["output_error"]` says
    how far the last layer's integers can be from real numbers (`rounding_error` of lowering/last_layer.py), if no quantizer
    follows it.
    A layer that is dead, or an input of next to no codes, is said in a GraphWarning.

    Raises
    ------
    GraphError
        if something has no integer form, naming the layer and the nearest fix.
    ValueError
        if a weight is not finite, or a quantizer has never seen data.
    """
    (recipe, for_shape), shape = recipe_of(model), None if shape is None else tuple(shape)
    if recipe is None:
        raise GraphError("only a model that quantize() made can be exported")
    if shape is None:
        raise GraphError("export needs the shape (channels, height, width) of the input images")
    if for_shape not in (None, shape):
        raise GraphError(f"the model was quantized for images of shape {for_shape}, not {shape}: its sizes are numbers "
                         "now; quantize it for that shape")
    for what, values in (*model.named_parameters(), *model.named_buffers()):
        check_finite(values, what)
    was_training = model.training
    model.eval()
    try:
        propagate_shapes(model, shape)
        with shown(model.graph):
            graph = _Exporter(model, name, recipe, map_shape(shape)).run()
    finally:
        model.train(was_training)
    graph.info["recipe"] = recipe.to_json()
    validate(graph)
    warn(doubts(graph))
    return graph


class _Exporter(GraphBuilder):
    def __init__(self, model, name, recipe, shape):
        super().__init__(name)
        self.model = model
        self.modules = dict(model.named_modules())
        self.recipe = recipe
        self.shape = shape
        self.values = {}
        self.groups = ConcatGroups(model.graph, self.modules)
        self.names = names_of(model.graph)
        self.weighted = {}  # name of a layer with weights -> its module
        self.layers = {}  # tensor -> name of the layer with weights that stores it

    def run(self) -> ir.Graph:
        for node in self.model.graph.nodes:
            kind = kind_of(node, self.modules)
            if kind == "size":
                continue
            module = self.modules.get(node.target) if node.op == "call_module" else None
            inputs = [self.values[n] for n in node.all_input_nodes if n in self.values]
            self.values[node] = getattr(self, f"_{kind}")(node, module, *inputs)
        return renamed(self.graph, {node.name: name for node, name in self.names.items()}, self.layers)

    # -- closing a layer ------------------------------------------------------------------------------------
    def _close(self, layer: OpenLayer, name: str, shape: tuple, form: Format, scale: float) -> Stored:
        if layer.low == 0 and form.min < 0:
            raise GraphError(f"{name}: a tensor after a ReLU needs an unsigned format, not {form}")
        if not _clips(layer, form, scale):
            raise GraphError(f"{name}: its levels reach {form.max * scale:.4g} and its ReLU clips at {layer.high:g}; use "
                             "quantize(), which keeps the step small enough")
        if "weight" in layer.fields:  # a copy of what such a layer stores has its name, too
            self.graph.info.setdefault("modules", {})[name] = self.weighted[layer.name]
            self.layers[name] = layer.name
        return self.append_closed(layer, name, shape, form, scale, f"layer {layer.name}")

    def _looked_up(self, value, node: fx.Node, quantizer) -> Stored:
        """The table of a function, and of the quantizer behind it."""
        real = value.of_levels(quantizer.step.device)
        table = quantizer.integers(real).levels.cpu().numpy()
        return self.append(lookup(_tensor_name(node), value.source, table, quantizer.form, quantizer.real_scale()))

    def _need_stored(self, value, node) -> Stored:
        if not isinstance(value, Stored):
            raise GraphError(f"{node.name}: its input is not quantized; use quantize() to put quantizers in")
        return value

    def _open(self, value, node) -> OpenLayer:
        """The layer that `value` belongs to, or a new Requantize of a stored tensor."""
        return value if isinstance(value, OpenLayer) else OpenLayer.copy_of(value, node.name)

    # -- one method a kind ----------------------------------------------------------------------------------
    def _input(self, node, module):
        return None

    def _quantizer(self, node, module, value):
        if isinstance(module, InputQuantizer):
            return self._image(node, module)
        if not isinstance(module, ActivationQuantizer):
            raise GraphError(f"{node.name}: a quantizer of type {type(module).__name__} cannot store a tensor")
        if isinstance(value, Function):
            return self._looked_up(value, node, module)
        if isinstance(value, Hosted):
            return self.append(value.stored_as(_tensor_name(node), module.form, module.real_scale()))
        layer, form, scale = self._open(value, node), module.form, module.real_scale()
        if module.blank:  # zeros fit any scale; a large one would take the other operand of a sum the bits of its gain
            scale = min(scale, float(np.abs(layer.gain).max()) or FINEST)
            if node in self.groups.of_store:
                scale = min(scale, self.groups.of_store[node].scale)
        return self._close(layer, _tensor_name(node), _shape(node), form, scale)

    def _image(self, node, module):
        return self.append(ir.Input(name=INPUT, inputs=(), shape=self.shape, format=module.form, scale=module.real_scale(),
                                     table=self.recipe.input_table(self.shape[0])))

    def _pad(self, node, module, value):
        around = zeros_around(node, module)
        if len(_real_shape(node)) == 2 and around[::2] != (0, 0):
            raise GraphError(f"{node.name}: it pads the channels of a sequence, which has no integer form; pad its length")
        return padded(self._need_stored(value, node), around)

    def _unpadded(self, value, node, own) -> tuple:
        """(stored tensor, padding before its first row and column): the layer's own and that of a pad before it."""
        value, around = unpadded(value)
        return self._need_stored(value, node), tuple(a + b for a, b in zip(around, own))

    def _conv(self, node, module, value):
        source, padding = self._unpadded(value, node, plane(module.padding, 0))
        kernel, stride, dilation = (plane(values, 1) for values in (module.kernel_size, module.stride, module.dilation))
        fields = dict(stride=stride, padding=padding, dilation=dilation, groups=module.groups)
        reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilation))
        _check_windows(node, source, reach, stride, padding)
        if isinstance(module, SelectChannels):
            weight = module.weight.to(torch.int64).cpu().numpy()
            return self.append(selection(node.name, source, weight, _shape(node), **fields))
        return self._layer(ir.Conv2d, node, module, source, fields)

    def _linear(self, node, module, value):
        read = _real_shape(node.all_input_nodes[0])
        if len(read) > 1:
            raise GraphError(f"{node.name}: a linear layer along the last axis of {read} has no integer form; flatten "
                             "before it, or use a convolution of size 1")
        return self._layer(ir.Linear, node, module, self._need_stored(value, node), {})

    def _layer(self, cls, node, module, source, fields):
        if not hasattr(module, "weight_quantizer"):
            raise GraphError(f"{node.name}: {type(module).__name__} has no weight quantizer, so it has no integer form; use "
                             "quantize(), and take the layer off the recipe's exclude list")
        integers, scale = module.weight_quantizer.integers(module.weight)
        out = integers.shape[0]
        if cls is ir.Conv2d:
            integers = integers.reshape(*integers.shape[:2], *plane(module.kernel_size, 1))
        scale = scale.reshape(-1).double().expand(out).cpu().numpy().copy()
        bias = np.zeros(out) if module.bias is None else module.bias.detach().double().cpu().numpy()
        fields = dict(fields, weight=integers.cpu().numpy(), weight_format=module.weight_quantizer.form,
                      weight_scale=scale)
        self.weighted[self.names[node]] = node.target
        return OpenLayer(cls, self.names[node], source, fields, scale * source.scale, bias)

    def _norm(self, node, module, value):
        layer = self._open(value, node)
        powers = self.recipe.power_of_two and layer.name in self.weighted and layer.residual is None
        if isinstance(module, Affine):
            return layer.affine(*module.coefficients(_shape(node)[0], len(node.meta["tensor_meta"].shape), node.name))
        if module.running_var is None:
            raise GraphError(f"{node.name}: a batch norm without running statistics has no integer form; use "
                             "track_running_stats=True")
        deviation = (module.running_var.double() + module.eps).sqrt().cpu().numpy()
        factor = _numpy(module.weight, 1, len(deviation)) / deviation
        shift = _numpy(module.bias, 0, len(deviation)) - module.running_mean.double().cpu().numpy() * factor
        layer = layer.affine(factor, shift)
        # A scale of weights was a power of two divided by this gain, in float32.
        return replace(layer, gain=powers_of_two(layer.gain)) if powers else layer

    def _positive(self, node, module, value):
        return self.append(positive_part(node.name, self._need_stored(value, node)))

    def _relu(self, node, module, value):
        layer, limit = self._open(value, node), clip_limit(node, module)
        return replace(layer, low=0.0, high=layer.high if limit is None else limit)

    def _lookup(self, node, module, value):
        return Function(self._need_stored(value, node), function_of(node, module), node.name)

    def _hosted(self, node, module, *values):
        return hosted(node, module, _shape(node), tuple(self._need_stored(value, node) for value in values))

    def _add(self, node, module, *values):
        if len(values) == 1:
            values = values * 2
        if len(values) != 2:
            raise GraphError(f"{node.name}: only the sum of two tensors has an integer form")
        layers = [self._open(value, node) for value in values]
        total = layers[0].plus(layers[1])
        if total is None:
            kinds = " and ".join(layer.node.__name__ for layer in layers)
            raise GraphError(f"{node.name}: the engine adds a stored tensor to a stored tensor or to a convolution, which "
                             f"{kinds} here are not; use quantize() to put quantizers in")
        if {layer.source.shape for layer in layers if layer.is_copy} != {_shape(node)}:
            raise GraphError(f"{node.name}: a sum of tensors of different shapes has no integer form")
        return total

    def _maxpool(self, node, module, value):
        kernel, stride, padding = max_window(node, module, _shape(node.all_input_nodes[0]), _shape(node))
        source, padding = self._unpadded(value, node, padding)
        if any(before >= size for before, size in zip(padding, kernel)):
            raise GraphError(f"{node.name}: zeros before its map fill whole windows; pad by less than the kernel")
        _check_windows(node, source, kernel, stride, padding)
        return self.append(maximum(node.name, source, _shape(node), kernel, stride, padding))

    def _avgpool(self, node, module, value):
        source, shape = self._need_stored(value, node), _shape(node)
        kernel, stride, padding = average_window(node, module, source.shape, shape)
        if kernel is None:
            return self._open(self._repeated(source, node.name, stride), node)
        if kernel == stride == (1, 1):
            return self._open(source, node)
        return OpenLayer.average_of(source, node.name, kernel, stride, padding)

    def _upsample(self, node, module, value):
        source, shape = self._need_stored(value, node), _shape(node)
        if any(b % a for a, b in zip(source.shape, shape)):
            raise GraphError(f"{node.name}: upsampling from {source.shape[1:]} to {shape[1:]} has no integer form; use "
                             "whole factors")
        return self._repeated(source, node.name, tuple(b // a for a, b in zip(source.shape[1:], shape[1:])))

    def _shuffle(self, node, module, value):
        source = self._need_stored(value, node)
        names = ("upscale_factor",), ("downscale_factor",)
        down = "unshuffle" in (type(module).__name__ if module is not None else node.target.__name__).lower()
        block, = options(node, module, names[down]).values()
        kind = host.SpaceToDepth if down else host.DepthToSpace
        return self.append(shuffle(kind, node.name, source, block, True))

    def _repeated(self, source, name, factor):
        return self.append(repetition(f"{name}_repeated" if name in self.model.quantizers else name, source, factor))

    def _concat(self, node, module, *values):
        if all(kind_of(user, self.modules) in ("concat", "size") for user in node.users):
            return None  # these join its parts
        stored = [self._need_stored(self.values[part], node) for part in self.groups.parts(node)]
        if _shape(node) != (sum(part.shape[0] for part in stored), *stored[0].shape[1:]):
            raise GraphError(f"{node.name}: only a concatenation of channels has an integer form; use dim=1")
        group = self.groups.of_concat[node]
        return self.concat(node.name, self.alike(stored, group.form, group.scale, lambda part: f"{node.name}_{part.name}",
                                                 f"layer {node.name}"))

    def _pass(self, node, module, value):
        shape = value.shape if isinstance(value, Stored) else _shape(self._computed(node))
        if _shape(node) not in (tuple(shape), (int(np.prod(shape)), 1, 1)):
            raise GraphError(f"{node.name}: a change of shape from {tuple(shape)} to {_shape(node)} has no integer form; "
                             "only flatten has, and its inverse for maps of one pixel")
        return value

    def _host(self, node, module, value):
        name, rank = type(module).__name__ if module is not None else node.name, len(_real_shape(node)) + 1
        if "softmax" in name.lower():
            dim = options(node, module, ("dim",))["dim"]
            dim = dim if dim is not None else 0 if rank == 3 else 1  # torch's choice
            if dim % rank != 1:
                raise GraphError(f"{node.name}: a softmax over axis {dim} is not over the classes; take it out of the model")
        moves = "pixel" in name.lower()
        self.graph.info.setdefault("notes", []).append(f"{node.name} is left to the host: " + (
            "it moves the graph's output" if moves else "the largest value stays the largest"))
        return value

    def _crop(self, node, module, value):
        source, read, shape = self._need_stored(value, node), _real_shape(node.all_input_nodes[0]), _shape(node)
        index, (_, height, width) = known_sizes(node.args[1]), source.shape
        if len(read) < 2 or (Ellipsis in index and len(index) > len(read)):
            raise GraphError(f"{node.name}: a choice of features has no integer form; choose channels of a map, before it "
                             "is flattened")
        taken = torch.arange(height * width).reshape(1, 1, *read[1:])[index].numpy()
        found = rectangle(taken.reshape(shape[1:]), height, width) if taken.size == shape[1] * shape[2] else None
        if found is None:
            raise GraphError(f"{node.name}: what it takes of a map of shape {source.shape} has no integer form; only "
                             "rectangles of pixels have, of all channels")
        return source if shape == source.shape else self.append(crop(node.name, source, shape, *found))

    def _computed(self, node: fx.Node) -> fx.Node:
        """The node that computed what "pass" nodes have passed on since."""
        while kind_of(node, self.modules) in ("pass", "host"):
            node = node.all_input_nodes[0]
        return node

    def _output(self, node, module, *values):
        named, errors, stored = named_outputs(node), {}, {}
        for name, source in named.items():
            if source not in stored:
                stored[source], error = self._last(self.values[source], source)
                errors |= {name: error} if error else {}
        if len(named) > 1:
            self.graph.outputs = {name: stored[source].name for name, source in named.items()}
        elif stored[source].name != self.graph.nodes[-1].name:
            raise GraphError("the network's output must be its last layer")
        if errors:
            self.graph.info["output_error"] = errors if len(named) > 1 else errors[name]

    def _last(self, value, source: fx.Node) -> tuple:
        """(stored tensor, its `rounding_error` or None) of an output."""
        if isinstance(value, Function):
            return self._last_function(value, source)
        if isinstance(value, Hosted):
            form, scale, error = value.last()
            return self.append(value.stored_as(_tensor_name(self._computed(source)), form, scale)), error
        if value is None or isinstance(value, View) or (isinstance(value, Stored) and value.name == INPUT):
            raise GraphError(f"{source.name}: the network returns it as it is, which no layer computes; return what a layer "
                             "makes of it")
        if isinstance(value, Stored):
            return value, None
        finest = 0 if self.recipe.power_of_two else FINEST_OUTPUT
        form, scale = last_format(value, self.recipe.output_bits, finest)
        last = self._computed(source)
        stored = self._close(value, _tensor_name(last), _shape(last), form, scale)
        return stored, rounding_error(value, self.graph.nodes[-1])

    def _last_function(self, value, source: fx.Node) -> tuple:
        last = self._computed(source)
        real = value.of_levels(next(self.model.buffers()).device).double().cpu().numpy()
        table, form, scale, error = last_table(real)
        return self.append(lookup(_tensor_name(last), value.source, table, form, scale)), error


def _tensor_name(node: fx.Node) -> str:
    return node.name.removeprefix("quantizers_")


def _check_windows(node, source, reach, stride, padding):
    """GraphError if a window of a convolution or max pool begins behind its map."""
    if not windows_fit(source.shape, _shape(node), reach, stride, padding):
        raise GraphError(f"{node.name}: zeros behind its map add windows of nothing but zeros; pad by less than the kernel")


def _shape(node: fx.Node) -> tuple:
    return map_shape(_real_shape(node))


def _real_shape(node: fx.Node) -> tuple:
    return tuple(node.meta["tensor_meta"].shape[1:])


def _clips(layer: OpenLayer, form: Format, scale: float) -> bool:
    """Whether a format's largest level does what the layer's ReLU6 does; true of a ReLU without a limit."""
    return form.max * scale <= layer.high * (1 + 1e-6)


def _numpy(parameter, default: float, channels: int) -> np.ndarray:
    return np.full(channels, float(default)) if parameter is None else parameter.detach().double().cpu().numpy()
