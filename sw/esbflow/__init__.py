"""Low-bit networks from PyTorch training to a shift-add engine: the host software."""

__version__ = "0.1.0"
