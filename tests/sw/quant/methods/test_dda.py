"""Scales for Gaussian and Laplacian data against published and recomputed constants."""

import math

import numpy as np
import pytest
import torch

from esbflow.numbers import ESB, Binary, Codebook, Signed, Unsigned
from esbflow.quant.base import round_to_levels
from esbflow.quant.methods.dda import expected_error, optimal_scale, rectified_scale

# (b, k): (alpha, mean squared error) on N(0, 1); alpha = scale * 2**k. Exact integrals, searched over all local minima.
# Gong et al., "Elastic Significant Bit Quantization", TPDS 2022, print the same but for (4,0) 0.0381 and (5,1) 0.0391,
# which are local minima, and (9,7) 1.9757, which is the constant of (8,6).
SIGNED_OPTIMA = {
    (2, 0): (1.224006, 1.90174e-1), (3, 0): (0.518127, 4.75602e-2), (3, 1): (1.301540, 4.68600e-2),
    (4, 0): (0.065525, 3.77450e-2), (4, 1): (0.487079, 1.26849e-2), (4, 2): (1.413645, 1.28894e-2),
    (5, 1): (0.076638, 1.06456e-2), (5, 2): (0.482773, 3.25600e-3), (5, 3): (1.545993, 3.69322e-3),
    (6, 2): (0.040551, 2.76611e-3), (6, 3): (0.499672, 8.29147e-4), (6, 4): (1.687802, 1.06929e-3),
    (7, 3): (0.040941, 6.98866e-4), (7, 4): (0.524688, 2.11523e-4), (7, 5): (1.832361, 3.08622e-4),
    (8, 4): (0.041177, 1.75198e-4), (8, 5): (0.552655, 5.41207e-5), (8, 6): (1.975694, 8.83080e-5),
    (9, 5): (0.041586, 4.38360e-5), (9, 6): (0.581613, 1.38867e-5), (9, 7): (2.115600, 2.50081e-5)}

# Half-integer grids of 2**b levels, step in standard deviations: Gong et al., "VecQ", IEEE TC 2020, print the first
# four digits of these for b = 2..8.
HALF_INTEGER_STEPS = {1: 1.595769, 2: 0.995687, 3: 0.586019, 4: 0.335201, 5: 0.188139, 6: 0.104063, 7: 0.056868, 8: 0.030762}


@pytest.mark.parametrize("bits, significand", SIGNED_OPTIMA)
def test_gaussian_optima_are_the_tabulated_ones(bits, significand):
    form = ESB(bits, significand)
    alpha, error = SIGNED_OPTIMA[bits, significand]
    assert optimal_scale(form) * 2**significand == pytest.approx(alpha, rel=2e-5)
    assert expected_error(form.levels[form.levels >= 0], optimal_scale(form)) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("bits, significand, published", [(4, 0, 0.0381), (5, 1, 0.0391), (9, 7, 1.9757)])
def test_three_published_constants_are_worse_than_ours(bits, significand, published):
    form = ESB(bits, significand)
    levels = form.levels[form.levels >= 0]
    error = expected_error(levels, published / 2**significand)
    assert error > 1.0001 * expected_error(levels, optimal_scale(form))


@pytest.mark.parametrize("bits, step", HALF_INTEGER_STEPS.items())
def test_half_integer_optima_are_the_tabulated_ones(bits, step):
    odd = Codebook(tuple(range(1 - 2**bits, 2**bits, 2)))  # twice the half-integers
    assert 2 * optimal_scale(odd) == pytest.approx(step, rel=2e-5)


def test_binary_optimum_is_the_mean_magnitude():
    assert optimal_scale(Binary()) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-6)
    assert expected_error(np.array([1.0]), optimal_scale(Binary())) == pytest.approx(1 - 2 / math.pi, rel=1e-6)


def test_laplacian_optimum_of_esb41():
    form = ESB(4, 1)
    assert 2 * optimal_scale(form, "laplace") == pytest.approx(0.691141, rel=2e-5)
    levels = form.levels[form.levels >= 0]
    assert expected_error(levels, optimal_scale(form, "laplace"), "laplace") == pytest.approx(1.8491e-2, rel=1e-4)
    # The Gaussian constant on Laplacian data: 46 % worse.
    assert expected_error(levels, optimal_scale(form), "laplace") == pytest.approx(2.696e-2, rel=1e-3)


@pytest.mark.parametrize("form, unit", [
    (ESB(4, 2, signed=False), 0.482773 / 4), (ESB(3, 1, signed=False), 0.487079 / 2), (Unsigned(4), 0.193249),
    (Unsigned(2), 0.650770), (Unsigned(3), 0.353411), (Unsigned(8), 0.016528)])
def test_rectified_scale_is_the_signed_optimum_per_root_mean_square(form, unit):
    assert rectified_scale(form) == pytest.approx(math.sqrt(2) * unit, rel=5e-5)


@pytest.mark.parametrize("distribution, density", [
    ("gaussian", lambda x: np.exp(-x**2 / 2) / math.sqrt(2 * math.pi)),
    ("laplace", lambda x: np.exp(-math.sqrt(2) * np.abs(x)) / math.sqrt(2))])
@pytest.mark.parametrize("form", [ESB(4, 1), ESB(3, 0), Signed(3), Binary()], ids=str)
def test_expected_error_is_the_integral(distribution, density, form):
    x = np.linspace(-30, 30, 1_200_001)
    scale = 0.31
    # A symmetric set: -4 of s3 is not in the model, which holds positive levels and their mirror.
    mirror = np.unique(np.concatenate([form.levels[form.levels >= 0], -form.levels[form.levels >= 0]]))
    nearest = mirror[np.searchsorted((mirror[1:] + mirror[:-1]) / 2, x / scale)] * scale
    integral = np.sum((x - nearest) ** 2 * density(x)) * (x[1] - x[0])
    levels = form.levels[form.levels >= 0].astype(float)
    assert expected_error(levels, scale, distribution) == pytest.approx(integral, rel=1e-5)


@pytest.mark.parametrize("form", [ESB(3, 1), ESB(4, 1), ESB(5, 2), ESB(6, 3), ESB(8, 5)], ids=str)
def test_the_model_predicts_the_error_on_a_million_samples(form):
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = optimal_scale(form)
    error = float((round_to_levels(x / scale, form) * scale - x).square().mean())
    assert error == pytest.approx(expected_error(form.levels[form.levels >= 0], scale), rel=0.01)


def test_an_unknown_distribution_is_refused():
    with pytest.raises(ValueError, match=r"^distribution must be one of gaussian, laplace, not 'cauchy'$"):
        optimal_scale(ESB(4, 1), "cauchy")
