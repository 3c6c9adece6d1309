"""From real layers to integer ones: what the front doors for torch and ONNX models share. NumPy only."""
