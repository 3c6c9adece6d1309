"""Activation quantizers: levels, gradients, and where their scale comes from."""

import math

import pytest
import torch

from esbflow.numbers import ESB, Signed, Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.methods.lqnets import LQActivation
from esbflow.quant.methods.pact import PACTActivation


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
    gradient = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
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
    assert quantizer.real_scale() == pytest.approx(0.193249, rel=0.1)
    quantizer(100 * x)
    assert quantizer.real_scale() == pytest.approx(0.193249, rel=0.1)


@pytest.mark.parametrize("form", [Unsigned(8), Signed(8), ESB(4, 2, signed=False)], ids=str)
def test_an_outlier_of_the_first_batch_is_kept_where_that_has_less_error(form):
    x = torch.randn(1, 2000, generator=torch.Generator().manual_seed(0))
    x[0, 7] = 100.0
    quantizer = ActivationQuantizer(form)
    values = x if form.signed else x.clamp(min=0)
    errors = [(torch.from_numpy(form.nearest(values.numpy() / s) * s).float() - values).square().sum()
              for s in torch.linspace(0.01, 1.2, 300).numpy() * 100 / form.max]
    assert (quantizer(x) - values).square().sum() <= 1.02 * min(errors)


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


@pytest.mark.parametrize("make", [ActivationQuantizer, lambda form, name: PACTActivation(4, name=name),
                                  lambda form, name: LQActivation(4, name=name)])
def test_a_quantizer_has_no_scale_before_data_scale_1_for_zeros_and_takes_the_first_values_later(make):
    quantizer = make(Unsigned(4), name="activation relu1")
    with pytest.raises(ValueError, match=r"^activation relu1 has seen no data, so it has no scale: train or calibrate the "
                                         r"model first$"):
        quantizer.real_scale()
    assert not quantizer(-torch.rand(3, 4)).any()
    assert quantizer.real_scale() == 1
    kept = make(Unsigned(4), name="activation relu1")
    kept.load_state_dict(quantizer.state_dict())
    assert kept.real_scale() == 1
    kept(torch.rand(3, 40) / 100)
    assert 0 < kept.real_scale() < 0.01
    kept(torch.zeros(3, 4))
    assert 0 < kept.real_scale() < 0.01


def test_activations_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^activation relu1 holds NaN or infinity; .*$"):
        ActivationQuantizer(Unsigned(4), name="activation relu1")(torch.tensor([[math.nan]]))


def test_an_unknown_activation_scale_is_refused():
    with pytest.raises(ValueError, match=r"^the activation scale must be one of learned, ema, not 'max'$"):
        ActivationQuantizer(Unsigned(4), "max")
