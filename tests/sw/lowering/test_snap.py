"""Weights whose scale makes the requantizer's multiplier an integer."""


import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.lowering.snap import snap_weights
from esbflow.numbers import ESB, Binary, Codebook, Signed
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate, normalise

FORMATS = [ESB(4, 1), ESB(8, 5), ESB(3, 0), Signed(4), Signed(8), Binary(), Codebook((-3, -1, 1, 3))]


@given(st.sampled_from(FORMATS), st.lists(st.floats(-2047.4, 2047.4), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_no_neighbouring_integer_would_be_better_and_all_stays_in_range(form, wanted, seed):
    wanted = np.array(wanted)
    weight = np.random.default_rng(seed).choice(form.levels, (len(wanted), 3, 2))
    levels, m, step = snap_weights(weight, form, wanted)
    assert form.contains(levels).all() and (np.abs(m) <= 2047).all() and (m * wanted >= 0).all()
    assert (np.abs(m - wanted) <= 1).all() and (step > 0).all()
    real = weight * wanted[:, None, None]
    error = np.square(levels * m[:, None, None] - real).sum(axis=(1, 2))
    rounded = np.clip(np.floor(wanted + 0.5), -2047, 2047)
    plain = np.square(weight * rounded[:, None, None] - real).sum(axis=(1, 2))
    assert (error <= plain * (1 + 1e-9) + 1e-9).all()
    kept = (m != 0) & levels.any(axis=(1, 2))
    assert np.allclose((step * wanted)[kept], m[kept])


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_multipliers_that_are_integers_change_nothing(form):
    weight = np.stack([form.levels] * 5)
    wanted = np.array([0, 1, -7, 1024, -2047])
    levels, m, step = snap_weights(weight, form, wanted)
    assert np.array_equal(levels, weight) and np.array_equal(m, wanted) and (step == 1).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_of_equally_good_integers_the_larger_in_magnitude_is_taken(sign):
    levels, m, step = snap_weights(np.array([[4]]), Signed(8), np.array([sign * 1.5]))  # 6 * 1 and 3 * 2 are both exact
    assert (levels.item(), m.item(), step.item()) == (3, sign * 2, 2 / 1.5)


def test_long_multipliers_keep_every_code_of_every_weight():
    form = Signed(8)
    weight = np.stack([form.levels] * 50)
    levels, _m, _ = snap_weights(weight, form, np.linspace(1024.3, 2047.1, 50))
    assert np.array_equal(levels, weight)


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.relu1(self.conv1(x))
        return self.relu2(self.conv2(x) + x)


class _Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.head = _Block(), nn.Linear(8 * 64, 10)

    def forward(self, x):
        return self.head(torch.flatten(self.block(x), 1))


@pytest.mark.parametrize("weights", ["esb8.5", "s8", "esb6.3"])
def test_a_residual_layer_with_wide_weights_is_as_exact_as_the_fake_quantized_one(weights):
    """Rounding m alone makes errors ten times the activation's rounding: m is 0, 1 or 2 here."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)
    model = calibrate(quantize(_Network(), Recipe(weights=weights, activations="u8", output_bits=32)), images).eval()
    graph = export(model, "block", (3, 8, 8))
    residual = next(node for node in graph.nodes if isinstance(node, ir.Conv2d) and len(node.inputs) == 2)
    assert np.abs(residual.requantizer.m).min() < 64
    with torch.no_grad():
        fake = model(normalise(images, (0.0,), (1.0,))).numpy()
    real = execute(graph, images).reshape(fake.shape) * graph.output.scale
    assert np.sqrt(np.square(real - fake).mean()) < 0.02 * fake.std()
