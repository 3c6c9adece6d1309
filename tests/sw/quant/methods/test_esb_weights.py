"""Scales of weights by channel or tensor, how they are found, and what degenerate weights become."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esbflow.numbers import ESB, Binary, Codebook, Signed
from esbflow.quant import scale_search
from esbflow.quant.base import Quantizer, round_to_levels
from esbflow.quant.methods.esb import ESBWeightQuantizer
from tests.sw.quantizers import gaussian


def error_of(quantizer, w):
    return (quantizer(w) - w).square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("mode", ["closed_form", "refined", "pow2"])
@pytest.mark.parametrize("form", [ESB(4, 1), ESB(3, 0), Signed(8), ESB(6, 3), Codebook((-3, -1, 1, 3))], ids=str)
def test_quantized_weights_are_levels_times_their_channels_scale(mode, form):
    w = gaussian(6, 3, 5, 5) * torch.logspace(-3, 2, 6).reshape(6, 1, 1, 1)
    quantizer = ESBWeightQuantizer(form, scale_mode=mode).eval()
    integers, scale = quantizer.integers(w)
    assert scale.shape == (6, 1, 1, 1) and integers.dtype == torch.int64
    assert form.contains(integers.numpy()).all()
    assert torch.allclose(quantizer(w), integers * scale, rtol=1e-6, atol=0)
    # Each channel for itself, and none much worse than the whole family's typical error.
    assert (error_of(quantizer, w) < 0.25 * w.square().flatten(1).sum(dim=1)).all()


def test_closed_form_scale_is_the_gaussian_optimum_times_the_deviation():
    w = gaussian(4, 50)
    scale = ESBWeightQuantizer(ESB(4, 1), scale_mode="closed_form").scale(w)
    assert torch.allclose(2 * scale[:, 0], 0.487079 * w.std(dim=1, unbiased=False), rtol=1e-5)


def test_one_scale_for_the_tensor_or_one_for_each_channel():
    w = torch.cat([gaussian(1, 100), 100 * gaussian(1, 100, seed=1)])
    tensor, channel = ESBWeightQuantizer(ESB(4, 1), per_channel=False), ESBWeightQuantizer(ESB(4, 1))
    assert tensor.scale(w).shape == (1, 1) and channel.scale(w).shape == (2, 1)
    assert not tensor(w)[0].any(), "a tensor's scale is too coarse for a channel a hundred times smaller"
    assert error_of(channel, w)[0] < 0.02 * w[0].square().sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([ESB(4, 1), ESB(3, 1), ESB(5, 2), Signed(4), Binary()]),
       st.sampled_from(["normal", "heavy", "sparse"]))
def test_a_refined_scale_is_never_worse_than_the_closed_form(seed, size, form, kind):
    w = gaussian(5, size, seed=seed)
    if kind == "heavy":
        w = w**3
    elif kind == "sparse":
        w = w * (w.abs() > 1)
    closed = error_of(ESBWeightQuantizer(form, scale_mode="closed_form"), w)
    refined = error_of(ESBWeightQuantizer(form), w)
    assert (refined <= closed * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize("shape", [(7, 30), (1, 200), (200, 1)])
def test_searching_a_few_rows_at_a_time_changes_no_error(monkeypatch, shape):
    # The errors, not the scales: sums over other shapes may round differently, and so decide between two equal candidates.
    w = gaussian(*shape) * torch.linspace(0.1, 3, shape[0])[:, None]
    whole = error_of(ESBWeightQuantizer(ESB(4, 1)).eval(), w)
    monkeypatch.setattr(scale_search, "HELD", 64)  # two rows of 30; less than one of 200
    torch.testing.assert_close(error_of(ESBWeightQuantizer(ESB(4, 1)).eval(), w), whole, rtol=1e-4, atol=1e-9)


def test_refining_helps_small_filters_much():
    # Nine weights a filter, as depthwise 3x3 has: the deviation is a poor guide, the search gains a factor two.
    w = gaussian(500, 1, 3, 3)
    closed = error_of(ESBWeightQuantizer(ESB(4, 1), scale_mode="closed_form"), w).mean()
    assert error_of(ESBWeightQuantizer(ESB(4, 1)), w).mean() < 0.6 * closed


def test_no_other_power_of_two_has_less_error_than_a_pow2_scale():
    w = gaussian(20, 64) * torch.logspace(-2, 2, 20).reshape(20, 1)
    w[::2, 0] *= 50
    for form in (ESB(4, 1), Signed(8)):
        quantizer = ESBWeightQuantizer(form, scale_mode="pow2")
        scale = quantizer.scale(w)
        exponent = torch.log2(scale)
        assert torch.equal(exponent, exponent.round())
        for factor in 2.0 ** torch.arange(-8, 9):
            other = scale * factor
            worse = (round_to_levels(w / other, form) * other - w).square().sum(dim=1)
            assert (worse >= error_of(quantizer, w) * (1 - 1e-5)).all()


@pytest.mark.parametrize("mode", ["closed_form", "laplace", "refined", "learned", "pow2"])
@pytest.mark.parametrize("form", [Binary(), Codebook((-3, -1, 1, 3))], ids=str)
def test_a_pruned_channel_stays_silent_in_a_format_without_zero(mode, form):
    w = gaussian(4, 3, 3, 3)
    w[1] = 0
    quantizer = ESBWeightQuantizer(form, scale_mode=mode)
    quantizer.prepare(w)
    integers, scale = quantizer.integers(w)
    assert np.isin(integers.numpy(), form.levels).all()
    for values in (quantizer(w), integers * scale):
        assert values[1].abs().max() < 1e-20 < values[0].abs().min()


@pytest.mark.parametrize("mode", ["closed_form", "refined", "pow2"])
def test_an_all_zero_channel_stays_zero(mode):
    w = torch.zeros(2, 3, 3)
    w[1] = gaussian(3, 3)
    integers, scale = ESBWeightQuantizer(ESB(4, 1), scale_mode=mode).integers(w)
    assert not integers[0].any() and scale[0].item() == 1 and integers[1].any()


@pytest.mark.parametrize("mode", ["closed_form", "refined"])
@pytest.mark.parametrize("value", [0.37, -5.0, 1e-20])
@pytest.mark.parametrize("size", [1, 9])
def test_a_constant_channel_and_a_channel_of_one_weight_are_exact(mode, value, size):
    w = torch.full((2, size), value)
    assert torch.allclose(ESBWeightQuantizer(ESB(4, 1), scale_mode=mode)(w), w, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    w = gaussian(3, 4)
    w[1, 2] = bad
    with pytest.raises(ValueError, match=r"^layer conv1: weight holds NaN or infinity; training has diverged, or the "
                                         r"checkpoint is broken$"):
        ESBWeightQuantizer(ESB(4, 1), name="layer conv1: weight")(w)


def test_an_unknown_scale_mode_is_refused():
    with pytest.raises(ValueError, match=r"^scale_mode must be one of closed_form, laplace, refined, learned, pow2, not 'best'$"):
        ESBWeightQuantizer(ESB(4, 1), scale_mode="best")


@pytest.mark.parametrize("mode", ["closed_form", "refined", "pow2"])
def test_the_gradient_passes_straight_to_every_weight(mode):
    w = (gaussian(3, 20) * 3).requires_grad_()
    gradient = gaussian(3, 20, seed=5)
    ESBWeightQuantizer(ESB(4, 1), scale_mode=mode)(w).backward(gradient)
    assert torch.equal(w.grad, gradient)


def test_a_refined_scale_is_searched_again_after_its_refresh_in_training_and_always_in_eval():
    quantizer = ESBWeightQuantizer(ESB(4, 1), refresh=3)
    w = gaussian(2, 30)
    first = quantizer.scale(w)
    assert torch.equal(quantizer.scale(2 * w), first) and torch.equal(quantizer.scale(2 * w), first)
    assert torch.allclose(quantizer.scale(2 * w), 2 * first)
    quantizer.eval()
    assert torch.allclose(quantizer.scale(4 * w), 4 * first)


def test_in_eval_mode_the_scale_of_a_tensor_let_go_is_not_another_tensors():
    quantizer = ESBWeightQuantizer(ESB(4, 1)).eval()
    w = gaussian(2, 30)
    first = quantizer.scale(w)
    for power in range(1, 50):                  # each temporary may come to lie where the one before lay
        factor = 2.0 ** (power % 9 - 4)
        assert torch.allclose(quantizer.scale(factor * w), factor * first)
    assert torch.allclose(quantizer.scale(w[:1]), first[:1])
    w.mul_(2)
    assert torch.allclose(quantizer.scale(w), 2 * first)
    assert quantizer.scale(w) is quantizer.scale(w)


def test_scaling_weights_by_a_power_of_two_scales_what_they_become():
    w = gaussian(4, 30)
    for mode in ("closed_form", "refined", "pow2"):
        quantizer = ESBWeightQuantizer(ESB(4, 1), scale_mode=mode).eval()
        assert torch.equal(quantizer(8 * w), 8 * quantizer(w))


def test_the_base_class_asks_for_a_scale():
    with pytest.raises(NotImplementedError, match=r"^Quantizer does not say how its scale comes about$"):
        Quantizer(ESB(4, 1))(torch.zeros(1))
