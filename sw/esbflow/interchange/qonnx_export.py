"""The integer graph -> QONNX.

Every tensor of the graph becomes the output of a Quant, FloatQuant or BipolarQuant node with the tensor's scale; m, n and b
become real constants, m * scale_out / (2**s * scale_in) and so on. A float32 constant determines its 12-bit m exactly, and
b is split in two where 24 bits do not hold it, so that importing the file gives the same integers.
"""

from pathlib import Path

import numpy as np
import onnx

from esbflow.errors import BadValue
from esbflow.graph import ir
from esbflow.graph.validate import validate
from esbflow.interchange.input_line import fit_line
from esbflow.interchange.onnx_import import PIXEL_MAX
from esbflow.interchange.qonnx_file import Writer, write
from esbflow.interchange.quantization import Quantization
from esbflow.numbers import Signed, Unsigned

ROUNDINGS = ("ROUND", "FLOOR")


def export_qonnx(graph: ir.Graph, path, rounding: str = "ROUND", batch: int = 1) -> Path:
    """Write the graph as a QONNX file; nothing is left behind if it fails. See `to_qonnx`."""
    return write(to_qonnx(graph, rounding, batch), path)


def to_qonnx(graph: ir.Graph, rounding: str = "ROUND", batch: int = 1) -> onnx.ModelProto:
    """The graph as a QONNX model of float32 images (batch, c, h, w) with values 0..255.

    Parameters
    ----------
    rounding : "ROUND" is what every QONNX tool knows; exact ties then go to the even level instead of up. "FLOOR" adds half
        a step and rounds down, which is the graph's own rule; FloatQuant has ROUND only.

    Raises
    ------
    GraphError
        if a format has no QONNX operator, naming the layer.
    """
    if rounding not in ROUNDINGS:
        raise BadValue(f"rounding must be ROUND or FLOOR, not {rounding!r}")
    return _Exporter(validate(graph), rounding, batch).run()


class _Exporter:
    def __init__(self, graph: ir.Graph, rounding: str, batch: int):
        self.graph = graph
        self.rounding = rounding
        self.writer = Writer(batch)

    def run(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            getattr(self, f"_{type(node).__name__}")(node)
        return self.writer.model(self.graph.name, self.image, self.graph.output.name, {PIXEL_MAX: "255"})

    # -- what layers share ----------------------------------------------------------------------------------
    def _scale(self, name: str) -> float:
        return float(np.float32(self.graph[name].scale))

    def _image_of(self, name: str) -> str:
        """The tensor as (n, c, h, w)."""
        shape = self.graph[name].shape
        if self.writer.shapes[name][1:] == shape:
            return name
        mapped = f"{name}_mapped"
        if mapped not in self.writer.shapes:
            self.writer.constant(f"{mapped}_shape", [0, -1, 1, 1], np.int64)
            self.writer.add("Reshape", [name, f"{mapped}_shape"], mapped, shape)
        return mapped

    def _scaled(self, tensor: str, gain: np.ndarray, name: str, shape: tuple) -> str:
        """tensor * gain[c]; the tensor itself where every gain is 1."""
        gain = gain.astype(np.float32)
        if (gain == 1).all():
            return tensor
        self.writer.constant(f"{name}_gain", gain.reshape(-1, *[1] * (len(shape) - 1)))
        return self.writer.add("Mul", [tensor, f"{name}_gain"], f"{name}_scaled", shape)

    def _close(self, node: ir.Node, tensor: str, unit: float | np.ndarray, shape: tuple, joined: bool = False) -> None:
        """Append gains, bias, residual and quantizer; `unit` is the real value of one step of the accumulator.

        With `joined`, `tensor` is the sum already, scaled.
        """
        q, scale, form = node.requantizer, self._scale(node.name), node.format
        if not joined:
            tensor = self._scaled(tensor, np.ldexp(q.m * scale, -q.s) / unit, node.name, shape)
        rounding = self.rounding if isinstance(form, (Signed, Unsigned)) else "ROUND"
        offset = (np.ldexp(q.b.astype(np.float64), -q.s) + (0.5 if rounding == "FLOOR" else 0.0)) * scale
        for part in ("offset", "offset_rest"):
            rounded = offset.astype(np.float32)
            if rounded.any():
                self.writer.constant(f"{node.name}_{part}", rounded.reshape(-1, *[1] * (len(shape) - 1)))
                tensor = self.writer.add("Add", [tensor, f"{node.name}_{part}"], f"{node.name}_with_{part}", shape)
            offset = offset - rounded.astype(np.float64)
        if len(node.inputs) > 1 and not joined:
            tensor = self.writer.add("Add", [tensor, self._residual(node)], f"{node.name}_sum", shape)
        self.writer.quantizer(tensor, node.name, shape, form, scale, rounding, f"layer {node.name}")

    def _residual(self, node: ir.Node) -> str:
        q, source = node.requantizer, node.inputs[1]
        gain = np.ldexp(q.n * self._scale(node.name), -q.s) / self._scale(source)
        return self._scaled(self._image_of(source), gain, f"{node.name}_residual", node.shape)

    def _weights(self, node: ir.Node) -> tuple:
        """(name of the quantized weights, float64 scale of each output)."""
        scale = np.asarray(node.weight_scale, np.float32)
        scale = np.where(np.isfinite(scale) & (scale > 0), scale, np.float32(1))
        name = self.writer.weights(node.name, node.weight, scale, node.weight_format, f"layer {node.name}")
        return name, scale.astype(np.float64)

    # -- one method an operator -----------------------------------------------------------------------------
    def _Input(self, node):
        writer, shape, form = self.writer, node.shape, node.format
        scale, where = self._scale(node.name), f"layer {node.name}"
        self.image = f"{node.name}_image"
        writer.shapes[self.image] = (writer.batch, *shape)
        line = fit_line(node.table, form)
        if line is not None:
            gain, offset = ((v * scale).astype(np.float32)[:, None] for v in line)
            rule = Quantization(form, np.float32([scale]), form.min, form.max)
            line = np.array_equal(rule.levels(np.arange(256, dtype=np.float32) * gain + offset), node.table) or None
        if line is None:
            # No line gives these values: look them up.
            places = np.arange(shape[0]).reshape(-1, 1, 1) * 256
            writer.constant(f"{node.name}_first", places)
            writer.constant(f"{node.name}_table", node.table.reshape(-1) * scale)
            writer.add("Add", [self.image, f"{node.name}_first"], f"{node.name}_shifted", shape)
            writer.add("Cast", [f"{node.name}_shifted"], f"{node.name}_places", shape, to=onnx.TensorProto.INT64)
            writer.kinds[f"{node.name}_places"] = onnx.TensorProto.INT64
            tensor = writer.add("Gather", [f"{node.name}_table", f"{node.name}_places"], f"{node.name}_real", shape, axis=0)
        else:
            writer.constant(f"{node.name}_gain", gain[:, :, None])
            writer.constant(f"{node.name}_offset", offset[:, :, None])
            writer.add("Mul", [self.image, f"{node.name}_gain"], f"{node.name}_scaled", shape)
            tensor = writer.add("Add", [f"{node.name}_scaled", f"{node.name}_offset"], f"{node.name}_real", shape)
        writer.quantizer(tensor, node.name, shape, form, scale, "ROUND", where)

    def _Conv2d(self, node):
        weight, scale = self._weights(node)
        source = node.inputs[0]
        tensor = self.writer.add(
            "Conv", [self._image_of(source), weight], f"{node.name}_product", node.shape, node.name,
            kernel_shape=list(node.weight.shape[2:]), strides=list(node.stride),
            pads=[*node.padding, *node.behind(self.graph[source].shape)],
            dilations=list(node.dilation), group=node.groups)
        self._close(node, tensor, scale * self._scale(source), node.shape)

    def _Linear(self, node):
        weight, scale = self._weights(node)
        source, size = node.inputs[0], node.weight.shape[1]
        tensor = source
        if len(self.writer.shapes[source]) == 4:
            tensor = self.writer.add("Flatten", [source], f"{node.name}_flat", (size,), axis=1)
        tensor = self.writer.add("Gemm", [tensor, weight], f"{node.name}_product", node.shape[:1], node.name, transB=1)
        self._close(node, tensor, scale * self._scale(source), node.shape[:1])

    def _MaxPool2d(self, node):
        source = self.graph[node.inputs[0]]
        ends = node.behind(source.shape)  # the node's shape decides, not ceil_mode, which is one for both axes
        self.writer.add("MaxPool", [self._image_of(source.name)], node.name, node.shape, node.name,
                        kernel_shape=list(node.kernel), strides=list(node.stride), pads=[*node.padding, *ends])

    def _AvgPool2d(self, node):
        (py, px), source = node.padding, node.inputs[0]
        tensor = self.writer.add("AveragePool", [self._image_of(source)], f"{node.name}_mean", node.shape, node.name,
                                 kernel_shape=list(node.kernel), strides=list(node.stride), pads=[py, px, py, px],
                                 count_include_pad=1)
        self._close(node, tensor, self._scale(source) / (node.kernel[0] * node.kernel[1]), node.shape)

    def _Add(self, node):
        q, source = node.requantizer, node.inputs[0]
        gain = np.ldexp(q.m * self._scale(node.name), -q.s) / self._scale(source)
        first = self._scaled(self._image_of(source), gain, node.name, node.shape)
        tensor = self.writer.add("Add", [first, self._residual(node)], f"{node.name}_sum", node.shape, node.name)
        self._close(node, tensor, 1.0, node.shape, joined=True)

    def _Requantize(self, node):
        source = node.inputs[0]
        self._close(node, self._image_of(source), self._scale(source), node.shape)

    def _Concat(self, node):
        self.writer.add("Concat", [self._image_of(name) for name in node.inputs], node.name, node.shape, node.name, axis=1)

    def _Lookup(self, node):
        source = self.graph[node.inputs[0]]
        writer, name, shape = self.writer, node.name, node.shape
        first = -ir.LOOKUP_ENTRIES // 2 if source.format.signed else 0
        writer.constant(f"{name}_step", self._scale(source.name))
        # Half a step is added, since Cast rounds toward zero.
        writer.constant(f"{name}_first", 0.5 - first)
        writer.constant(f"{name}_table", np.roll(node.table, first) * self._scale(name))
        writer.add("Div", [self._image_of(source.name), f"{name}_step"], f"{name}_levels", shape)
        writer.add("Add", [f"{name}_levels", f"{name}_first"], f"{name}_shifted", shape)
        writer.add("Cast", [f"{name}_shifted"], f"{name}_places", shape, to=onnx.TensorProto.INT64)
        writer.kinds[f"{name}_places"] = onnx.TensorProto.INT64
        tensor = writer.add("Gather", [f"{name}_table", f"{name}_places"], f"{name}_real", shape, name, axis=0)
        writer.quantizer(tensor, name, shape, node.format, self._scale(name), "ROUND", f"layer {name}")

    def _Upsample(self, node):
        self.writer.constant(f"{node.name}_region", np.zeros(0))
        self.writer.constant(f"{node.name}_factors", [1, 1, *node.factor])
        self.writer.add("Resize", [self._image_of(node.inputs[0]), f"{node.name}_region", f"{node.name}_factors"], node.name,
                        node.shape, node.name, mode="nearest", coordinate_transformation_mode="asymmetric",
                        nearest_mode="floor")
