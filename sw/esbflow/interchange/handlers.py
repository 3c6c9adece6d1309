"""The operators of ONNX and QONNX that the import knows, and what handles each: (walk, node, *values of its inputs)."""

from esbflow.interchange.layer_nodes import LAYERS
from esbflow.interchange.quantizer_nodes import QUANTIZERS
from esbflow.interchange.shape_nodes import SHAPES

HANDLERS = {**QUANTIZERS, **LAYERS, **SHAPES}

ELEMENTWISE = {operator for operator, handler in HANDLERS.items() if getattr(handler, "elementwise", False)}
"""Those that do something to each value by itself."""
