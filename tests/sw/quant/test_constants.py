"""Every constant of the methods, computed anew: scales and errors on unit Gaussian and Laplacian data.

The expected numbers were computed independently (integrals by scipy's quadrature, polished by its bounded minimiser); where
a paper or a released table differs by more than a printed digit, the test says so.
"""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from esbflow.numbers import ESB, Codebook, Format, Signed
from esbflow.quant.methods.apot import apot_levels
from esbflow.quant.methods.dda import expected_error, optimal_scale, rectified_scale
from esbflow.quant.methods.registry import weight_quantizer
from esbflow.quant.methods.vecq import half_integer_format, half_integer_spacing

HALF_INTEGER = {
    1: (1.595769, 3.63380e-1), 2: (0.995687, 1.18846e-1), 3: (0.586019, 3.74397e-2), 4: (0.335201, 1.15429e-2),
    5: (0.188139, 3.49521e-3), 6: (0.104063, 1.04005e-3), 7: (0.056868, 3.04333e-4), 8: (0.030762, 8.76862e-5),
    9: (0.016499, 2.4919e-5), 10: (0.0087855, 6.9970e-6), 12: (0.0024484, 5.3554e-7),
}
"""bits: (spacing, mean squared error) of levels (i + 1/2) * spacing."""

LAPLACE = {(2, 0): 1.41421, (3, 0): 0.691454, (3, 1): 1.64351, (4, 1): 0.691141, (4, 2): 1.94754, (5, 2): 0.744490,
           (5, 3): 2.29971, (6, 3): 0.822275}


def positive(form):
    return form.levels[form.levels >= 0].astype(float)


@pytest.mark.parametrize("bits", HALF_INTEGER)
def test_half_integer_grids(bits):
    spacing, error = HALF_INTEGER[bits]
    assert half_integer_spacing(bits) == pytest.approx(spacing, rel=2e-5)
    assert expected_error(positive(half_integer_format(bits)), spacing / 2) == pytest.approx(error, rel=2e-5)


def test_the_published_rule_above_8_bits_is_worse_than_7_bits():
    errors = [expected_error(positive(half_integer_format(bits)), 3 / (2 ** bits - 1)) for bits in (9, 10, 12)]
    assert all(4.07e-4 < error < 4.3e-4 for error in errors), "the part clipped at three deviations does not shrink"
    assert min(errors) > HALF_INTEGER[7][1]


@pytest.mark.parametrize("b, k", LAPLACE)
def test_laplacian_constants(b, k):
    assert optimal_scale(ESB(b, k), "laplace") * 2 ** k == pytest.approx(LAPLACE[b, k], rel=2e-5)


def test_laplacian_errors():
    assert expected_error(positive(ESB(4, 1)), 0.691141 / 2, "laplace") == pytest.approx(1.8491e-2, rel=1e-4)
    assert expected_error(positive(ESB(4, 1)), 0.487079 / 2, "laplace") == pytest.approx(2.696e-2, rel=1e-3)


@pytest.mark.parametrize("distribution, law", [("gaussian", stats.norm), ("laplace", stats.laplace(scale=1 / math.sqrt(2)))])
@pytest.mark.parametrize("form", [ESB(4, 1), half_integer_format(2), Codebook((-10, -3, 0, 3, 10))], ids=str)
def test_the_expected_error_is_the_integral(form, distribution, law):
    scale = 0.3
    points = form.levels * scale
    edges = [-np.inf, *((points[1:] + points[:-1]) / 2), np.inf]
    total = sum(integrate.quad(lambda x, p=p: (x - p) ** 2 * law.pdf(x), a, b)[0]
                for p, a, b in zip(points, edges, edges[1:]))
    assert expected_error(positive(form), scale, distribution) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("form, per_rms", [("uesb4.2", 0.682744), ("u4", None)])
def test_unsigned_scales_are_those_of_one_more_bit(form, per_rms):
    form = Format.parse(form)
    if per_rms:
        assert rectified_scale(form) * 2 ** form.significand == pytest.approx(per_rms, rel=2e-5)
    else:
        assert rectified_scale(form) / math.sqrt(2) == pytest.approx(0.193249, rel=2e-5)


def test_binary_and_ternary():
    assert expected_error(np.array([1.0]), math.sqrt(2 / math.pi)) == pytest.approx(1 - 2 / math.pi, rel=1e-6)
    # The heuristic of TWN: threshold 0.7 * mean magnitude, scale the mean above it.
    threshold = 0.7 * math.sqrt(2 / math.pi)
    mass = stats.norm.sf(threshold)
    scale = stats.norm.pdf(threshold) / mass
    assert (threshold, scale) == (pytest.approx(0.558519, rel=1e-5), pytest.approx(1.184161, rel=1e-5))
    assert 1 - 2 * mass * scale ** 2 == pytest.approx(0.191625, rel=1e-5)


def test_apot_sets():
    assert apot_levels(2) == (0, 1) and apot_levels(3) == (0, 1, 2, 4) and apot_levels(4) == (0, 1, 2, 3, 4, 6, 8, 10)
    assert len(apot_levels(5)) == 16
    for bits, error in ((4, 1.2100e-2), (5, 6.005e-3)):
        levels = apot_levels(bits)
        form = Codebook(tuple(-v for v in levels[:0:-1]) + levels)
        assert expected_error(np.array(levels, float), optimal_scale(form)) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("form, average, worst", [
    ("esb4.1", 1.086, 1.268), ("esb5.2", 1.095, 1.292), ("esb6.3", 1.116, 1.356), ("esb4.0", 1.013, 1.025)])
def test_power_of_two_scales_cost_floating_sets_little(form, average, worst):
    form = Format.parse(form)
    best = optimal_scale(form)
    least = expected_error(positive(form), best)
    ratios = []
    for phase in np.arange(0, 1, 1 / 64):
        low = 2.0 ** (math.floor(math.log2(best) - phase) + phase)
        ratios.append(min(expected_error(positive(form), low), expected_error(positive(form), 2 * low)) / least)
    assert np.mean(ratios) == pytest.approx(average, abs=0.004) and max(ratios) == pytest.approx(worst, abs=0.01)


MEASURED = {"esb4.1": 1.26849e-2, "esb2.0": 1.90174e-1, "vecq:1": 3.63380e-1, "vecq:2": 1.18846e-1,
            "vecq:4": 1.15429e-2, "ul2q:2": 1.18846e-1, "ul2q:4": 1.15429e-2, "twn": 0.191625,
            "binary": 0.363380, "pot:4": 3.77450e-2, "apot:4": 1.2100e-2, "apot:5": 6.005e-3, "lqnets:1": 0.363380,
            "lqnets:2": 1.17482e-1, "lqnets:3": 3.5267e-2, "lqnets:4": 9.90e-3}


@pytest.mark.parametrize("text", MEASURED)
def test_many_gaussian_weights_have_the_expected_error(text):
    count = 50_000 if "lqnets" in text else 1_000_000
    w = torch.randn(1, count, generator=torch.Generator().manual_seed(1))
    quantizer = weight_quantizer(text)
    quantizer.prepare(w)
    with torch.no_grad():
        error = (quantizer.eval()(w) - w).square().mean().item()
    assert error == pytest.approx(MEASURED[text], rel=0.03 if "lqnets" in text else 0.01)


@pytest.mark.parametrize("bits, levels", [(1, [0.79788]), (2, [0.4528, 1.5104])])
def test_the_optimal_bases_of_lq_nets(bits, levels):
    w = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(2))
    quantizer = weight_quantizer(f"lqnets:{bits}")
    quantizer.prepare(w)
    found = (quantizer.basis[0].double() @ quantizer.table.T).sort().values
    assert found[len(found) // 2:].tolist() == pytest.approx(levels, rel=0.01)


def test_linear_8_bit_integers_may_use_their_lone_negative_level():
    assert Signed(8).min == -128
    assert optimal_scale(Signed(8)) == pytest.approx(0.030870, rel=0.02)
