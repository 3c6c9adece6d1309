"""What the bitstream flows raise."""

from esbflow.errors import UserError


class FlowError(UserError, RuntimeError):
    """A bitstream could not be built; the text says why in one sentence."""
