"""Low-bit networks from PyTorch training to a shift-add engine: the host software."""
