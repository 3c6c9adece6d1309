"""Quantization methods, one a file, and the registry that makes them from texts."""
