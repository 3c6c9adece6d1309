"""Quantizers, how they get into torch models, and the export of these to integer graphs."""
