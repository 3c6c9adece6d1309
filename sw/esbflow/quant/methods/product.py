"""Product quantization: blocks of d weights become one of K codewords.

Source: Stock et al., "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", ICLR 2020, and its released
code (facebookresearch/kill-the-bits). Departs from it: distances that preserve a layer's outputs are computed by k-means
on whitened blocks (the same result without a tensor of blocks x codewords x d), and codewords can be ESB integers.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from esbflow.errors import BadValue
from esbflow.numbers import Format, Signed
from esbflow.quant.base import ScaledLevels, check_finite, straight_through
from esbflow.quant.methods.esb import ESBWeightQuantizer
from esbflow.quant.weights import WeightQuantizer, like_rows, snap_rows

CHUNK = 1 << 22
"""Distances held at a time."""
SAMPLE = 8192
"""Blocks that `prepare` clusters."""
RIDGE = 1e-6
"""Relative to the mean diagonal of a Gram matrix, which may be singular."""


def clamp_count(count: int, vectors: int) -> int:
    """K by the paper: the largest power of two that is neither above `count` nor above a quarter of the blocks; >= 1.

    The released code stays strictly below the quarter.
    """
    return 1 << max(1, min(count, vectors // 4)).bit_length() - 1


def to_blocks(w: torch.Tensor, size: int) -> torch.Tensor:
    """(out, ...) -> (out * blocks, size): rows in order (channels, ky, kx), zeros behind a row that does not divide."""
    rows = w.reshape(len(w), -1)
    return F.pad(rows, (0, -rows.shape[1] % size)).reshape(-1, size)


def from_blocks(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `to_blocks`."""
    return blocks.reshape(shape[0], -1)[:, :shape[1:].numel()].reshape(shape)


def nearest(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index (n,) of each vector's (n, d) nearest centroid (K, d), the first of equals."""
    power = centroids.square().sum(dim=1)
    parts = vectors.split(max(1, CHUNK // len(centroids)))
    return torch.cat([torch.addmm(power, part, centroids.T, alpha=-2).argmin(dim=1) for part in parts])


def whitening(gram: torch.Tensor) -> torch.Tensor:
    """L (d, d) with L L^T = gram, so that v^T gram v is |v L|^2; a little ridge keeps it regular."""
    gram = gram.double()
    size = gram.diagonal().mean().clamp(min=1e-30)
    return torch.linalg.cholesky(gram + RIDGE * size * torch.eye(len(gram), dtype=torch.float64, device=gram.device))


class Clusters(NamedTuple):
    """Centroids (K, d), and the number (n,) of that to which each vector belongs."""

    centroids: torch.Tensor
    assignments: torch.Tensor


def cluster(vectors: torch.Tensor, centroids: torch.Tensor, gram: torch.Tensor | None = None,
            weights: torch.Tensor | None = None, iterations: int = 100, zero: bool = False, seed: int = 0) -> Clusters:
    """k-means with the distance (v - c)^T gram (v - c).

    Parameters
    ----------
    vectors : (n, d). centroids : (K, d), the start.
    gram : (d, d) or None for the identity; X^T X of the inputs that the blocks meet preserves outputs.
    weights : (n,), how much each vector counts, or None for ones.
    iterations : at most; it stops once nothing moves.
    zero : hold the first centroid at zero.
    seed : of the noise by which the largest cluster is split when another is empty.

    Returns centroids (K, d) and assignments (n,).
    """
    factor = torch.eye(vectors.shape[1]) if gram is None else whitening(gram)
    factor = factor.to(vectors.device, vectors.dtype)
    points, centroids = vectors @ factor, centroids @ factor
    weights = torch.ones(len(points), dtype=points.dtype, device=points.device) if weights is None else weights
    generator = torch.Generator().manual_seed(seed)
    spread, assigned = 1e-3 * points.std(unbiased=False), None
    for _ in range(max(1, iterations)):
        found = nearest(points, centroids)
        if assigned is not None and torch.equal(found, assigned):
            break
        assigned = found
        means = _means(points, assigned, weights, centroids)
        if zero:
            means[0] = 0
        centroids = _split_for_empty(means, torch.bincount(assigned, minlength=len(means)), spread, zero, generator)
    assigned = nearest(points, centroids)
    start = torch.linalg.solve_triangular(factor.double(), centroids.double(), upper=False, left=False).to(points.dtype)
    means = _means(vectors, assigned, weights, start)
    if zero:
        means[0] = 0
    return Clusters(means, assigned)


def _means(points, assigned, weights, otherwise):
    """Weighted mean of each cluster; of an empty one `otherwise`."""
    total = torch.zeros(len(otherwise), dtype=torch.float64, device=points.device).index_add_(0, assigned, weights.double())
    sums = torch.zeros(otherwise.shape, dtype=torch.float64, device=points.device)
    sums.index_add_(0, assigned, (points * weights[:, None]).double())
    return torch.where(total[:, None] > 0, sums / total.clamp(min=1e-300)[:, None], otherwise.double()).to(points.dtype)


def _split_for_empty(centroids, count, spread, zero, generator):
    """Each empty cluster takes half of the largest: both sit at its centre, a little noise apart."""
    count = count.clone()
    for empty in (count == 0).nonzero().reshape(-1).tolist():
        largest = int(count[1:].argmax()) + 1 if zero and len(count) > 1 else int(count.argmax())
        if empty == largest or (zero and empty == 0) or count[largest] < 2:
            continue
        noise = torch.randn(centroids.shape[1], generator=generator).to(centroids) * spread
        centroids[empty] = centroids[largest] - noise
        centroids[largest] = centroids[largest] + noise
        count[empty] = count[largest] // 2
        count[largest] -= count[empty]
    return centroids


class _Lookup(torch.autograd.Function):
    """codebook[assignments]; the gradient of a codeword is the mean of its blocks'."""

    @staticmethod
    def forward(ctx, codebook, assignments):
        ctx.save_for_backward(assignments)
        ctx.count = len(codebook)
        return codebook[assignments]

    @staticmethod
    def backward(ctx, gradient):
        assignments, = ctx.saved_tensors
        sums = gradient.new_zeros(ctx.count, gradient.shape[1]).index_add_(0, assignments, gradient)
        return sums / torch.bincount(assignments, minlength=ctx.count).clamp(min=1)[:, None], None


class ProductQuantizer(WeightQuantizer):
    """Blocks of weights to the nearest of learned codewords.

    Parameters
    ----------
    count : the most codewords (K), at most 32768; fewer in small layers, see `clamp_count`.
    size : weights in a block (d), at most a row. A layer with one input channel a group (depthwise, or a first layer of
        grey images) has blocks of at most its kernel's width: with whole kernels as blocks few would remain to cluster.
    form : codewords are rounded to this format times one scale (ESB: what the engine multiplies with), by the least
        error over the codebook; None keeps them real until export, which snaps the codebook to 8-bit integers.
    per_channel : with a learned gain for each output channel, which is not published.
    name : for error messages.

    State, made by `prepare`: codebook, parameter (K, d); assignments, uint8 or int16 (out * blocks,); zero, bool: the
    first codeword is held at zero, as some blocks are; gains, parameter (out,), with per_channel only.

    The values are what codebook and assignments say, whatever w is. Gradient: to codebook and gains only; a codeword gets
    the mean of its blocks'. With `waiting` set the layer computes with w itself.

    Raises
    ------
    ValueError
        for a count or size out of range, an unsigned format, or if w holds NaN or infinity.
    """

    grid = False
    assignments: torch.Tensor
    zero: torch.Tensor

    def __init__(self, count: int, size: int, form: Format | None = None, per_channel: bool = False, name: str = "weight"):
        if not 1 <= count <= 1 << 15 or size < 1:
            raise BadValue(f"a codebook has 1 to 32768 codewords of at least one weight, not {count} of {size}")
        if form is not None and not form.signed:
            raise BadValue(f"codewords need a signed format, not {form}: negative ones would be lost")
        super().__init__(form or Signed(8), per_channel, name)
        self.most, self.size = count, size
        self.rounding = ESBWeightQuantizer(form, per_channel=False, name=name) if form else None
        self.waiting = False

    # -- state ----------------------------------------------------------------------------------------------
    @torch.no_grad()
    def prepare(self, w: torch.Tensor) -> None:
        """A start without data: plain k-means on the weights, on a sample of them in large layers."""
        check_finite(w, self.name)
        width = w.shape[-1] if w.dim() > 2 and w.shape[1] == 1 else w[0].numel()
        self.size = min(self.size, width, w[0].numel())
        if self.per_channel:
            self.gains = nn.Parameter(torch.ones(len(w), dtype=w.dtype, device=w.device))
        vectors = to_blocks(w, self.size)
        count = clamp_count(self.most, len(vectors))
        self.codebook = nn.Parameter(torch.zeros(count, self.size, dtype=w.dtype, device=w.device))
        kind = torch.uint8 if count <= 256 else torch.int16
        self.register_buffer("assignments", torch.zeros(len(vectors), dtype=kind, device=w.device))
        self.register_buffer("zero", torch.zeros((), dtype=torch.bool, device=w.device))
        self.fit(w, iterations=10, sample=SAMPLE)

    @torch.no_grad()
    def fit(self, w: torch.Tensor, gram: torch.Tensor | None = None, iterations: int = 100, seed: int = 0,
            sample: int | None = None) -> None:
        """Codewords and assignments anew, by k-means on w's blocks from random ones.

        gram : (d, d) inner products of the inputs that blocks meet, or None. sample : cluster only so many blocks.
        """
        check_finite(w, self.name)
        if self.per_channel:
            gains = w.reshape(len(w), -1).square().mean(dim=1).sqrt()
            self.gains.copy_(torch.where(gains > 0, gains, torch.ones_like(gains)))
            w = w / like_rows(self.gains, w)
        vectors, count = to_blocks(w, self.size), len(self.codebook)
        counts = self.gains.square().repeat_interleave(len(vectors) // len(w)) if self.per_channel else None
        used = vectors.any(dim=1)
        self.zero.fill_(bool((~used).any()) and count > 1)
        # Zero blocks have their codeword, so the others start elsewhere.
        candidates = used.nonzero().reshape(-1) if used.any() else torch.arange(len(vectors), device=w.device)
        order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed)).to(w.device)
        start = vectors[candidates[order[:count]]]
        start = torch.cat([start, start.new_zeros(count - len(start), self.size)])  # fewer blocks than codewords
        if self.zero:
            start = torch.cat([start.new_zeros(1, self.size), start[:-1]])
        chosen = order[:sample] if sample and len(candidates) > sample else None
        some, some_counts = vectors, counts
        if chosen is not None:
            some = vectors[candidates[chosen]]
            some_counts = None if counts is None else counts[candidates[chosen]]
        centroids, _ = cluster(some, start, gram, some_counts, iterations, bool(self.zero), seed)
        self.codebook.copy_(centroids)
        self.forget()
        self._assign(vectors, gram)

    def _assign(self, vectors: torch.Tensor, gram: torch.Tensor | None) -> None:
        """Each block to the codeword nearest to it as it is after rounding."""
        codewords = self.codewords()
        if gram is not None:
            factor = whitening(gram).to(vectors.device, vectors.dtype)
            vectors, codewords = vectors @ factor, codewords @ factor
        self.assignments.copy_(nearest(vectors, codewords))

    def forget(self) -> None:
        if self.rounding is not None:
            self.rounding.forget()

    # -- values ---------------------------------------------------------------------------------------------
    def _held(self) -> torch.Tensor:
        """The codebook with its zero codeword at zero."""
        keep = torch.ones(len(self.codebook), 1, dtype=self.codebook.dtype, device=self.codebook.device)
        keep[0] = (~self.zero).to(keep.dtype)
        return self.codebook * keep

    def codewords(self) -> torch.Tensor:
        """(K, d) as the layer computes with them: rounded with a format or `snapped`, else real."""
        codebook = self._held()
        if self.rounding is not None:
            return self.rounding(codebook)
        if self.snapped:
            levels, scale = self.integer_codewords()
            return straight_through(codebook, (levels * scale).to(codebook.dtype))
        return codebook

    @torch.no_grad()
    def integer_codewords(self) -> ScaledLevels:
        """(int64 (K, d), scale of no axis): the table that a decoder holds."""
        codebook = self._held()
        if self.rounding is not None:
            levels, scale = self.rounding.integers(codebook)
            return ScaledLevels(levels, scale.reshape(()))
        levels, scale = snap_rows(codebook.reshape(1, -1), self.form)
        return ScaledLevels(levels.reshape(codebook.shape), scale.reshape(()))

    def values(self, w: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            check_finite(w, self.name)
            check_finite(self.codebook, self.name)
        values = from_blocks(_Lookup.apply(self.codewords(), self.assignments.long()), w.shape)
        return values * like_rows(self.gains, w) if self.per_channel else values

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w if self.waiting else self.values(w)

    @torch.no_grad()
    def integers(self, w: torch.Tensor) -> ScaledLevels:
        check_finite(w, self.name)
        check_finite(self.codebook, self.name)
        levels, scale = self.integer_codewords()
        scale = scale * self.gains if self.per_channel else scale.reshape(1)
        # A gain that training has turned negative is as good as its magnitude with the signs of the integers turned.
        levels = from_blocks(levels[self.assignments.long()], w.shape)
        if self.per_channel:
            levels = levels * like_rows(torch.where(self.gains < 0, -1, 1), w)
        return ScaledLevels(levels, like_rows(scale.abs(), w))

    spreads = True

    def stored_bits(self, w: torch.Tensor) -> float:
        """Assignments of log2 K bits; codewords of 16 bits a weight as published, or of the format's; scales of 16."""
        count = len(self.codebook)
        bits = self.form.bits if self.rounding is not None else 16
        scales = (len(w) if self.per_channel else 0) + (self.rounding is not None)
        return len(self.assignments) * (count.bit_length() - 1) + count * self.size * bits + 16 * scales

    def extra_repr(self) -> str:
        return f"{self.most} codewords of {self.size}, {super().extra_repr()}"
