"""Quantizers, one method a file, and the conversion of torch models."""
