"""What the compiler says when a graph does not fit an engine."""


class CompileError(ValueError):
    """One sentence: the layer, what does not fit, and the nearest fix."""
