"""ALQ on one tensor: groups, the start, gradients and fits, optimization and pruning."""

import itertools
import math

import pytest
import torch
from torch import nn

from esbflow.quant.methods.alq import from_groups, group_view, solve
from esbflow.quant.methods.registry import weight_quantizer
from esbflow.training.alq import ALQLayer, AMSGrad, average_bits, prune
from tests.sw.quantizers import gaussian, prepared


def planes_of(quantizer):
    """(groups, n, I) of +-1, from the codes' definition."""
    places = torch.arange(quantizer.planes - 1, -1, -1)
    return (quantizer.codes[:, :, None] >> places.to(torch.uint8) & 1).double() * 2 - 1


# -- groups -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grouping, shape, groups", [
    ("channel", (6, 4, 3, 3), (6, 36)), ("kernel", (6, 4, 3, 3), (24, 9)), ("pixel", (6, 4, 3, 3), (54, 4)),
    ("sub2", (6, 4, 3, 3), (12, 18)), ("kernel", (6, 4, 1, 1), (6, 4)), ("pixel", (6, 4, 1, 1), (6, 4)),
    ("kernel", (6, 10), (6, 10)), ("pixel", (6, 10), (6, 10)), ("sub2", (6, 10), (12, 5)), ("sub3", (6, 10), (12, 5)),
    ("sub9", (6, 7), (42, 1)), ("channel", (1, 1, 1, 1), (1, 1))])
def test_groups_are_what_they_are_called_and_go_back(grouping, shape, groups):
    w = gaussian(*shape)
    assert group_view(w, grouping).shape == groups
    assert torch.equal(from_groups(group_view(w, grouping), w.shape, grouping), w)


def test_a_group_of_pixels_is_one_tap_over_all_input_channels():
    w = gaussian(2, 3, 2, 2)
    assert torch.equal(group_view(w, "pixel")[4 + 3], w[1, :, 1, 1])


# -- the start ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grouping", ["kernel", "channel", "pixel", "sub2"])
def test_each_plane_lowers_the_residual_and_coordinates_are_sorted_and_not_negative(grouping):
    quantizer = prepared(gaussian(4, 6, 5, 5), 5, grouping)
    residuals = quantizer.residuals
    assert all(after < before for before, after in itertools.pairwise(residuals))
    assert residuals[-1] < 0.03 * residuals[0]
    alpha = quantizer.coordinates
    assert (alpha >= 0).all() and (alpha[:, :-1] >= alpha[:, 1:]).all()


def test_values_are_the_planes_times_the_coordinates():
    w = gaussian(4, 6, 5, 5)
    quantizer = prepared(w).eval()
    expected = (planes_of(quantizer) @ quantizer.coordinates.detach().double()[:, :, None])[:, :, 0]
    assert torch.allclose(quantizer(w).reshape(24, 25).double(), expected, atol=1e-6)
    residual = (quantizer(w) - w).square().sum()
    assert float(residual.detach()) == pytest.approx(quantizer.residuals[-1], rel=1e-4)


def test_one_plane_is_the_binary_optimum():
    w = gaussian(5, 30)
    quantizer = prepared(w, 1, "channel").eval()
    assert torch.allclose(quantizer(w), w.sign() * w.abs().mean(dim=1, keepdim=True), atol=1e-6)


def test_a_group_gets_no_more_planes_than_it_needs():
    w = torch.tensor([[0.3, -0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0], [0.5, 0.1, -0.1, -0.5], [1.0, 2.0, 3.0, 5.0]])
    quantizer = prepared(w, 4, "channel").eval()
    assert quantizer.alive.sum(dim=1).tolist()[:3] == [1, 0, 2]
    assert torch.allclose(quantizer(w)[:3], w[:3], atol=1e-6)
    assert quantizer.average_bits() == quantizer.alive.sum() / 4


def test_all_zero_tensors_one_filter_and_one_weight():
    zero = torch.zeros(3, 2, 3, 3)
    quantizer = prepared(zero).eval()
    assert torch.equal(quantizer(zero), zero) and quantizer.average_bits() == 0
    integers, scale = quantizer.integers(zero)
    assert not integers.any() and (scale == 1).all()
    assert not prepared(zero).train()(zero).any()
    for shape in ((1, 1, 3, 3), (1, 1, 1, 1), (1, 1)):
        w = gaussian(*shape)
        assert torch.allclose(prepared(w, 8).eval()(w), w, atol=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    w = gaussian(3, 4)
    quantizer = weight_quantizer("alq:2", name="layer fc: weight")
    quantizer.prepare(w)
    w[1, 2] = bad
    for call in (quantizer.prepare, quantizer, quantizer.integers):
        with pytest.raises(ValueError, match=r"^layer fc: weight holds NaN or infinity"):
            call(w)


@pytest.mark.parametrize("text, message", [
    ("alq:0", "1 to 8 planes, not 0"), ("alq:9", "1 to 8 planes, not 9"), ("alq:x", "write alq:BITS"),
    ("alq:2,rows", "a grouping is kernel, channel, pixel or sub2"), ("alq:2,sub0", "a grouping is"),
    ("alq:2,kernel,x", "'x' is no option here")])
def test_a_text_that_says_nonsense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        weight_quantizer(text)


# -- gradients and fits -------------------------------------------------------------------------------------------
def test_gradients_reach_weights_as_they_are_and_coordinates_by_plane():
    w = nn.Parameter(gaussian(4, 3, 3, 3))
    quantizer = prepared(w).eval()
    slope = gaussian(4, 3, 3, 3, seed=1)
    (quantizer(w) * slope).sum().backward()
    assert torch.equal(w.grad, slope)
    expected = torch.einsum("gni,gn->gi", planes_of(quantizer), slope.reshape(12, 9).double())
    assert torch.allclose(quantizer.coordinates.grad.double(), expected * quantizer.alive, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_solve_is_weighted_least_squares(weighted):
    w, h = gaussian(7, 20).double(), gaussian(7, 20, seed=1).double().abs() + 0.1
    quantizer = prepared(w, 3, "channel")
    found = solve(w, quantizer.codes.long(), quantizer.signs, quantizer.alive, h if weighted else None)
    for g in range(7):
        root = h[g].sqrt() if weighted else torch.ones(20).double()
        planes = planes_of(quantizer)[g]
        expected = torch.linalg.lstsq(planes * root[:, None], (w[g] * root)[:, None]).solution[:, 0]
        assert torch.allclose(found[g], expected, atol=1e-4)


def test_a_plane_that_is_there_twice_survives_the_fit():
    signs = prepared(gaussian(2, 4), 2, "channel").signs
    target, codes = torch.tensor([[1.0, -1, 1, 1]]), torch.tensor([[3, 0, 3, 3]])
    alpha = solve(target, codes, signs, torch.ones(1, 2, dtype=torch.bool))
    assert torch.allclose((alpha @ signs.T).gather(1, codes), target, atol=1e-5)


def test_assign_takes_the_nearest_of_all_sums():
    w = gaussian(6, 40)
    quantizer = prepared(w, 4, "channel")
    quantizer.remove(torch.tensor([[False] * 4, [True] + [False] * 3, [False, True, True, False], [True] * 4,
                                   [False] * 4, [False] * 3 + [True]]))
    target = gaussian(6, 40, seed=2)
    quantizer.assign(target)
    values = quantizer.levels().gather(1, quantizer.codes.long())
    best = (quantizer.levels()[:, None, :] - target[:, :, None]).abs().amin(dim=2)
    assert torch.allclose((values - target).abs(), best, atol=1e-6)
    assert not quantizer.codes[3].any()


def test_flipping_changes_no_value():
    w = gaussian(6, 40)
    quantizer = prepared(w, 3, "channel").eval()
    with torch.no_grad():
        quantizer.coordinates[:, 1].neg_()
    before = quantizer(w)
    quantizer.flip()
    assert torch.allclose(quantizer(w), before, atol=1e-6) and (quantizer.coordinates >= 0).all()


# -- optimization and pruning -------------------------------------------------------------------------------------
def layer_of(w, planes=3, grouping="channel"):
    linear = nn.Linear(w.shape[1], w.shape[0])
    linear.weight = nn.Parameter(w.clone())
    linear.weight_quantizer = prepared(w, planes, grouping)
    return ALQLayer(linear)


def test_amsgrad_is_torchs():
    p = nn.Parameter(gaussian(5, 5))
    ours, optimizer, moments = p.detach().clone(), torch.optim.Adam([p], lr=0.01, amsgrad=True), AMSGrad(p)
    for step in range(20):
        p.grad = gaussian(5, 5, seed=step)
        moments.update(p.grad)
        optimizer.step()
        slope, curvature = moments.model(0.01)
        ours -= slope / curvature
    assert torch.allclose(ours, p, atol=1e-5)


@pytest.mark.parametrize("kind", ["basis", "coordinate"])
def test_steps_lower_a_quadratic_loss(kind):
    w, wanted = gaussian(8, 60), gaussian(8, 60, seed=5) * 0.3
    layer = layer_of(w, 4)
    losses = []
    for _ in range(300):
        layer.sync()
        loss = (layer.quantizer.eval()(layer.layer.weight) - wanted).square().sum()
        layer.layer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        getattr(layer, f"{kind}_step")(0.02)
    assert layer.of_weights.steps == 300  # its moments go on in either mode, as released
    # Coordinates alone can only shrink: the start's planes know nothing of the new target.
    assert losses[-1] < {"basis": 0.05, "coordinate": 0.2}[kind] * losses[0]


@pytest.mark.parametrize("count", [0, 1, 7, 20, 10**6])
@pytest.mark.parametrize("top_k", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("per_weight", [False, True])
def test_pruning_removes_exactly_as_many_as_asked(count, top_k, per_weight):
    layers = [layer_of(gaussian(8, 60)), layer_of(gaussian(4, 10, seed=1)), layer_of(gaussian(4, 2, seed=2), 2)]
    before = sum(int(layer.quantizer.alive.sum()) for layer in layers)
    removed = prune(layers, count, 1e-3, top_k, per_weight)
    assert removed == min(count, before)
    assert sum(int(layer.quantizer.alive.sum()) for layer in layers) == before - removed
    for layer in layers:
        assert (layer.quantizer.coordinates[~layer.quantizer.alive] == 0).all()


def test_a_layer_that_is_too_small_to_offer_a_coordinate_is_spared():
    large, small = layer_of(gaussian(40, 60)), layer_of(1e-3 * gaussian(4, 10, seed=1))
    for layer in (large, small):
        layer.of_coordinates.update(torch.ones(layer.quantizer.alive.shape))
    assert prune([large, small], 100, 1e-3, top_k=0.02) == 100
    assert small.quantizer.alive.all() and int(large.quantizer.alive.sum()) == 20


def test_passes_prune_layers_of_like_size_evenly():
    cheap, dear = layer_of(1e-3 * gaussian(40, 60)), layer_of(gaussian(40, 60, seed=1))
    for layer in (cheap, dear):
        layer.of_coordinates.update(torch.ones(layer.quantizer.alive.shape))
    prune([cheap, dear], 48, 1e-3, top_k=0.05)
    assert [int(layer.quantizer.alive.sum()) for layer in (cheap, dear)] == [120 - 24, 120 - 24]


def test_pruning_takes_the_cheapest_by_the_model():
    layers = [layer_of(gaussian(8, 60)), layer_of(gaussian(4, 60, seed=1))]
    for seed, layer in enumerate(layers):
        layer.of_coordinates.update(gaussian(*layer.quantizer.alive.shape, seed=7 + seed))
    costs = torch.cat([layer.costs(1e-3).reshape(-1) for layer in layers])
    slope, curvature = layers[0].of_coordinates.model(1e-3)
    alpha = layers[0].quantizer.coordinates.detach()
    assert torch.allclose(costs[:24], ((curvature * alpha**2 / 2 - slope * alpha) / 1e-3).reshape(-1))
    prune(layers, 9, 1e-3)
    gone = torch.cat([~layer.quantizer.alive.reshape(-1) for layer in layers])
    assert costs[gone].max() <= costs[~gone].min() and int(gone.sum()) == 9


def test_pruning_stops_at_the_bits_asked_for():
    layers = [layer_of(gaussian(8, 60)), layer_of(gaussian(4, 10, seed=1))]
    model = nn.ModuleList([layer.layer for layer in layers])
    prune(layers, 10**6, 1e-3, bits=1.5)
    assert 1.5 - 60 / 520 < average_bits(model) <= 1.5
