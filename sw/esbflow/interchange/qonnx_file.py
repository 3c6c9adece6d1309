"""Builds and writes a QONNX file: constants, nodes and the shapes of all tensors."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from esbflow.files import write_whole
from esbflow.graph.errors import GraphError
from esbflow.interchange.onnx_file import without_quantizers
from esbflow.numbers import ESB, Binary, Format, Signed, Unsigned

DOMAIN, DOMAIN_VERSION, OPSET = "qonnx.custom_op.general", 2, 17


class Writer:
    """An ONNX graph that grows node by node. The batch is fixed."""

    def __init__(self, batch: int):
        self.batch = batch
        self.nodes, self.constants, self.shapes = [], {}, {}
        self.kinds = {}  # of tensors that are not float32

    def constant(self, name: str, values, kind=np.float32) -> str:
        """Add an initializer; its name."""
        self.constants[name] = np.asarray(values, kind)
        return name

    def add(self, operator: str, inputs: list, output: str, shape: tuple, name: str = "", domain: str = "",
            **attributes) -> str:
        """One node with one output; `shape` is without the batch. Returns the output's name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name or f"{output}_{operator}", domain=domain,
                                           **attributes))
        self.shapes[output] = (self.batch, *shape)
        return output

    def quantizer(self, source: str, output: str, shape: tuple, form: Format, scale, rounding: str, where: str) -> str:
        """A Quant, FloatQuant or BipolarQuant node that rounds to `form` with one level worth `scale`.

        Raises
        ------
        GraphError
            if QONNX has no such format.
        """
        def put(operator, inputs, **attributes):
            names = [self.constant(f"{output}_{key}", value) for key, value in inputs.items()]
            return self.add(operator, [source, *names], output, shape, domain=DOMAIN, **attributes)

        if isinstance(form, Binary):
            return put("BipolarQuant", dict(scale=scale))
        if isinstance(form, ESB) and form.exponent_bits > 1:
            if not form.signed:  # FloatQuant is always signed
                source = self.add("Relu", [source], f"{output}_positive", shape)
            # Values of FloatQuant are levels / 2**k times its scale: the exponent bias is 1.
            k = form.significand
            return put("FloatQuant", dict(scale=np.ldexp(scale, k), exponent_bitwidth=form.exponent_bits,
                                          mantissa_bitwidth=k, exponent_bias=1, max_val=np.ldexp(form.max, -k)),
                       has_inf=0, has_nan=0, has_subnormal=1, saturation=1, rounding_mode="ROUND")
        narrow = isinstance(form, ESB) and form.signed
        if not isinstance(form, (Signed, Unsigned, ESB)) or form == Signed(1):
            raise GraphError(f"{where}: QONNX has no format {form}; use u4, s4, ESB or another linear format")
        return put("Quant", dict(scale=scale, zero_point=0, bits=form.bits), signed=int(form.signed), narrow=int(narrow),
                   rounding_mode=rounding)

    def weights(self, name: str, levels: np.ndarray, scale: np.ndarray, form: Format, where: str) -> str:
        """Quantized weights (out, ...) with a scale for each output."""
        if not isinstance(form, (Signed, Unsigned, ESB, Binary)) or not form.contains(levels).all() or form == Signed(1):
            form = next(Signed(bits) for bits in range(2, 33) if Signed(bits).contains(levels).all())
        scale = np.asarray(scale, np.float32).reshape(-1, *[1] * (levels.ndim - 1))
        source = self.constant(f"{name}_weight", levels * scale)
        # ESB weights of an unsigned format are levels of the signed one too.
        if isinstance(form, ESB) and not form.signed:
            form = ESB(form.bits + 1, form.significand)
        output = self.quantizer(source, f"{name}_weight_quantized", levels.shape, form, scale, "ROUND", where)
        self.shapes[output] = levels.shape
        return output

    def model(self, name: str, image: str, output: str, metadata: dict) -> onnx.ModelProto:
        """The whole model, checked."""
        tensors = {key: helper.make_tensor_value_info(key, self.kinds.get(key, TensorProto.FLOAT), shape)
                   for key, shape in self.shapes.items()}
        graph = helper.make_graph(
            self.nodes, name, [tensors.pop(image)], [tensors.pop(output)], value_info=list(tensors.values()),
            initializer=[numpy_helper.from_array(values, key) for key, values in self.constants.items()])
        model = helper.make_model(graph, producer_name="esbflow", ir_version=8, opset_imports=[
            helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)])
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(without_quantizers(model))
        return model


def write(model: onnx.ModelProto, path) -> Path:
    """Write a model, whole or not at all."""
    return write_whole(path, model.SerializeToString())
