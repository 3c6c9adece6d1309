"""Builds integer nodes: real gains and offsets become m, n, b and s when a quantizer closes a layer."""

import re
from dataclasses import replace

import numpy as np

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.interchange.quantization import NoFormat, Quantization, limited
from esbflow.interchange.values import Function, Image, Joined, Open, Table
from esbflow.lowering.builder import GraphBuilder
from esbflow.lowering.engine_layer import one_a_channel
from esbflow.lowering.hosted import Hosted
from esbflow.lowering.joined import common
from esbflow.lowering.last_layer import last_format, rounding_error
from esbflow.lowering.lookup import check_finite, last_table, lookup
from esbflow.lowering.nodes import Stored, choice, repetition, selection
from esbflow.lowering.view import View, shape_of
from esbflow.numbers import Binary, Format, Signed, Unsigned


class Builder(GraphBuilder):
    """The graph so far, and what is said about it."""

    def __init__(self, name: str):
        super().__init__(name)
        self.notes = []
        self.errors = {}  # name of an output's tensor -> how far rounding moves it
        self.tables = {}  # name of a stored tensor -> Table, if it is a function of another

    def unique(self, name: str) -> str:
        """A name for a node, from that of a node or tensor of the model: /block/conv1/Conv becomes block_conv1."""
        parts = [part for part in re.split(r"[^0-9A-Za-z]+", name) if part]
        if len(parts) > 1 and parts[-1] in ("Conv", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool", "MaxPool"):
            parts.pop()
        base = "_".join(parts) or "layer"
        known = {node.name for node in self.graph.nodes}
        found, count = base, 2
        while found in known:
            found, count = f"{base}_{count}", count + 1
        return found

    # -- layers ---------------------------------------------------------------------------------------------
    def open(self, value: Stored | Open, where: str) -> Open:
        """The layer that `value` belongs to, or a copy of a stored tensor."""
        if isinstance(value, Open):
            return value
        value = self.plain(value, where)
        if not isinstance(value, Stored):
            raise GraphError(f"{where}: its input is not an activation tensor; only weights and biases may be constants")
        return Open.copy_of(value, shape=value.shape)

    def stored(self, value, where: str) -> Stored:
        """`value`, which must be quantized."""
        value = self.plain(value, where)
        if isinstance(value, Image):
            return self.image(value, where)
        if not isinstance(value, Stored):
            raise GraphError(f"{where}: its input is not quantized; put a quantizer before it")
        return value

    def factor(self, value, where: str) -> Stored:
        """`value`, whose integers are multiplied: a stored tensor times one number is that tensor with another scale."""
        scaled = isinstance(value, Open) and not value.after and value.is_copy and not value.offset.any()
        if scaled and value.gain[0] > 0 and np.ptp(value.gain) == 0:
            return replace(value.source, scale=float(value.gain[0]))
        return self.stored(value, where)

    def image(self, value: Image, where: str) -> Stored:
        """The image in codes of 8 bits, where the model reads it in real numbers: exact where values are pixels times a
        positive number, else to half a step of 1/127 of the largest magnitude."""
        largest = float(np.abs(value.values).max())
        if not np.isfinite(largest):
            raise GraphError(f"{where}: what is done to the model's input gives values that are not finite")
        form = Signed(8) if value.values.min() < 0 else Unsigned(8)
        scale = largest / form.max or 1.0
        table = form.nearest(value.values / scale)
        error = float(np.abs(table * scale - value.values).max())
        exact = error <= 1e-6 * largest  # the values are float32
        note = "the model does not quantize its input: the graph takes it in " + (
            f"{form}, exactly" if exact else f"{form}, to {error:.2g} where its largest value is {largest:.3g}")
        self.notes += [] if note in self.notes else [note]
        return self.input(value.shape, form, scale, table, where)

    def input(self, shape: tuple, form: Format, scale: float, table: np.ndarray, where: str) -> Stored:
        """The graph's input, which is read in one way."""
        for node in self.graph.nodes[:1]:
            if (str(node.format), node.scale) != (str(form), scale) or not np.array_equal(node.table, table):
                raise GraphError(f"{where}: the model's input is read in codes of {node.format} elsewhere and of {form} "
                                 "here; put one quantizer right after the input")
            return Stored(node.name, node.shape, node.format, node.scale)
        return self.append(ir.Input("input", (), shape, form, scale, table=table))

    def plain(self, value, where: str):
        """Several tensors joined; one with zeros around it refused."""
        if isinstance(value, View):
            raise GraphError(f"{where}: it reads the zeros of a Pad, which only convolutions, pools, ReLU and quantizers "
                             "can take over; pad behind it")
        return self.join(value, where) if isinstance(value, Joined) else value

    def quantize(self, value, rule: Quantization, name: str, where: str) -> Stored:
        """Close a layer, requantize a tensor, or make the input's table."""
        if rule.form is None:
            raise GraphError(rule.reason)
        if rule.scale.size != 1:
            raise GraphError(f"{where}: an activation with a scale for each channel has no integer form; use one scale "
                             "a tensor")
        if isinstance(value, Image):
            table = rule.levels(value.values)
            if (isinstance(rule.form, Signed) and rule.form.bits > 8) or rule.form.max > 255:
                raise GraphError(f"{where}: the input is quantized to {rule.form}; the engine reads at most 8 bits")
            return self.input(value.shape, rule.form, rule.step, table, where)
        if isinstance(value, Joined):
            parts = tuple(self.quantize(part, rule, f"{name}_{i}", where) for i, part in enumerate(value.parts))
            return self.join(Joined(parts), where, name)
        if isinstance(value, Function):
            return self.look_up(value, rule, name, where)
        if isinstance(value, Hosted):
            return self.append(value.stored_as(self.unique(value.name or name), rule.form, rule.step))
        if isinstance(value, Stored) and value.scale == rule.step and _holds(rule.form, value.form):
            return value
        layer = self.open(value, where)
        if layer.slope is not None:
            return self._leaky(layer, rule, name, where)
        offset = layer.offset - (0.5 * rule.step if rule.rounding == "floor" else 0.0)  # floor(x) = round(x - 1/2)
        layer, low, high = replace(layer, offset=offset), layer.low / rule.step, layer.high / rule.step
        try:
            return self.close(layer, name, limited(rule.form, low, high, where), rule.step, where)
        except NoFormat:
            if low not in (0, -np.inf) or not isinstance(rule.form, (Signed, Unsigned)) or rule.form.bits > 8:
                raise
        whole = self.close(layer, f"{name}_whole", limited(rule.form, low, np.inf, where), rule.step, where)
        return self._cut_off(whole, int(rule.form.nearest(high)), name)

    def _cut_off(self, whole: Stored, top: int, name: str) -> Stored:
        """min(integer, top), for levels that are no format: top - max(top - integer, 0), by the formats' own clamps."""
        form = Unsigned((top - whole.form.min).bit_length())
        above = self._mirrored(whole, top, self.unique(f"{name}_below"), form)
        return self._mirrored(above, top, self.unique(name), whole.form)

    def _mirrored(self, source: Stored, top: int, name: str, form: Format) -> Stored:
        """The node of top - integer."""
        same = ir.Requantizer.pass_through(source.shape[0])
        return self.append(ir.Requantize(name=name, inputs=(source.name,), shape=source.shape, format=form,
                                         scale=source.scale, requantizer=replace(same, m=-same.m, b=top * same.m)))

    def _leaky(self, layer: Open, rule: Quantization, name: str, where: str) -> Stored:
        """A layer behind which values below zero are multiplied: rounded above zero and below, by a layer each, and added.
        Ties below zero go away from it."""
        if isinstance(rule.form, Binary) or not rule.form.signed:
            raise GraphError(f"{where}: {rule.form} has no levels on both sides of zero; use a signed quantizer behind it")
        if rule.rounding != "nearest":
            raise GraphError(f"{where}: it rounds down behind a LeakyRelu or PRelu; use rounding_mode ROUND")
        plain, slope = replace(layer, after=(), slope=None), layer.slope
        wide = Unsigned(rule.form.bits) if isinstance(rule.form, Signed) else rule.form  # -8 of s4 needs an 8
        parts = [self.quantize(replace(part, low=0.0), replace(rule, form=limited(form, 0, np.inf, where)), f"{name}_{side}",
                               where)
                 for part, form, side in ((plain, rule.form, "above"),
                                          (plain.affine(-np.abs(slope), np.zeros(len(slope))), wide, "below"))]
        total = Open(ir.Add, name, parts[0], {}, np.full(len(slope), rule.step), np.zeros(len(slope)), parts[1],
                     np.where(slope < 0, 1, -1) * rule.step, shape=layer.shape, after=layer.after)
        return self.close(total, name, rule.form, rule.step, where)

    def look_up(self, value: Function, rule: Quantization, name: str, where: str) -> Stored:
        """The table of a function."""
        check_finite(value.values, value.source, where)
        table = rule.levels(value.values)
        stored = self.append(lookup(self.unique(name), value.source, table, rule.form, rule.step))
        self.tables[stored.name] = Table(value.source, table)
        return self._after(value, stored, name)

    def _after(self, value: Function | Open, stored: Stored, name: str) -> Stored:
        """The nodes that come after a stored function."""
        for _, make in value.after:
            stored = self.append(make(self.unique(f"{name}_after"), stored))
        return stored

    def close(self, layer: Open, name: str, form: Format, scale: float, where: str) -> Stored:
        """Append the layer's node, and those after it, with an output of `form` and real `scale`."""
        name = self.unique(layer.name or name)
        names = [*(self.unique(f"{name}_before{len(layer.after) - i}") for i in range(len(layer.after))), name]
        result = self.append_closed(layer, names[0], layer.shape, form, scale, where)
        for after, (_, make) in zip(names[1:], layer.after):
            result = self.append(make(after, result))
        return result

    def moved(self, value, shape: tuple, make, name: str, where: str):
        """A node of `shape` that keeps integers as they are, which `make` gives for a name and a stored tensor: now, or
        when the open layer that it reads is closed."""
        if isinstance(value, (Open, Function)):
            return replace(value, after=(*value.after, (shape, make)))
        return self.append(make(self.unique(name), self.stored(value, where)))

    def chosen(self, value, order, name: str, where: str):
        """Channels of a tensor, in an order; -1 is one of zeros. A 1x1 convolution that keeps the integers."""
        count, height, width = shape_of(value)
        if list(order) == list(range(count)):
            return value
        weight, shape = choice(order, count), (len(order), height, width)
        return self.moved(value, shape, lambda name, source: selection(name, source, weight, shape), name, where)

    def repeated(self, value, factor: tuple, name: str, where: str):
        """Every pixel `factor` (y, x) times."""
        channels, height, width = shape_of(value)
        shape = channels, height * factor[0], width * factor[1]

        return self.moved(value, shape, lambda name, source: repetition(name, source, factor), name, where)

    def join(self, value: Joined, where: str, name: str | None = None) -> Stored:
        """One Concat; parts are requantized where they do not share format and scale."""
        parts = [self.stored(part, where) for part in value.parts]
        form, scale = common([(part.form, part.scale) for part in parts])
        same = self.alike(parts, form, scale, lambda part: self.unique(f"{part.name}_joined"), where)
        return self.concat(self.unique(name or where), same)

    def output(self, value, name: str) -> Stored:
        """An output of the graph: as it is stored, or with 16 or 32 bits and one scale so that nothing saturates. Then
        `errors` says how far its integers can be from real numbers.

        Raises
        ------
        GraphError
            if it is no activation, or ends in a clip that does not begin at zero.
        """
        where = f"output {name!r}"
        value = self.plain(value, where)
        if isinstance(value, Stored):
            return value
        if isinstance(value, Function):
            check_finite(value.values, value.source, where)
            table, form, scale, error = last_table(value.values.astype(np.float64))
            result = self._after(value, self.append(lookup(self.unique(name), value.source, table, form, scale)), name)
            self.errors[result.name] = error
            return result
        if isinstance(value, Hosted):
            form, scale, error = value.last()
            result = self.append(value.stored_as(self.unique(value.name or name), form, scale))
            self.errors[result.name] = error
            return result
        if not isinstance(value, Open):
            raise GraphError(f"{where}: it does not depend on a quantized input; put a quantizer after the input")
        if value.slope is not None:
            raise GraphError(f"{where}: the model ends in a LeakyRelu or PRelu that is not quantized; quantize its output")
        rectified = value.low == 0 < value.high
        if not rectified and (value.low > -np.inf or value.high < np.inf):
            raise GraphError(f"{where}: the model ends in a Clip from {value.low:g} to {value.high:g}, and the engine's "
                             "begin at zero; leave it to the host, or quantize its output")
        form, scale = last_format(value)
        result = self.close(value, name, form, scale, where)
        self.errors[result.name] = rounding_error(value, self.graph.nodes[-1 - len(value.after)])
        return result

    def finish(self, outputs: dict) -> ir.Graph:
        """The graph with the outputs {name: stored tensor}, without nodes on which none of them depends.

        `info["output_error"]` has what `errors` has: of several outputs by name.

        Raises
        ------
        GraphError
            if an output is the graph's input.
        """
        needed, kept = {output.name for output in outputs.values()}, []
        if (unread := next((name for name, output in outputs.items() if output.name == "input"), None)) is not None:
            raise GraphError(f"output {unread!r} is the quantized input, which no layer computes; leave it to the host")
        if len(outputs) > 1:
            self.graph.outputs = {name: output.name for name, output in outputs.items()}
        errors = {name: self.errors[output.name] for name, output in outputs.items() if output.name in self.errors}
        if errors:
            self.graph.info["output_error"] = errors if len(outputs) > 1 else next(iter(errors.values()))
        for node in reversed(self.graph.nodes):
            if node.name in needed:
                needed.update(node.inputs)
                kept.append(node)
        self.graph.nodes = kept[::-1]
        return self.graph


def _holds(outer: Format, inner: Format) -> bool:
    """Whether every level of `inner` is one of `outer`; False where that is not clear at once."""
    linear = all(isinstance(form, (Signed, Unsigned)) for form in (inner, outer))
    return inner == outer or (linear and outer.min <= inner.min and inner.max <= outer.max)


def channels_of(array: np.ndarray, rank: int, shape: tuple, where: str) -> np.ndarray:
    """float64 (c,) of a constant that is combined with a tensor of `rank` axes and `shape` (c, h, w).

    Raises
    ------
    GraphError
        if it differs from pixel to pixel, or would change the tensor's shape.
    """
    values = one_a_channel(array, rank, shape[0])
    if values is None:
        raise GraphError(f"{where}: a constant of shape {np.shape(array)} is not one number, nor one for each of {shape[0]} "
                         "channels; fold it into the weights, or train without it")
    return values

