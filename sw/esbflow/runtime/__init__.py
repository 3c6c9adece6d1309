"""The PYNQ driver; NumPy only."""
