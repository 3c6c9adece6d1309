"""What holds for every method: edge cases, gradients, state; and single methods by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.numbers import Signed
from esbflow.quant.methods.registry import activation_quantizer, weight_quantizer
from esbflow.quant.methods.sq import StochasticQuantizer
from esbflow.quant.weights import snap_rows
from tests.sw.quantizers import ACTIVATIONS, WEIGHTS, gaussian, make


@pytest.mark.parametrize("text", WEIGHTS)
@pytest.mark.parametrize("shape", [(8, 5, 3, 3), (6, 30), (1, 1, 1, 1), (3, 1, 3, 3)], ids=str)
def test_integers_are_levels_of_the_form_and_shapes_are_kept(text, shape):
    w = gaussian(*shape)
    quantizer = make(text, w).eval()
    levels, scale = quantizer.integers(w)
    assert levels.dtype == torch.int64 and levels.shape == w.shape == quantizer(w).shape
    assert bool(np.all(quantizer.form.contains(levels.numpy())))
    assert (levels * scale).shape == w.shape and (scale >= 0).all()
    if not isinstance(quantizer, StochasticQuantizer) and quantizer.grid:
        assert torch.allclose((levels * scale).float(), quantizer(w), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("text", WEIGHTS)
def test_zeros_stay_zeros_and_nothing_divides_by_them(text):
    w = gaussian(4, 2, 3, 3)
    w[1] = 0
    for tensor in (w, torch.zeros(4, 2, 3, 3)):
        quantizer = make(text, tensor).eval()
        levels, scale = quantizer.integers(tensor)
        values, trained = levels * scale, quantizer(tensor)
        assert torch.isfinite(values).all() and torch.isfinite(trained).all()
        if quantizer.per_channel or tensor is not w:
            assert values[1].abs().max() < 1e-6 and trained[1].abs().max() < 1e-6


@pytest.mark.parametrize("text", [t for t in WEIGHTS if "srq" not in t and "centred" not in t])
@pytest.mark.parametrize("constant", [0.7, -0.3, 1e-20])
def test_a_constant_tensor_is_nearly_exact(text, constant):
    w = torch.full((3, 4), constant)
    levels, scale = make(text, w).eval().integers(w)
    assert torch.allclose((levels * scale).float(), w, rtol=1e-4, atol=0)


@pytest.mark.parametrize("text", WEIGHTS)
def test_nan_and_infinity_raise(text):
    quantizer = weight_quantizer(text, name="layer conv1: weight")
    quantizer.prepare(gaussian(2, 4))
    for bad in (math.nan, math.inf):
        w = gaussian(2, 4)
        w[0, 0] = bad
        with pytest.raises(ValueError, match=r"^layer conv1: weight holds NaN or infinity"):
            quantizer(w)
        with pytest.raises(ValueError, match=r"^layer conv1: weight holds NaN or infinity"):
            quantizer.integers(w)


SCALE_FREE = [t for t in WEIGHTS if "dorefa" not in t and "centred" not in t]


@pytest.mark.parametrize("text", SCALE_FREE)
def test_scaled_weights_give_scaled_levels(text):
    w = gaussian(5, 24)
    one, four = (make(text, factor * w).eval().integers(factor * w) for factor in (1.0, 4.0))
    assert torch.equal(one[0], four[0])
    assert torch.allclose(4 * one[1].double(), four[1].double(), rtol=1e-5)


@pytest.mark.parametrize("text", [t for t in WEIGHTS if "srq" not in t and "uniform" not in t and "s4" not in t])
def test_negated_weights_give_negated_levels(text):
    w = gaussian(5, 24)
    plus, minus = (make(text, sign * w).eval().integers(sign * w)[0] for sign in (1.0, -1.0))
    assert torch.equal(plus, -minus)


@pytest.mark.parametrize("text", WEIGHTS)
def test_per_channel_rows_do_not_see_each_other(text):
    if "layer" in text:
        pytest.skip("the threshold is the layer's")
    w = gaussian(4, 40)
    whole = make(text, w, per_channel=True).eval().integers(w)[0]
    rows = torch.cat([make(text, w[i:i + 1], per_channel=True).eval().integers(w[i:i + 1])[0] for i in range(4)])
    assert torch.equal(whole, rows)


@pytest.mark.parametrize("text", [t for t in WEIGHTS if t.split(":")[0].split("(")[0] not in ("srq", "dorefa", "apot", "lsq")])
def test_the_gradient_passes_straight_to_weights(text):
    w = gaussian(4, 3, 3, 3).requires_grad_()
    quantizer = make(text, w.detach()).eval()
    gradient = gaussian(4, 3, 3, 3, seed=1)
    quantizer(w).backward(gradient)
    assert torch.equal(w.grad, gradient)


@pytest.mark.parametrize("text", WEIGHTS)
def test_a_level_is_one_float(text):
    for size in (1.0, 0.05, 30.0):
        w = gaussian(1, 4000) * size
        quantizer = make(text, w).eval()
        quantizer.advance(1.0)  # methods with levels of their own compute with snapped ones at the end
        assert len(quantizer(w).unique()) == len(quantizer.integers(w)[0].unique())


@pytest.mark.parametrize("text", ACTIVATIONS)
def test_a_level_of_activations_is_one_float(text):
    x = gaussian(4, 4000).abs()
    quantizer = activation_quantizer(text)
    quantizer(x)
    assert len(quantizer.eval()(x).unique()) <= 2 ** quantizer.form.bits


@pytest.mark.parametrize("text", WEIGHTS)
def test_other_memory_layouts_and_empty_channels_do_no_harm(text):
    w = gaussian(6, 4, 3, 3)
    quantizer, last = make(text, w).eval(), w.contiguous(memory_format=torch.channels_last)
    assert torch.equal(quantizer.integers(last)[0], quantizer.integers(w)[0])
    assert torch.allclose(quantizer(last), quantizer(w), rtol=1e-5, atol=0)  # sums in another order


@pytest.mark.parametrize("text", WEIGHTS)
def test_training_is_reproducible_and_saves_its_state(text):
    def trained():
        torch.manual_seed(3)
        w = nn.Parameter(gaussian(6, 20))
        quantizer = make(text, w.detach())
        for step in range(4):
            quantizer.advance(step / 4)
            loss = (quantizer(w) * gaussian(6, 20, seed=step)).sum() + (quantizer.penalty() or 0.0)
            loss.backward()
        return w, quantizer
    (w, first), (v, _) = trained(), trained()
    assert torch.equal(w.grad, v.grad)
    fresh = make(text, gaussian(6, 20, seed=9))
    fresh.load_state_dict(first.state_dict())
    for left, right in zip(first.eval().integers(w.detach()), fresh.eval().integers(v.detach())):
        assert torch.equal(left, right)


def test_snapping_finds_small_exact_integers():
    rows = torch.tensor([[0.3, -0.9, 0.0, 1.5], [7.0, -7.0, 7.0, 7.0], [0.0, 0.0, 0.0, 0.0]])
    levels, scale = snap_rows(rows, Signed(8))
    assert levels.tolist() == [[1, -3, 0, 5], [1, -1, 1, 1], [0, 0, 0, 0]]
    assert scale.tolist() == pytest.approx([0.3, 7.0, 1.0])


def test_vecq_minimises_the_angle_then_the_length():
    w = gaussian(1, 6)
    levels, scale = make("vecq:2", w).integers(w)
    q = levels.double()
    assert float(scale) == pytest.approx(float((w.double() * q).sum() / q.square().sum()), rel=1e-6)
    ratio = make("vecq:2,norm", w).integers(w)[1]
    assert float(ratio) == pytest.approx(float(w.norm() / q.norm()), rel=1e-6)


def test_mul2q_by_hand():
    # mean 0, deviation sqrt(2.5): spacing 0.995687 deviations = 1.574, levels +-0.787 and +-2.361
    w = torch.tensor([[-2.0, -1.0, 1.0, 2.0]])
    levels, scale = make("ul2q:2", w).integers(w)
    assert levels.tolist() == [[-3, -1, 1, 3]]
    assert float(scale) == pytest.approx(0.995687 / 2 * math.sqrt(2.5), rel=1e-5)
    shifted = make("ul2q:2,centred", w + 10)
    assert torch.allclose(shifted(w + 10), levels * scale + 10, atol=1e-5)


def test_dorefa_squeezes_and_keeps_the_size():
    w = gaussian(1, 4000) * 0.05
    quantizer = make("dorefa:2", w)
    y = quantizer(w)
    assert len(y.unique()) == 4 and (y * w).sum() / y.square().sum() == pytest.approx(1.0, rel=1e-4)
    assert activation_quantizer("dorefa:2")(torch.tensor([[-1.0, 0.2, 0.6, 7.0]])).tolist()[0] == pytest.approx(
        [0, 1 / 3, 2 / 3, 1])
