"""What the bitstream flows raise."""


class FlowError(RuntimeError):
    """A bitstream could not be built; the text says why in one sentence."""
