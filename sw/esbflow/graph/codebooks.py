"""Weights as codebooks of whole bytes: codewords of d weights, and one or two bytes for each block of d.

Source: Stock et al., "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", ICLR 2020, section 4. Blocks
are d consecutive weights of a row in the order (channels, ky, kx), as training has them (esbflow.quant.methods.product).
Nothing is rounded: codewords are the graph's own integers.
"""

from dataclasses import dataclass

import numpy as np

SIZES = (2, 3, 4, 5, 6, 8, 9, 12, 16, 18)
"""Weights of a block that are tried."""
MOST = 1 << 16
"""Codewords that an index of two bytes can name."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """Weights (out, ...) of `shape`: codewords, int8 (K, d), and indices, uint8 or uint16 (out, blocks)."""

    shape: tuple
    codewords: np.ndarray
    indices: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of codewords and indices."""
        return self.codewords.nbytes + self.indices.nbytes

    def weights(self) -> np.ndarray:
        """int8, of `shape`: a gather of whole codewords."""
        rows = self.codewords[self.indices].reshape(len(self.indices), -1)
        return rows[:, :int(np.prod(self.shape[1:]))].reshape(self.shape)


def codebook_of(weight: np.ndarray, sizes: tuple = SIZES) -> Codebook | None:
    """The smallest byte-aligned codebook of int64 weights (out, ...); None if they are smaller as bytes of their own.

    >>> random = np.random.default_rng(0)
    >>> blocks = random.integers(-99, 99, (16, 4))[random.integers(16, size=256)].reshape(16, 64)
    >>> found = codebook_of(blocks)
    >>> found.codewords.shape, found.indices.shape, found.nbytes, bool((found.weights() == blocks).all())
    ((16, 4), (16, 16), 320, True)
    """
    rows, best = weight.reshape(len(weight), -1), None
    if rows.min() < -128 or rows.max() > 127:
        return None
    for size in sizes:
        if size > rows.shape[1]:
            continue
        padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size))).astype(np.int8)
        codewords, indices = np.unique(padded.reshape(-1, size), axis=0, return_inverse=True)
        if len(codewords) > MOST:
            continue
        kind = np.uint8 if len(codewords) <= 256 else np.uint16
        found = Codebook(weight.shape, codewords, indices.reshape(len(rows), -1).astype(kind))
        if found.nbytes < (best.nbytes if best else rows.size):
            best = found
    return best
