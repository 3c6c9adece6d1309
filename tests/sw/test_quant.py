"""Quantizers against published and recomputed constants, exact rounding, and the conversion of torch models."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from esbflow.graph.errors import GraphError
from esbflow.networks.lenet5 import LeNet5
from esbflow.networks.resnet20 import ResNet20
from esbflow.numbers import ESB, Binary, Codebook, Signed, Unsigned
from esbflow.quant.activation import ActivationQuantizer, InputQuantizer
from esbflow.quant.base import Quantizer, round_to_levels
from esbflow.quant.convert import quantize
from esbflow.quant.dda import expected_error, optimal_scale, rectified_scale
from esbflow.quant.esb import ESBWeightQuantizer
from esbflow.quant.layers import QuantConv2d, QuantLinear, SelectChannels
from esbflow.quant.recipe import Recipe

ALL_ESB = [ESB(b, k, signed) for signed in (True, False) for b in range(1 + signed, 9)
           for k in range(b - signed) if k + 2 ** (b - signed - k) - 1 <= 31]
SMALL = [*ALL_ESB, Signed(4), Signed(8), Unsigned(2), Unsigned(8), Binary(), Codebook((-3, -1, 1, 3)), Codebook((-7, 0, 2, 11))]


# -- constants ----------------------------------------------------------------------------------------------------
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


# -- rounding -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_rounds_as_the_format_does_on_both_sides_of_every_tie(form, dtype):
    levels = torch.tensor(form.levels.tolist(), dtype=dtype)
    ties = (levels[1:] + levels[:-1]) / 2
    exact = (levels[1:] + levels[:-1]).double() == 2 * ties.double()  # float32 holds 24 bits
    ties = ties[exact]
    infinity = torch.tensor(torch.inf, dtype=dtype)
    x = torch.cat([levels, ties, torch.nextafter(ties, infinity), torch.nextafter(ties, -infinity),
                   torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e15, -1e15, 0.49999997, -0.5], dtype=dtype),
                   torch.randn(2000, generator=torch.Generator().manual_seed(2)).to(dtype) * form.max])
    assert round_to_levels(x, form).tolist() == form.nearest(x.double().numpy()).tolist()


@given(st.sampled_from(SMALL), st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=20))
def test_torch_rounds_as_the_format_does(form, values):
    x = torch.tensor(values, dtype=torch.float64)
    assert round_to_levels(x, form).tolist() == form.nearest(values).tolist()


@pytest.mark.parametrize("form", SMALL, ids=str)
def test_rounding_twice_changes_nothing(form):
    x = torch.linspace(1.5 * form.min - 2, 1.5 * form.max + 2, 999, dtype=torch.float64)
    once = round_to_levels(x, form)
    assert torch.equal(round_to_levels(once, form), once)


# -- weights ------------------------------------------------------------------------------------------------------
def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error_of(quantizer, w):
    return (quantizer(w) - w).square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("mode", ["closed_form", "refined", "pow2"])
@pytest.mark.parametrize("form", [ESB(4, 1), ESB(3, 0), Signed(8), ESB(6, 3), Codebook((-3, -1, 1, 3))], ids=str)
def test_quantized_weights_are_levels_times_their_channels_scale(mode, form):
    w = weights(6, 3, 5, 5) * torch.logspace(-3, 2, 6).reshape(6, 1, 1, 1)
    quantizer = ESBWeightQuantizer(form, scale_mode=mode).eval()
    integers, scale = quantizer.integers(w)
    assert scale.shape == (6, 1, 1, 1) and integers.dtype == torch.int64
    assert form.contains(integers.numpy()).all()
    assert torch.allclose(quantizer(w), integers * scale, rtol=1e-6, atol=0)
    # Each channel for itself, and none much worse than the whole family's typical error.
    assert (error_of(quantizer, w) < 0.25 * w.square().flatten(1).sum(dim=1)).all()


def test_closed_form_scale_is_the_gaussian_optimum_times_the_deviation():
    w = weights(4, 50)
    scale = ESBWeightQuantizer(ESB(4, 1), scale_mode="closed_form").scale(w)
    assert torch.allclose(2 * scale[:, 0], 0.487079 * w.std(dim=1, unbiased=False), rtol=1e-5)


def test_one_scale_for_the_tensor_or_one_for_each_channel():
    w = torch.cat([weights(1, 100), 100 * weights(1, 100, seed=1)])
    tensor, channel = ESBWeightQuantizer(ESB(4, 1), per_channel=False), ESBWeightQuantizer(ESB(4, 1))
    assert tensor.scale(w).shape == (1, 1) and channel.scale(w).shape == (2, 1)
    assert not tensor(w)[0].any(), "a tensor's scale is too coarse for a channel a hundred times smaller"
    assert error_of(channel, w)[0] < 0.02 * w[0].square().sum()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([ESB(4, 1), ESB(3, 1), ESB(5, 2), Signed(4), Binary()]),
       st.sampled_from(["normal", "heavy", "sparse"]))
def test_a_refined_scale_is_never_worse_than_the_closed_form(seed, size, form, kind):
    w = weights(5, size, seed=seed)
    if kind == "heavy":
        w = w**3
    elif kind == "sparse":
        w = w * (w.abs() > 1)
    closed = error_of(ESBWeightQuantizer(form, scale_mode="closed_form"), w)
    refined = error_of(ESBWeightQuantizer(form), w)
    assert (refined <= closed * (1 + 1e-5) + 1e-9).all()


def test_refining_helps_small_filters_much():
    # Nine weights a filter, as depthwise 3x3 has: the deviation is a poor guide, the search gains a factor two.
    w = weights(500, 1, 3, 3)
    closed = error_of(ESBWeightQuantizer(ESB(4, 1), scale_mode="closed_form"), w).mean()
    assert error_of(ESBWeightQuantizer(ESB(4, 1)), w).mean() < 0.6 * closed


def test_pow2_scales_are_the_better_neighbouring_power_of_two():
    w = weights(20, 64) * torch.logspace(-2, 2, 20).reshape(20, 1)
    closed = ESBWeightQuantizer(ESB(4, 1), scale_mode="closed_form").scale(w)
    quantizer = ESBWeightQuantizer(ESB(4, 1), scale_mode="pow2")
    scale = quantizer.scale(w)
    exponent = torch.log2(scale)
    assert torch.equal(exponent, exponent.round()) and ((scale / closed > 0.5) & (scale / closed <= 2)).all()
    for factor in (0.5, 2):
        other = scale * factor
        neighbour = (other / closed > 0.5) & (other / closed < 2)
        worse = (round_to_levels(w / other, ESB(4, 1)) * other - w).square().sum(dim=1, keepdim=True)
        assert (~neighbour | (worse >= error_of(quantizer, w)[:, None])).all()


@pytest.mark.parametrize("mode", ["closed_form", "refined", "pow2"])
def test_an_all_zero_channel_stays_zero(mode):
    w = torch.zeros(2, 3, 3)
    w[1] = weights(3, 3)
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
    w = weights(3, 4)
    w[1, 2] = bad
    with pytest.raises(ValueError, match=r"^layer conv1: weight holds NaN or infinity; training has diverged, or the "
                                         r"checkpoint is broken$"):
        ESBWeightQuantizer(ESB(4, 1), name="layer conv1: weight")(w)


def test_an_unknown_scale_mode_is_refused():
    with pytest.raises(ValueError, match=r"^scale_mode must be one of closed_form, laplace, refined, learned, pow2, not 'best'$"):
        ESBWeightQuantizer(ESB(4, 1), scale_mode="best")


@pytest.mark.parametrize("mode", ["closed_form", "refined", "pow2"])
def test_the_gradient_passes_straight_to_every_weight(mode):
    w = (weights(3, 20) * 3).requires_grad_()
    gradient = weights(3, 20, seed=5)
    ESBWeightQuantizer(ESB(4, 1), scale_mode=mode)(w).backward(gradient)
    assert torch.equal(w.grad, gradient)


def test_a_refined_scale_is_searched_again_after_its_refresh_in_training_and_always_in_eval():
    quantizer = ESBWeightQuantizer(ESB(4, 1), refresh=3)
    w = weights(2, 30)
    first = quantizer.scale(w)
    assert torch.equal(quantizer.scale(2 * w), first) and torch.equal(quantizer.scale(2 * w), first)
    assert torch.allclose(quantizer.scale(2 * w), 2 * first)
    quantizer.eval()
    assert torch.allclose(quantizer.scale(4 * w), 4 * first)


def test_in_eval_mode_the_scale_of_a_tensor_let_go_is_not_another_tensors():
    quantizer = ESBWeightQuantizer(ESB(4, 1)).eval()
    w = weights(2, 30)
    first = quantizer.scale(w)
    for power in range(1, 50):                  # each temporary may come to lie where the one before lay
        factor = 2.0 ** (power % 9 - 4)
        assert torch.allclose(quantizer.scale(factor * w), factor * first)
    assert torch.equal(quantizer.scale(w[:1]), first[:1])
    w.mul_(2)
    assert torch.allclose(quantizer.scale(w), 2 * first)
    assert quantizer.scale(w) is quantizer.scale(w)


def test_scaling_weights_by_a_power_of_two_scales_what_they_become():
    w = weights(4, 30)
    for mode in ("closed_form", "refined", "pow2"):
        quantizer = ESBWeightQuantizer(ESB(4, 1), scale_mode=mode).eval()
        assert torch.equal(quantizer(8 * w), 8 * quantizer(w))


def test_the_base_class_asks_for_a_scale():
    with pytest.raises(NotImplementedError, match=r"^Quantizer does not say how its scale comes about$"):
        Quantizer(ESB(4, 1))(torch.zeros(1))


# -- activations --------------------------------------------------------------------------------------------------
def with_step(quantizer, step):
    with torch.no_grad():
        quantizer.step.fill_(step)
        quantizer.seen.fill_(True)
    return quantizer


@pytest.mark.parametrize("form", [Unsigned(4), ESB(4, 2, signed=False), Signed(8)], ids=str)
def test_activations_become_levels_times_the_scale(form):
    quantizer = with_step(ActivationQuantizer(form), 0.25).eval()
    x = torch.tensor([[-9.0, -0.125, 0.0, 0.124, 0.125, 0.3, 1.0, 900.0]])
    assert torch.equal(quantizer(x), torch.tensor(form.nearest(x.numpy() / 0.25) * 0.25).float())


@pytest.mark.parametrize("mode", ["learned", "ema"])
def test_the_gradient_to_activations_stops_outside_the_range(mode):
    quantizer = with_step(ActivationQuantizer(Unsigned(4), mode), 0.5).eval()
    x = torch.tensor([[-1.0, -0.01, 0.01, 3.0, 7.49, 7.51, 20.0]], requires_grad=True)
    quantizer(x).backward(torch.arange(1.0, 8.0)[None])
    assert x.grad.tolist() == [[0, 0, 3, 4, 5, 0, 0]]


def test_the_learned_scale_gets_the_gradient_of_lsq():
    step, form = 0.5, Unsigned(4)
    quantizer = with_step(ActivationQuantizer(form), step)
    x = torch.tensor([[-1.0, 0.3, 3.2, 20.0], [0.6, 1.1, -3.0, 7.9]])
    gradient = weights(2, 4)
    quantizer(x).backward(gradient)
    ratio = x / step
    inside = (ratio > 0) & (ratio < 15)  # nothing lies within half a step of the ends
    ends = torch.where(ratio >= 15, 15.0, 0.0)
    local = torch.where(inside, torch.from_numpy(form.nearest(ratio)).float() - ratio, ends)
    assert quantizer.step.grad.item() == pytest.approx((local * gradient).sum().item() / math.sqrt(4 * 15), rel=1e-5)


def test_a_first_batch_sets_the_scale_and_later_ones_leave_a_learned_one():
    x = torch.randn(50, 200, generator=torch.Generator().manual_seed(0)).clamp(min=0)
    quantizer = ActivationQuantizer(Unsigned(4))
    quantizer(x)
    # Half-normal data: 0.193249 of the deviation before the ReLU, which was 1.
    assert quantizer.real_scale() == pytest.approx(0.193249, rel=0.02)
    quantizer(100 * x)
    assert quantizer.real_scale() == pytest.approx(0.193249, rel=0.02)


def test_an_ema_scale_is_a_running_mean_that_eval_mode_does_not_move():
    quantizer = ActivationQuantizer(Unsigned(4), "ema", momentum=0.75)
    x = torch.rand(4, 100)
    quantizer(x)
    first = quantizer.real_scale()
    quantizer(3 * x)
    assert quantizer.real_scale() == pytest.approx(first * (0.75 + 0.25 * 3), rel=1e-5)
    held = quantizer.eval().real_scale()
    quantizer(100 * x)
    assert quantizer.real_scale() == held and not list(quantizer.parameters())


def test_a_quantizer_that_saw_nothing_active_has_no_scale():
    quantizer = ActivationQuantizer(Unsigned(4), name="activation relu1")
    quantizer(-torch.rand(3, 4))
    with pytest.raises(ValueError, match=r"^activation relu1 has seen no active values, so it has no scale: train or "
                                         r"calibrate the model first$"):
        quantizer.real_scale()
    quantizer(torch.rand(3, 4))
    assert quantizer.real_scale() > 0


def test_activations_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^activation relu1 holds NaN or infinity; .*$"):
        ActivationQuantizer(Unsigned(4), name="activation relu1")(torch.tensor([[math.nan]]))


def test_an_unknown_activation_scale_is_refused():
    with pytest.raises(ValueError, match=r"^the activation scale must be one of learned, ema, not 'max'$"):
        ActivationQuantizer(Unsigned(4), "max")


# -- recipes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields, message", [
    (dict(weights="fp4"), r"'fp4' is neither a format \(esb4.1, s8\) nor a method \(ul2q:BITS.*"),
    (dict(overrides=(("conv1", "esb4.9"),)), r"'esb4.9' is neither a format .*"),
    (dict(weights="vecq:0"), r"'vecq:0' \(vecq:BITS\[,norm\]\): a half-integer grid has 1 to 15 bits, not 0"),
    (dict(weights="vecq:2,loud"), r"'vecq:2,loud' .*: 'loud' is no option here; known: norm"),
    (dict(weights="sq:"), r"'sq:': write sq:METHOD or .*"),
    (dict(weights="sq(often):twn"), r"schedule must be one of staged, ramped, not 'often'"),
    (dict(weights="u4"), r"weights need a signed format, not u4: negative ones would be lost"),
    (dict(activations="pact:x"), r"'pact:x' \(pact:BITS\): write pact:BITS, with the number of bits"),
    (dict(activations="s4"), r"activations follow a ReLU and need an unsigned format, not s4"),
    (dict(signed_activations="u8"), r"signed_activations needs a signed format, not u8"),
    (dict(activations="cb[-1,1]"), r"an activation format must contain zero, cb\[-1,1\] does not"),
    (dict(activations="bin"), r"an activation format must contain zero, bin does not"),
    (dict(input_bits=9), r"input_bits must be in 2..8, not 9"),
    (dict(input_bits=1), r"input_bits must be in 2..8, not 1"),
    (dict(output_bits=24), r"output_bits must be 16 or 32, not 24"),
    (dict(scale_mode="max"), r"scale_mode must be one of closed_form, laplace, refined, learned, pow2, not 'max'"),
    (dict(activation_scale="max"), r"activation_scale must be one of learned, ema, not 'max'"),
    (dict(mean=(0.0, 1.0)), r"mean and std need one entry a channel, and std must be positive"),
    (dict(std=(0.0,)), r"mean and std need one entry a channel, and std must be positive"),
])
def test_a_recipe_refuses_nonsense_when_it_is_made(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Recipe(**fields)


def test_a_recipe_reads_back_from_its_text():
    recipe = Recipe(weights="esb6.3", overrides=(("layer1.*", "s8"), ("fc*", "esb3.0")), mean=(0.5, 0.4, 0.3),
                    std=(0.2, 0.2, 0.1), output_bits=32)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_first_last_and_overridden_layers_get_their_formats():
    recipe = Recipe(weights="esb4.1", first_weights="s8", last_weights="esb6.3", overrides=(("conv2", "s4"),))
    model = quantize(LeNet5(), recipe)
    assert [str(model.get_submodule(name).weight_quantizer.form) for name in ("conv1", "conv2", "fc1", "fc2")] == [
        "s8", "s4", "esb4.1", "esb6.3"]


# -- conversion ---------------------------------------------------------------------------------------------------
def steps(model):
    """What the model's fx graph calls, in order; a quantizer as its format."""
    modules = dict(model.named_modules())
    names = []
    for node in model.graph.nodes:
        if node.op == "call_module":
            module = modules[node.target]
            names.append(str(module.form) if isinstance(module, (ActivationQuantizer, InputQuantizer)) else node.target)
        elif node.op in ("call_function", "call_method"):
            names.append(getattr(node.target, "__name__", node.target))
    return names


def test_lenet_stores_its_input_and_what_follows_each_relu():
    model = quantize(LeNet5())
    assert steps(model) == ["s8", "conv1", "relu1", "u4", "pool1", "conv2", "relu2", "u4", "pool2", "flatten", "fc1",
                            "relu3", "u4", "fc2"]
    assert isinstance(model.conv1, QuantConv2d) and isinstance(model.fc1, QuantLinear)


class Block(nn.Module):
    def __init__(self, order="after"):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.order = order

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = y + x if self.order == "after" else x + y
        return self.conv1(F.relu(y))


@pytest.mark.parametrize("order", ["after", "before"])
def test_a_residual_block_is_one_layer_from_convolution_to_relu(order):
    assert steps(quantize(Block(order))) == ["s8", "conv1", "bn1", "relu", "u4", "conv2", "bn2", "add", "relu", "u4", "conv1"]


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        return self.c(self.a(x) + self.b(x))


def test_of_two_convolutions_that_are_added_the_first_is_stored():
    assert steps(quantize(TwoBranches())) == ["s8", "a", "s8", "b", "add", "s8", "c"]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.conv(x)), 2)
        x = F.avg_pool2d(self.norm(x).relu(), 2)
        return self.fc(x.mean((2, 3)).flatten(1))


def test_functional_calls_and_methods_are_understood():
    found = steps(quantize(Functional()))
    assert found[4] == F.max_pool2d.__name__
    assert found[:4] + found[5:] == ["s8", "conv", "relu", "u4", "norm", "relu", "u4", "avg_pool2d", "u8", "mean", "u8",
                                     "flatten", "fc"]


def test_resnet_shortcuts_keep_their_integers():
    model = quantize(ResNet20())
    assert isinstance(model.layer2[0].shortcut if hasattr(model.layer2, "__getitem__")
                      else model.get_submodule("layer2.0.shortcut"), SelectChannels)
    names = steps(model)
    at = names.index("layer2.0.shortcut")
    assert names[at - 1] == "u4" and not names[at + 1].startswith(("s", "u"))
    assert names.count("u4") == 19 and names[-3:] == ["u8", "flatten", "linear"]


def test_quantizing_keeps_the_parameters_and_trains_them():
    model = LeNet5()
    low_bit = quantize(model)
    assert low_bit.conv1.weight is model.conv1.weight
    low_bit(torch.rand(4, 1, 28, 28)).sum().backward()
    missing = [name for name, p in low_bit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


class Wrapped(nn.Module):
    def __init__(self, *layers, call=None):
        super().__init__()
        self.conv, self.layers, self.call = nn.Conv2d(1, 2, 3), nn.Sequential(*layers), call

    def forward(self, x):
        x = self.layers(self.conv(x))
        return self.call(x) if self.call else x


ACTIVATION = "use ReLU or ReLU6, or run it on the host after the network"
GENERAL = ("use Conv2d, Linear, BatchNorm, ReLU, max or average pooling, addition or concatenation, or run it on the host "
           "after the network")


@pytest.mark.parametrize("model, name, fix", [
    (Wrapped(nn.Sigmoid()), "Sigmoid", ACTIVATION), (Wrapped(nn.GELU()), "GELU", ACTIVATION),
    (Wrapped(nn.LeakyReLU()), "LeakyReLU", ACTIVATION), (Wrapped(nn.LayerNorm(2)), "LayerNorm", "use BatchNorm2d"),
    (Wrapped(nn.ConvTranspose2d(2, 2, 3)), "ConvTranspose2d", "use nn.Upsample(mode='nearest') and a Conv2d"),
    (Wrapped(call=torch.sigmoid), "sigmoid", ACTIVATION), (Wrapped(call=F.gelu), "gelu", ACTIVATION),
    (Wrapped(call=lambda x: x.tanh()), "tanh", ACTIVATION), (Wrapped(call=lambda x: x * 2), "mul", GENERAL),
    (Wrapped(call=lambda x: x.permute(0, 2, 3, 1)), "permute", GENERAL),
])
def test_an_operator_without_an_integer_form_is_refused_by_name(model, name, fix):
    with pytest.raises(GraphError, match=rf"^\w+: operator {name} has no integer form; {re.escape(fix)}$"):
        quantize(model)


@pytest.mark.parametrize("call", [lambda x: x + 1, lambda x: 2.5 + x, lambda x: torch.add(x, x, alpha=3), lambda x: x.add(1)])
def test_adding_a_constant_is_refused_instead_of_doubling(call):
    with pytest.raises(GraphError, match=r"^\w+: only the plain sum of two tensors has an integer form; put constants into "
                                         r"a bias or a batch norm$"):
        quantize(Wrapped(call=call))


def test_a_tensor_may_be_added_to_itself():
    assert steps(quantize(Wrapped(call=lambda x: x + x))) == ["s8", "conv", "s8", "add"]


@pytest.mark.parametrize("options, text", [
    (dict(padding=1, padding_mode="circular"), r"padding \(1, 1\), mode 'circular'"),
    (dict(padding=1, padding_mode="reflect"), r"padding \(1, 1\), mode 'reflect'"),
    (dict(padding="same", kernel_size=(3, 2)), r"padding 'same', mode 'zeros'")])
def test_padding_other_than_as_many_zeros_on_both_sides_is_refused(options, text):
    with pytest.raises(GraphError, match=rf"^0: {text} has no integer form; use as many zeros on both sides$"):
        quantize(nn.Sequential(nn.Conv2d(1, 2, **{"kernel_size": 3, **options})))


class DependsOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def test_control_flow_that_depends_on_data_is_refused():
    with pytest.raises(GraphError, match=r"^DependsOnData: torch.fx cannot trace the forward pass \(.*\); remove control "
                                         r"flow that depends on data$"):
        quantize(DependsOnData())


def test_a_model_without_layers_to_quantize_is_refused():
    with pytest.raises(GraphError, match=r"^the model has no Conv2d or Linear layer: there is nothing to quantize$"):
        quantize(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["conv2.weight", "fc1.bias"])
def test_a_parameter_that_is_not_finite_is_refused_by_name(bad, name):
    model = LeNet5()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = bad
    with pytest.raises(ValueError, match=rf"^{name} holds NaN or infinity; training has diverged, or the checkpoint is broken$"):
        quantize(model)


def test_select_channels_copies_pads_and_strides():
    layer = SelectChannels([-1, 1, 0, -1], in_channels=2, stride=2)
    x = torch.rand(2, 2, 4, 6)
    y = layer(x)
    zero = torch.zeros(2, 2, 3)
    assert torch.equal(y, torch.stack([zero, x[:, 1, ::2, ::2], x[:, 0, ::2, ::2], zero], dim=1))
    assert not list(layer.parameters())
