"""What is said when a model or a graph cannot be expressed in integers."""

from esbflow.errors import BadValue


class GraphError(BadValue):
    """One sentence: the layer, what is wrong with it, and the nearest fix."""
