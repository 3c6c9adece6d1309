"""Sharpness-aware minimization on quantized weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.networks.digits import DigitsNet
from esbflow.quant.layers import QuantConv2d, QuantLinear
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.data import load_images
from esbflow.training.loop import Schedule, train
from esbflow.training.recipes import RECIPES
from esbflow.training.sharpness import SharpnessAware


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def layers(model):
    return [layer for layer in model.modules() if isinstance(layer, (QuantConv2d, QuantLinear))]


def test_weights_move_by_the_radius_along_the_gradient_and_come_back():
    torch.manual_seed(0)
    model, x = quantize(Small(), Recipe(weights="esb2.0")).train(), torch.rand(8, 1, 6, 6)
    model(x)  # scales
    seen = {}
    for layer in layers(model):
        layer.weight_quantizer.register_forward_hook(lambda module, _, out: seen.__setitem__(module, out))
    plain = {layer: layer.weight_quantizer(layer.weight).detach() for layer in layers(model)}
    sharp = SharpnessAware(model, 0.3)
    with sharp:
        loss = model(x).square().mean()
        gradients = torch.autograd.grad(loss, list(seen.values()), retain_graph=True)
        with sharp.moved(loss):
            moved = {layer: layer.weight_quantizer(layer.weight).detach() - plain[layer] for layer in layers(model)}
            assert model(x).square().mean() > loss
        again = {layer: layer.weight_quantizer(layer.weight).detach() for layer in layers(model)}
    total = torch.cat([value.reshape(-1) for value in moved.values()])
    along = torch.cat([gradient.reshape(-1) for gradient in gradients])
    assert torch.allclose(total, 0.3 * along / along.norm(), atol=1e-6)
    assert all(torch.equal(again[layer], plain[layer]) for layer in plain)
    assert not any(len(layer.weight_quantizer._forward_hooks) != 1 for layer in layers(model))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norms_count_the_first_pass_only(momentum):
    torch.manual_seed(0)
    model, x = quantize(Small(), Recipe()).train(), torch.rand(8, 1, 6, 6)
    norm = model.get_submodule("norm")
    norm.momentum = momentum
    sharp = SharpnessAware(model, 0.3)
    with sharp:
        loss = model(x).sum()
        statistics = norm.running_mean.clone(), norm.running_var.clone()
        with pytest.raises(KeyError), sharp.moved(loss):
            model(x + 1)
            raise KeyError
    assert norm.momentum == momentum and int(norm.num_batches_tracked) == 1
    assert torch.equal(norm.running_mean, statistics[0]) and torch.equal(norm.running_var, statistics[1])
    assert not norm.training or not sharp._moves


def run(sharpness, epochs=3, **options):
    torch.manual_seed(3)
    images, labels = load_images("digits", "train", 200)
    model = quantize(DigitsNet(), Recipe(weights="esb2.0"))
    return train(model, images, labels, Schedule(epochs=epochs, batch=32, rate=0.05, sharpness=sharpness), seed=5,
                 **options).state_dict()


def test_only_the_last_third_of_the_epochs_differs(tmp_path):
    kept = {}

    def keep(name):
        def report(done, total, loss):
            kept.setdefault(name, []).append(loss)
        return report

    plain, sharp = run(0.0, report=keep("plain")), run(0.1, report=keep("sharp"))
    steps = len(kept["plain"]) // 3
    assert kept["plain"][:2 * steps] == kept["sharp"][:2 * steps] and kept["plain"][2 * steps:] != kept["sharp"][2 * steps:]
    assert not all(torch.equal(plain[name], sharp[name]) for name in plain)
    assert plain.keys() == sharp.keys()


def test_a_killed_run_goes_on_to_the_same_result(tmp_path):
    def killer(done, total, loss):
        if done == 5 * total // 6:
            raise KeyboardInterrupt

    unbroken = run(0.1)
    with pytest.raises(KeyboardInterrupt):
        run(0.1, checkpoint=tmp_path / "run.ckpt", report=killer)
    resumed = run(0.1, checkpoint=tmp_path / "run.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())


def test_nonsense_is_refused():
    for radius in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"sharpness must be 0 or a positive radius, not {radius}"):
            Schedule(sharpness=radius)
    with pytest.raises(ValueError, match="ALQSchedule has no sharpness; leave it out with this recipe"):
        RECIPES["lenet5-mnist-alq"].changed(sharpness=0.1)
    assert RECIPES["lenet5-mnist"].changed(sharpness=0.1).low_bit.sharpness == 0.1


def test_layers_whose_weights_are_fixed_do_not_move():
    model = quantize(Small(), Recipe()).train()
    model.get_submodule("conv").weight.requires_grad_(False)
    sharp, x = SharpnessAware(model, 0.1), torch.rand(4, 1, 6, 6)
    with sharp:
        loss = model(x).sum()
        with sharp.moved(loss):
            assert torch.isfinite(model(x)).all()
