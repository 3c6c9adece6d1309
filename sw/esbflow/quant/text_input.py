"""Embedded sentences as the uint8 images that an integer graph takes.

The engine multiplies signed codes q of -127..127 of the embedding, one step for the whole table. A graph reads uint8
through its input table, which the exporter makes from the recipe's mean and std. With mean 1/2 and std 1/(254 steps)
(`input_recipe`), byte u stands for (u - 127.5) * 254/255 steps, and the code nearest to

    u = 128 + q for q >= 0,    u = 127 + q for q < 0

is q, for every q. So sentences need nothing in the graph that images do not have.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx, nn

from esbflow.errors import BadValue
from esbflow.quant.activation import InputQuantizer
from esbflow.quant.base import check_finite
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe

LARGEST = 127


def input_recipe(recipe: Recipe, embedding: torch.Tensor) -> Recipe:
    """The recipe with the mean and std that make the input's step 1/127 of the largest magnitude in the embedding.

    Raises
    ------
    ValueError
        if the embedding holds NaN or infinity.
    """
    check_finite(embedding, "embedding")
    largest = float(embedding.detach().abs().max()) or 1.0  # any step does for a table of zeros
    return replace(recipe, input_bits=8, mean=(0.5,), std=(0.5 / largest,))


def quantize_sentences(embedding: torch.Tensor, network: nn.Module, recipe: Recipe) -> fx.GraphModule:
    """`quantize` for a network of embedded sentences (n, dim, length, 1). The embedding trains on: its values reach the
    network through the input's quantizer, which passes gradients."""
    return quantize(network, input_recipe(recipe, embedding))


@dataclass(frozen=True, eq=False)
class SentenceInput:
    """What the host keeps of a trained embedding: `bytes_`, uint8 (vocabulary, dim)."""

    bytes_: np.ndarray

    @classmethod
    def of(cls, embedding: torch.Tensor, network: fx.GraphModule) -> "SentenceInput":
        """The table for a network that `quantize_sentences` made.

        Raises
        ------
        ValueError
            if the embedding holds NaN or infinity, or the network has no quantized input.
        """
        check_finite(embedding, "embedding")
        quantizer = next((m for m in network.modules() if isinstance(m, InputQuantizer)), None)
        if quantizer is None:
            raise BadValue("the network's input is not quantized; use quantize_sentences()")
        codes = quantizer.integers(embedding.detach()).levels.clamp(-LARGEST, LARGEST).cpu().numpy()
        return cls((codes + np.where(codes < 0, 127, 128)).astype(np.uint8))

    def images(self, numbers: np.ndarray) -> np.ndarray:
        """Vocabulary numbers (n, length) -> uint8 (n, dim, length, 1), what the graph and the engine read.

        Raises
        ------
        ValueError
            if a number is not in the table.
        """
        numbers = np.asarray(numbers)
        if numbers.ndim != 2:
            raise BadValue(f"sentences must have shape (n, length), not {numbers.shape}")
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self.bytes_):
            raise BadValue(f"vocabulary numbers must be in 0..{len(self.bytes_) - 1}, not "
                             f"{numbers.min()}..{numbers.max()}")
        return np.ascontiguousarray(self.bytes_[numbers].transpose(0, 2, 1))[..., None]
