"""What is said when a model or a graph cannot be expressed in integers."""


class GraphError(ValueError):
    """One sentence: the layer, what is wrong with it, and the nearest fix."""
