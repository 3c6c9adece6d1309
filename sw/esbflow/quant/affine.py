"""A product or sum with a constant, as a layer: residual scaling, LayerScale, x / 6, 1 - x, the slope of a leaky ReLU."""

import operator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from esbflow.graph.errors import GraphError
from esbflow.lowering.engine_layer import one_a_channel

OPERATORS = {"multiply": operator.mul, "divide": operator.truediv, "add": operator.add, "subtract": operator.sub}


class Coefficients(NamedTuple):
    """float64 (channels,) each, of y = factor * x + shift."""

    factor: np.ndarray
    shift: np.ndarray


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
        if self.operation == "subtract_from":
            return self.constant - x
        return OPERATORS[self.operation](x, self.constant)

    def coefficients(self, channels: int, rank: int, where: str) -> Coefficients:
        """float64 (channels,) factor and shift of y = factor * x + shift, for a tensor of `rank` axes.

        Raises
        ------
        GraphError
            if the constant differs from pixel to pixel, or divides by zero.
        """
        values = one_a_channel(self.constant.detach().cpu().numpy(), rank, channels)
        if values is None:
            raise GraphError(f"{where}: its constant of shape {tuple(self.constant.shape)} is neither one number nor one "
                             f"for each of {channels} channels; fold it into the weights, or train without it")
        one, zero = np.ones(channels), np.zeros(channels)
        if self.operation == "divide" and (values == 0).any():
            raise GraphError(f"{where}: it divides by zero")
        return Coefficients(*{"multiply": lambda: (values, zero), "divide": lambda: (1 / values, zero),
                              "add": lambda: (one, values), "subtract": lambda: (one, -values),
                              "subtract_from": lambda: (-one, values)}[self.operation]())

    def extra_repr(self) -> str:
        return self.operation


class Slope(Affine):
    """x times the slope of a leaky ReLU, or times what that lacks to one (`rest`).

    slope : a number, or a parameter of one element or (c,), one a channel, as PReLU has it.
    """

    def __init__(self, slope, rest: bool = False):
        super().__init__("multiply", slope)
        self.rest = rest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self._factor(x.dim())

    def coefficients(self, channels: int, rank: int, where: str) -> Coefficients:
        return Affine("multiply", self._factor(rank).detach()).coefficients(channels, rank, where)

    def _factor(self, rank: int) -> torch.Tensor:
        slope = self.constant  # a number has no axis, and so works on any device
        if slope.dim():
            slope = slope.reshape(-1, *[1] * (rank - 2))
        return 1 - slope if self.rest else slope
