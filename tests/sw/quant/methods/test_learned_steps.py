"""Steps and clips that are learned: their gradients, and how far one step of training moves them."""

import pytest
import torch

from esbflow.numbers import ESB, Signed, Unsigned
from esbflow.quant.methods import lsq
from esbflow.quant.methods.registry import activation_quantizer, weight_quantizer
from tests.sw.quantizers import gaussian, make


@pytest.mark.parametrize("text", ["lsq:s4", "srq:2", "srq:4", "srq:4,drop", "srq:8,learn", "apot:4"])
def test_the_step_of_a_large_layer_does_not_leap(text):
    """What one SGD step at rate 0.01 does to a learned step, whose gradient sums that of every weight."""
    torch.manual_seed(0)
    w = gaussian(64, 2304, seed=3).requires_grad_()
    quantizer = make(text, w.detach())
    (quantizer(w) * torch.randn_like(w)).sum().backward()
    steps = {name: p for name, p in quantizer.named_parameters() if p.grad is not None and p.dim() < 2 and "gate" not in name}
    assert steps
    for name, p in steps.items():
        assert (0.01 * p.grad.abs() < 0.1 * p.detach().abs()).all(), name


@pytest.mark.parametrize("text", ["u4", "srq:4", "pact:4"])
def test_the_step_of_a_large_activation_does_not_leap(text):
    x = gaussian(4, 64, 32, 32, seed=3)
    quantizer = activation_quantizer(text).train()
    quantizer.observe(x)
    (quantizer(x) * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    steps = [p for p in quantizer.parameters() if p.grad is not None]
    assert steps
    for p in steps:
        assert 0.01 * p.grad.abs() < 0.2 * p.detach().abs()


def test_pact_learns_its_clip_from_what_it_clips():
    quantizer = activation_quantizer("pact:2")
    with torch.no_grad():
        quantizer.step.fill_(1.0)
        quantizer.seen.fill_(True)
    x = torch.tensor([[-1.0, 0.4, 1.6, 3.5, 9.0]], requires_grad=True)
    y = quantizer(x)
    assert y.tolist() == [[0, 0, 2, 3, 3]]
    y.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert x.grad.tolist() == [[0, 2, 3, 0, 0]]
    assert quantizer.step.grad.item() == pytest.approx((4 + 5) / 3)  # a third of the clip's: the clip is three steps
    assert quantizer.penalty().item() == pytest.approx(1e-4 / 2 * 9)


@pytest.mark.parametrize("form", [Unsigned(4), Signed(4), ESB(4, 1)], ids=str)
def test_the_learned_step_has_lsqs_gradient_everywhere(form):
    x = (gaussian(3, 400) * 4).requires_grad_()
    step = torch.tensor(0.37, requires_grad=True)
    gradient = gaussian(3, 400, seed=5)
    functions = [lsq.learned_levels] + ([lsq.learned_range] if not isinstance(form, ESB) else [])
    for function in functions:
        x.grad = step.grad = None
        y = function(x, step, form, 0.5)
        y.backward(gradient)
        ratio = (x / step).detach()
        inside = (ratio > form.min) & (ratio < form.max)
        levels = torch.from_numpy(form.nearest(ratio.numpy())).float()
        assert torch.allclose(y, levels * step)
        assert torch.equal(x.grad, gradient * inside)
        wanted = 0.5 * (gradient * torch.where(inside, levels - ratio, levels)).sum()
        assert step.grad.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("form", [Unsigned(2), Signed(3), ESB(3, 1)], ids=str)
def test_the_ends_themselves_count_as_outside(form):
    x = torch.tensor([float(form.min), float(form.max)], requires_grad=True)
    functions = [lsq.learned_levels] + ([lsq.learned_range] if not isinstance(form, ESB) else [])
    for function in functions:
        x.grad, step = None, torch.tensor(1.0, requires_grad=True)
        function(x, step, form, 1.0).backward(torch.tensor([2.0, 3.0]))
        assert x.grad.tolist() == [0, 0] and step.grad.item() == 2 * form.min + 3 * form.max


@pytest.mark.parametrize("form", [Unsigned(2), Signed(4), Unsigned(8)], ids=str)
def test_both_ways_agree_where_the_ends_begin(form):
    """x / step of an end is often a little beside its integer: 1,500 of 10,000 steps told the two ways apart."""
    for step in torch.rand(100) * 3 + 1e-3:
        ends = torch.stack([step * form.min, step * form.max])
        around = torch.cat([ends, *(torch.nextafter(ends, torch.full_like(ends, to)) for to in (-9e9, 9e9))])
        found = []
        for function in (lsq.learned_levels, lsq.learned_range):
            x, own = around.clone().requires_grad_(), step.clone().requires_grad_()
            function(x, own, form, 1.0).sum().backward()
            found.append(x.grad)
        assert torch.equal(*found) and not found[0][:2].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("text", ["alq:2", "pq:16,4", "srq:4,learn", "lqnets:2", "lsq:s4", "vecq:4", "esb4.1", "apot:4", "twn"])
def test_weights_keep_their_type(text, dtype):
    w = gaussian(8, 4, 3, 3).to(dtype).requires_grad_()
    quantizer = weight_quantizer(text).train()
    quantizer.prepare(w)
    quantizer(w).sum().backward()
    assert quantizer(w).dtype == dtype
    gradients = [p.grad for p in (w, *quantizer.parameters()) if p.grad is not None]  # of codewords alone, in some methods
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # float32 takes the shorter way of CPUs
@pytest.mark.parametrize("form", [Unsigned(2), Signed(4)], ids=str)
def test_a_clip_learns_from_what_lies_beyond_it_alone(form, dtype):
    x = (gaussian(3, 400) * 4).to(dtype).requires_grad_()
    step = torch.tensor(0.37, dtype=dtype, requires_grad=True)
    gradient = gaussian(3, 400, seed=5).to(dtype)
    y = lsq.clipped_range(x, step, form, 0.5)
    y.backward(gradient)
    ratio = (x / step).detach()
    inside = (ratio > form.min) & (ratio < form.max)
    assert torch.allclose(y, torch.from_numpy(form.nearest(ratio.numpy())).to(dtype) * step)
    assert torch.equal(x.grad, gradient * inside)
    wanted = 0.5 * (gradient * ratio.clamp(form.min, form.max).round() * ~inside).sum()
    assert step.grad.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("function", [lsq.learned_range, lsq.clipped_range])
@pytest.mark.parametrize("form", [Unsigned(2), Signed(4), Unsigned(8)], ids=str)
def test_mixed_precision_rounds_to_the_same_levels_within_what_bfloat16_can_tell(form, function):
    x = (gaussian(2, 16, 30, 30) * form.max / 2).bfloat16().contiguous(memory_format=torch.channels_last)
    gradient = gaussian(2, 16, 30, 30, seed=5).bfloat16()
    results = []
    for value, to_y in ((x, gradient), (x.float(), gradient.float())):
        value, step = value.clone().requires_grad_(), torch.tensor(0.37, requires_grad=True)
        y = function(value, step, form, 0.5)
        y.backward(to_y)
        assert y.dtype == value.grad.dtype == value.dtype
        results.append((y.detach().float() / 0.37, value.grad.float(), step.grad))
    (levels, to_x, to_step), (wanted, wanted_to_x, wanted_to_step) = results
    # The ratio, 8 significant bits of it, and then the value are rounded: up to 1/256 of the level, twice, and the level's
    # own rounding. Few lie so near to a boundary.
    assert ((levels - wanted).abs() <= 1 + form.max / 128).all() and (levels - wanted).abs().mean() < 0.02 + form.max / 500
    assert abs((levels - wanted).mean()) < 0.01 * form.max / 4  # no drift
    assert (to_x != wanted_to_x).float().mean() < 0.02
    assert to_step.dtype == torch.float32
    # A sum of 28,800 terms that are rounded one by one.
    assert abs(to_step - wanted_to_step) < 0.5 * form.max / 20 * 28_800 ** 0.5
