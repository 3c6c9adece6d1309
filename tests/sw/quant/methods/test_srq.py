"""SRQ and DropBits: the levels, their gradient, and bits that are dropped or learned."""

import pytest
import torch
from torch import nn

from esbflow.numbers import Signed
from esbflow.quant.methods.srq import BitGates, bits_of_level, likeliest_level, weigh_bits
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from tests.sw.quantizers import gaussian, make


def test_srq_takes_the_nearest_level_and_its_gradient_is_largest_at_boundaries():
    x = torch.linspace(-9.4, 8.4, 1001, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(1.0, dtype=torch.float64)
    for ratio, at_level, at_boundary in ((1 / 3, 0.96, 1.04), (1 / 6, 0.54, 1.53)):
        x.grad = None
        y = likeliest_level(x, step, step * ratio, -8, 7, window=6)
        y.sum().backward()
        assert torch.equal(y.detach(), torch.floor(x.detach() + 0.5).clamp(-8, 7))
        at = {v: x.grad[(x - v).abs().argmin()].item() for v in (2.0, 2.5)}
        assert at[2.0] == pytest.approx(at_level, abs=0.02) and at[2.5] == pytest.approx(at_boundary, abs=0.02)


def test_the_gradient_of_srq_is_that_of_the_mean_level():
    x = torch.tensor([0.3, -1.2, 2.49], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    step = torch.tensor(1.0, dtype=torch.float64)
    likeliest_level(x, step, noise, -4, 3, window=9).sum().backward()
    levels = torch.arange(-4.0, 4.0, dtype=torch.float64)
    y, t = x.detach().requires_grad_(), noise.detach().requires_grad_()
    mass = torch.sigmoid((levels + 0.5 - y[:, None]) / t) - torch.sigmoid((levels - 0.5 - y[:, None]) / t)
    (mass / mass.sum(1, keepdim=True) * levels).sum().backward()
    assert torch.allclose(x.grad, y.grad) and torch.allclose(noise.grad, t.grad)


def test_dropping_no_bits_is_plain_srq_and_dropping_all_leaves_two():
    w = gaussian(3, 50)
    plain, drop = make("srq:4", w), make("srq:4,drop", w)
    drop.keep_rate = 1.0
    assert torch.equal(plain(w), drop(w))
    drop.keep_rate = 0.0
    assert (drop(w) / drop.step).round().unique().tolist() == [-2, -1, 0, 1]
    assert torch.equal(bits_of_level(torch.tensor([0.0, 3.0, 4.0, 7.0]), False), torch.tensor([0.0, 2.0, 3.0, 3.0]))


def test_bits_are_learned_by_penalty_and_cost():
    gates = BitGates(8, 2)
    with torch.no_grad():
        gates.log_a.copy_(torch.tensor([4.0, 4.0, 4.0, -4.0, 4.0, -4.0]))
    assert gates.chosen_bits() == 5, "a closed shell closes all beyond it"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        def forward(self, x):
            return self.b(torch.relu(self.a(x)))
    model = quantize(Net(), Recipe(first_weights="srq:8,learn", last_weights="srq:8,learn"))
    weigh_bits(model, {"a": 1.0, "b": 3.0})
    assert (model.a.weight_quantizer.cost, model.b.weight_quantizer.cost) == (0.5, 1.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    quantizers = [model.a.weight_quantizer, model.b.weight_quantizer]
    for quantizer in quantizers:
        quantizer.penalty_rate = 1.0
    for _ in range(60):
        optimizer.zero_grad()
        sum(quantizer.penalty() for quantizer in quantizers).backward()
        optimizer.step()
    quantizers[1].advance(0.7)
    assert quantizers[1].form == Signed(4) and quantizers[1].penalty() is None, "one pass; fewer bits are no cheaper"
    copy = quantize(Net(), Recipe(first_weights="srq:8,learn", last_weights="srq:8,learn"))
    copy.load_state_dict(model.state_dict())
    assert copy.b.weight_quantizer.form == Signed(4) and copy.b.weight_quantizer.penalty() is None


@pytest.mark.parametrize("costs, bits", [({"0": 1.0, "2": 0.0}, (4, 8)), ({"0": 0.0, "2": 1.0}, (8, 4)), (None, (2, 2))])
def test_a_short_training_closes_the_shells_of_dear_layers(costs, bits):
    """400 steps at the rates of weights: where a second pass costs, a layer comes down to one; without an engine, all do."""
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
                     Recipe(first_weights="srq:8,learn", last_weights="srq:8,learn"))
    if costs:
        weigh_bits(model, costs)
    layers = [model.get_submodule(name) for name in ("0", "2")]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    images = torch.rand(8, 1, 8, 8)
    for _ in range(400):
        optimizer.zero_grad()
        (model(images).square().mean() + sum(layer.weight_quantizer.penalty() for layer in layers)).backward()
        optimizer.step()
    for layer in layers:
        layer.weight_quantizer.advance(0.7)
    assert tuple(layer.weight_quantizer.form.bits for layer in layers) == bits
