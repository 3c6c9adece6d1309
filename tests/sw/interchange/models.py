"""For the tests of interchange: small ONNX models node by node, and what onnxruntime and qonnx compute of them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.interchange.onnx_file import GraphError, from_proto
from esbflow.interchange.onnx_import import import_model

QONNX = "qonnx.custom_op.general"
OFF_TIES = 2**-13  # less than the smallest step of any sum in the tests of single operators
TYPES = {"float": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "float16": TensorProto.FLOAT16}


class Model:
    """An ONNX graph that grows; arrays among the inputs become initializers. The input is called "image"."""

    def __init__(self, shape: tuple, kind: str = "float"):
        self.shape, self.kind = shape, kind
        self.nodes, self.constants, self.count = [], [], 0

    def constant(self, array) -> str:
        array = np.asarray(array)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.constants.append(numpy_helper.from_array(array, f"constant{len(self.constants)}"))
        return self.constants[-1].name

    def add(self, operator: str, *inputs, name: str | None = None, domain: str = "", **attributes) -> str:
        self.count += 1
        name = name or f"{operator.lower()}{self.count}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, names, [f"{name}_result"], name=name, domain=domain, **attributes))
        return f"{name}_result"

    def quant(self, value, scale, bits: int, signed: int = 1, narrow: int = 0, zero: float = 0.0, rounding: str = "ROUND",
              **more) -> str:
        return self.add("Quant", value, np.float32(scale), np.float32(zero), np.float32(bits), domain=QONNX, signed=signed,
                        narrow=narrow, rounding_mode=rounding, **more)

    def qdq(self, value, scale, zero) -> str:
        """A pair of QuantizeLinear and DequantizeLinear; `zero` has the type of the codes."""
        codes = self.add("QuantizeLinear", value, np.float32(scale), zero)
        return self.add("DequantizeLinear", codes, np.float32(scale), zero)

    def proto(self, output: str, opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "model", [helper.make_tensor_value_info("image", TYPES[self.kind], self.shape)],
            [helper.make_empty_tensor_value_info(output)], self.constants)
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        return helper.make_model(graph, ir_version=8, producer_name="test", opset_imports=[
            helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 2) for domain in sorted(
                {QONNX, *(node.domain for node in self.nodes)} - {""}))])


def imported(proto: onnx.ModelProto, **options) -> ir.Graph:
    return import_model(from_proto(proto, "model.onnx"), **options)


class _Reader(CalibrationDataReader):
    def __init__(self, images: np.ndarray):
        self.images = iter(images)

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"image": image[None]}


def quantize_by_onnxruntime(source, target, images: np.ndarray, per_channel: bool, symmetric: bool = True, prepared=True) -> None:
    """Write the float model of a file in QDQ format, calibrated by float32 images. Preparing it folds batch norms into
    convolutions, as onnxruntime advises; `source` is overwritten then."""
    if prepared:
        quant_pre_process(source, source, skip_symbolic_shape=True)
    quantize_static(source, target, _Reader(images), quant_format=QuantFormat.QDQ, per_channel=per_channel,
                    activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
                    extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True})


def run_onnxruntime(proto: onnx.ModelProto, images, every: bool = False):
    """The output for float32 images, or for a dict of all inputs; with `every` a list of all outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Fusions compute in integers that may saturate, which is not what the model says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, images if isinstance(images, dict) else {session.get_inputs()[0].name: images})
    return outputs if every else outputs[0]


def run_qonnx(proto: onnx.ModelProto, images: np.ndarray) -> dict:
    """Every tensor by name, image after image."""
    model = ModelWrapper(proto).transform(InferShapes())
    known = {tensor.name for tensor in proto.graph.initializer}
    image = next(value.name for value in proto.graph.input if value.name not in known)
    runs = [execute_onnx(model, {image: images[i:i + 1]}, return_full_exec_context=True) for i in range(len(images))]
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]
            if name not in known and np.ndim(runs[0][name]) in (2, 3, 4)}


def compare(graph: ir.Graph, pixels: np.ndarray, expected: np.ndarray) -> tuple:
    """(largest difference in steps of the output, share of values that differ) from real outputs."""
    levels = np.rint(expected.astype(np.float64).reshape(len(pixels), *graph.output.shape) / graph.output.scale)
    difference = np.abs(execute(graph, pixels) - levels)
    return int(difference.max()), float((difference > 0).mean())


def random_pixels(random: np.random.Generator, count: int, *shape: int) -> np.ndarray:
    return random.integers(0, 256, (count, *shape), dtype=np.uint8)


def real(pixels: np.ndarray) -> np.ndarray:
    return (pixels / 255).astype(np.float32)


# -- single operators, with scales that are powers of two
INT8 = np.int8(0)


def weights(random, *shape):
    return random.integers(-7, 8, shape).astype(np.int8)


def dequantized(m, levels, scale, **options):
    return m.add("DequantizeLinear", levels, np.float32(scale), np.zeros(np.shape(scale), np.int8), **options)


def image_in(m):
    """The image as codes -64..63 of scale 2**-6, from pixels 0..255 by (pixel - 128) / 128."""
    return m.qdq("image", 2**-6, INT8)


def conv_layer(m, random, x, out=4, channels=3, kernel=3, scale=2**-4, bias=True, **options):
    levels = weights(random, out, channels // options.get("group", 1), kernel, kernel)
    w = dequantized(m, levels, np.full(out, scale, np.float32), axis=0)
    return m.add("Conv", x, w, *([np.full(out, OFF_TIES, np.float32)] if bias else []), **options)


def exact(m, x, *, channels=3, count=8, size=6, opset=17):
    """The model that ends in tensor x equals the imported graph on random images; returns the graph."""
    proto = m.proto(x, opset)
    graph = imported(proto, pixel_max=255 / 128, mean=1.0)
    pixels = random_pixels(np.random.default_rng(7), count, channels, size, size)
    images = ((pixels - 128.0) / 128).astype(np.float32)
    assert compare(graph, pixels, run_onnxruntime(proto, images)) == (0, 0.0)
    return graph


def refused(m, x) -> str:
    with pytest.raises(GraphError) as caught:
        imported(m.proto(x))
    assert "\n" not in str(caught.value)
    return str(caught.value)
