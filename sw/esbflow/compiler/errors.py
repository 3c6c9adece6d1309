"""What the compiler says when a graph does not fit an engine."""

from esbflow.errors import BadValue


class CompileError(BadValue):
    """One sentence: the layer, what does not fit, and the nearest fix."""
