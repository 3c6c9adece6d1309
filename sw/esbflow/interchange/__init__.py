"""Exchange of quantized networks with other tools: ONNX (QDQ) and QONNX in, QONNX out. Needs the package onnx."""
