"""A product or sum with a constant, as a layer: residual scaling, LayerScale, x / 6, 1 - x."""

import numpy as np
import torch
from torch import nn

from esbflow.graph.errors import GraphError


class Affine(nn.Module):
    """x and a constant, combined by multiply, divide, add, subtract or subtract_from (constant - x).

    constant : a number, or a parameter or buffer of one element or one a channel, (c, 1, 1) for maps and (c,) for features.
        A parameter goes on training.
    """

    def __init__(self, operation: str, constant):
        super().__init__()
        self.operation = operation
        if isinstance(constant, nn.Parameter):
            self.constant = constant
        else:
            self.register_buffer("constant", torch.as_tensor(constant, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.operation == "multiply":
            return x * self.constant
        if self.operation == "divide":
            return x / self.constant
        if self.operation == "add":
            return x + self.constant
        return x - self.constant if self.operation == "subtract" else self.constant - x

    def coefficients(self, channels: int, rank: int, where: str) -> tuple:
        """float64 (channels,) factor and shift of y = factor * x + shift, for a tensor of `rank` axes.

        Raises
        ------
        GraphError
            if the constant differs from pixel to pixel, or divides by zero.
        """
        values = self.constant.detach().double().cpu().numpy()
        sizes = (1,) * (rank - values.ndim) + values.shape
        if len(sizes) != rank or sizes[0] != 1 or any(size != 1 for size in sizes[2:]) or sizes[1] not in (1, channels):
            raise GraphError(f"{where}: its constant of shape {values.shape} is neither one number nor one for each of "
                             f"{channels} channels; fold it into the weights, or train without it")
        values = np.broadcast_to(values.reshape(-1), channels)
        one, zero = np.ones(channels), np.zeros(channels)
        if self.operation == "divide" and (values == 0).any():
            raise GraphError(f"{where}: it divides by zero")
        return {"multiply": lambda: (values.copy(), zero), "divide": lambda: (1 / values, zero),
                "add": lambda: (one, values.copy()), "subtract": lambda: (one, -values),
                "subtract_from": lambda: (-one, values.copy())}[self.operation]()

    def extra_repr(self) -> str:
        return self.operation
