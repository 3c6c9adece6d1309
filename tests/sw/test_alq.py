"""ALQ: its start, what its steps do to the loss' model, pruning, and the way to integers and files."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.graph.execute import execute
from esbflow.graph.file import load
from esbflow.networks.lenet5 import LeNet5
from esbflow.quant.alq import ALQQuantizer, from_groups, group_view, solve
from esbflow.quant.convert import quantize
from esbflow.quant.export import export
from esbflow.quant.fixed import convert
from esbflow.quant.methods import weight_quantizer
from esbflow.quant.recipe import Recipe
from esbflow.training import api, loop
from esbflow.training.alq import ALQLayer, ALQSchedule, AMSGrad, average_bits, prune, train_alq
from esbflow.training.api import load_model, save_model
from esbflow.training.loop import calibrate
from esbflow.training.recipes import RECIPES


def weights(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prepared(w, planes=3, grouping="kernel"):
    quantizer = ALQQuantizer(planes, grouping)
    quantizer.prepare(w)
    return quantizer


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
    w = weights(*shape)
    assert group_view(w, grouping).shape == groups
    assert torch.equal(from_groups(group_view(w, grouping), w.shape, grouping), w)


def test_a_group_of_pixels_is_one_tap_over_all_input_channels():
    w = weights(2, 3, 2, 2)
    assert torch.equal(group_view(w, "pixel")[4 + 3], w[1, :, 1, 1])


# -- the start ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grouping", ["kernel", "channel", "pixel", "sub2"])
def test_each_plane_lowers_the_residual_and_coordinates_are_sorted_and_not_negative(grouping):
    quantizer = prepared(weights(4, 6, 5, 5), 5, grouping)
    residuals = quantizer.residuals
    assert all(after < before for before, after in zip(residuals, residuals[1:]))
    assert residuals[-1] < 0.03 * residuals[0]
    alpha = quantizer.coordinates
    assert (alpha >= 0).all() and (alpha[:, :-1] >= alpha[:, 1:]).all()


def test_values_are_the_planes_times_the_coordinates():
    w = weights(4, 6, 5, 5)
    quantizer = prepared(w).eval()
    expected = (planes_of(quantizer) @ quantizer.coordinates.detach().double()[:, :, None])[:, :, 0]
    assert torch.allclose(quantizer(w).reshape(24, 25).double(), expected, atol=1e-6)
    residual = (quantizer(w) - w).square().sum()
    assert float(residual.detach()) == pytest.approx(quantizer.residuals[-1], rel=1e-4)


def test_one_plane_is_the_binary_optimum():
    w = weights(5, 30)
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
        w = weights(*shape)
        assert torch.allclose(prepared(w, 8).eval()(w), w, atol=0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    w = weights(3, 4)
    quantizer = weight_quantizer("alq:2", name="layer fc: weight")
    quantizer.prepare(w)
    w[1, 2] = bad
    for call in (quantizer.prepare, quantizer, quantizer.integers):
        with pytest.raises(ValueError, match="^layer fc: weight holds NaN or infinity"):
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
    w = nn.Parameter(weights(4, 3, 3, 3))
    quantizer = prepared(w).eval()
    slope = weights(4, 3, 3, 3, seed=1)
    (quantizer(w) * slope).sum().backward()
    assert torch.equal(w.grad, slope)
    expected = torch.einsum("gni,gn->gi", planes_of(quantizer), slope.reshape(12, 9).double())
    assert torch.allclose(quantizer.coordinates.grad.double(), expected * quantizer.alive, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_solve_is_weighted_least_squares(weighted):
    w, h = weights(7, 20).double(), weights(7, 20, seed=1).double().abs() + 0.1
    quantizer = prepared(w, 3, "channel")
    found = solve(w, quantizer.codes.long(), quantizer.signs, quantizer.alive, h if weighted else None)
    for g in range(7):
        root = h[g].sqrt() if weighted else torch.ones(20).double()
        planes = planes_of(quantizer)[g]
        expected = torch.linalg.lstsq(planes * root[:, None], (w[g] * root)[:, None]).solution[:, 0]
        assert torch.allclose(found[g], expected, atol=1e-4)


def test_a_plane_that_is_there_twice_survives_the_fit():
    signs = prepared(weights(2, 4), 2, "channel").signs
    target, codes = torch.tensor([[1.0, -1, 1, 1]]), torch.tensor([[3, 0, 3, 3]])
    alpha = solve(target, codes, signs, torch.ones(1, 2, dtype=torch.bool))
    assert torch.allclose((alpha @ signs.T).gather(1, codes), target, atol=1e-5)


def test_assign_takes_the_nearest_of_all_sums():
    w = weights(6, 40)
    quantizer = prepared(w, 4, "channel")
    quantizer.remove(torch.tensor([[False] * 4, [True] + [False] * 3, [False, True, True, False], [True] * 4,
                                   [False] * 4, [False] * 3 + [True]]))
    target = weights(6, 40, seed=2)
    quantizer.assign(target)
    values = quantizer.levels().gather(1, quantizer.codes.long())
    best = (quantizer.levels()[:, None, :] - target[:, :, None]).abs().amin(dim=2)
    assert torch.allclose((values - target).abs(), best, atol=1e-6)
    assert not quantizer.codes[3].any()


def test_flipping_changes_no_value():
    w = weights(6, 40)
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
    p = nn.Parameter(weights(5, 5))
    ours, optimizer, moments = p.detach().clone(), torch.optim.Adam([p], lr=0.01, amsgrad=True), AMSGrad(p)
    for step in range(20):
        p.grad = weights(5, 5, seed=step)
        moments.update(p.grad)
        optimizer.step()
        slope, curvature = moments.model(0.01)
        ours -= slope / curvature
    assert torch.allclose(ours, p, atol=1e-5)


@pytest.mark.parametrize("kind", ["basis", "coordinate"])
def test_steps_lower_a_quadratic_loss(kind):
    w, wanted = weights(8, 60), weights(8, 60, seed=5) * 0.3
    layer = layer_of(w, 4)
    losses = []
    for _ in range(300):
        layer.sync()
        loss = (layer.quantizer.eval()(layer.layer.weight) - wanted).square().sum()
        layer.layer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        getattr(layer, f"{kind}_step")(0.02)
    # Coordinates alone can only shrink: the start's planes know nothing of the new target.
    assert losses[-1] < {"basis": 0.05, "coordinate": 0.2}[kind] * losses[0]


@pytest.mark.parametrize("count", [0, 1, 7, 20, 10**6])
@pytest.mark.parametrize("top_k", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("per_weight", [False, True])
def test_pruning_removes_exactly_as_many_as_asked(count, top_k, per_weight):
    layers = [layer_of(weights(8, 60)), layer_of(weights(4, 10, seed=1)), layer_of(weights(4, 2, seed=2), 2)]
    before = sum(int(layer.quantizer.alive.sum()) for layer in layers)
    removed = prune(layers, count, 1e-3, top_k, per_weight)
    assert removed == min(count, before)
    assert sum(int(layer.quantizer.alive.sum()) for layer in layers) == before - removed
    for layer in layers:
        assert (layer.quantizer.coordinates[~layer.quantizer.alive] == 0).all()


def test_a_layer_that_is_too_small_to_offer_a_coordinate_is_spared():
    large, small = layer_of(weights(40, 60)), layer_of(1e-3 * weights(4, 10, seed=1))
    for layer in (large, small):
        layer.of_coordinates.update(torch.ones(layer.quantizer.alive.shape))
    assert prune([large, small], 100, 1e-3, top_k=0.02) == 100
    assert small.quantizer.alive.all() and int(large.quantizer.alive.sum()) == 20


def test_passes_prune_layers_of_like_size_evenly():
    cheap, dear = layer_of(1e-3 * weights(40, 60)), layer_of(weights(40, 60, seed=1))
    for layer in (cheap, dear):
        layer.of_coordinates.update(torch.ones(layer.quantizer.alive.shape))
    prune([cheap, dear], 48, 1e-3, top_k=0.05)
    assert [int(layer.quantizer.alive.sum()) for layer in (cheap, dear)] == [120 - 24, 120 - 24]


def test_pruning_takes_the_cheapest_by_the_model():
    layers = [layer_of(weights(8, 60)), layer_of(weights(4, 60, seed=1))]
    for seed, layer in enumerate(layers):
        layer.of_coordinates.update(weights(*layer.quantizer.alive.shape, seed=7 + seed))
    costs = torch.cat([layer.costs(1e-3).reshape(-1) for layer in layers])
    slope, curvature = layers[0].of_coordinates.model(1e-3)
    alpha = layers[0].quantizer.coordinates.detach()
    assert torch.allclose(costs[:24], ((curvature * alpha**2 / 2 - slope * alpha) / 1e-3).reshape(-1))
    prune(layers, 9, 1e-3)
    gone = torch.cat([~layer.quantizer.alive.reshape(-1) for layer in layers])
    assert costs[gone].max() <= costs[~gone].min() and int(gone.sum()) == 9


def test_pruning_stops_at_the_bits_asked_for():
    layers = [layer_of(weights(8, 60)), layer_of(weights(4, 10, seed=1))]
    model = nn.ModuleList([layer.layer for layer in layers])
    prune(layers, 10**6, 1e-3, bits=1.5)
    assert 1.5 - 60 / 520 < average_bits(model) <= 1.5


# -- whole models -------------------------------------------------------------------------------------------------
class Little(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8 * 4 * 4, 10)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.fc(torch.flatten(self.relu(self.conv2(self.relu(self.conv1(x)))), 1))


RECIPE = Recipe(weights="alq:3,pixel", first_weights="alq:3,kernel", last_weights="alq:3,sub2", activations="u8")


@pytest.fixture
def start(task):
    model = Little()
    loop.train(model, *task, loop.Schedule(epochs=8, batch=32, rate=0.05))
    return calibrate(quantize(model, RECIPE), task[0][:200])


SCHEDULE = ALQSchedule(bits=0.6, rounds=2, prunings=5, shadow_epochs=10, batch=32, rate=3e-3, shadow_rate=1e-2, shift=0)


def test_a_trained_model_has_its_bits_and_answers_in_integers_as_in_torch(task, start, tmp_path):
    images, labels = task
    seen = []
    train_alq(start, images, labels, SCHEDULE, report=lambda done, total, loss: seen.append((done, total)))
    assert seen[-1] == (16 * 16, 16 * 16)
    assert 0.3 < average_bits(start) <= 0.6
    assert loop.evaluate(start, images, labels) > 90
    graph = export(start, "little", (1, 8, 8))
    layers = [start.get_submodule(name) for name in ("conv1", "conv2", "fc")]
    nodes = [node for node in graph.nodes if hasattr(node, "weight")]
    for layer, node in zip(layers, nodes, strict=True):
        integers, scale = layer.weight_quantizer.eval().integers(layer.weight)
        assert np.array_equal(node.weight.reshape(integers.shape), integers.numpy())
        assert torch.allclose(integers * scale, layer.weight_quantizer(layer.weight).double(), atol=float(scale.max()) / 2)
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)  # no shadow is left
    random = np.random.default_rng(1).integers(0, 256, (50, 1, 8, 8)).astype(np.uint8)
    answers = execute(graph, random)
    assert np.array_equal(convert(start, (1, 8, 8))(torch.from_numpy(random)).numpy().astype(np.int64), answers)
    right = (execute(graph, images).reshape(len(images), -1).argmax(axis=1) == labels).mean()
    assert right > 0.9


def test_a_killed_run_goes_on_to_the_same_result(task, start, tmp_path, monkeypatch):
    images, labels = task
    schedule = ALQSchedule(bits=0.8, rounds=1, prunings=3, shadow_epochs=2, batch=64, shift=1)
    kept = {name: value.clone() for name, value in start.state_dict().items()}
    train_alq(start, images, labels, schedule, seed=3)
    whole = {name: value.clone() for name, value in start.state_dict().items()}
    save = loop._save
    for number in range(1, 5):
        def save_and_die(model, run, epoch, checkpoint, number=number):
            save(model, run, epoch, checkpoint)
            if epoch == number:
                raise KeyboardInterrupt

        path = tmp_path / f"{number}.ckpt"
        start.load_state_dict(kept)
        monkeypatch.setattr(loop, "_save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train_alq(start, images, labels, schedule, seed=3, checkpoint=path)
        monkeypatch.setattr(loop, "_save", save)
        start.load_state_dict(kept)
        train_alq(start, images, labels, schedule, seed=3, checkpoint=path)
        for name, value in start.state_dict().items():
            assert torch.equal(value, whole[name]), (number, name)


def test_the_ordinary_loop_trains_with_shadow_weights(task, start):
    before = start.get_submodule("conv2").weight_quantizer.codes.clone()
    loop.train(start, *task, loop.Schedule(epochs=2, batch=32, rate=0.02))
    assert not torch.equal(before, start.get_submodule("conv2").weight_quantizer.codes)
    assert loop.evaluate(start, *task) > 90


def test_state_survives_a_file(tmp_path):
    recipe = Recipe(weights="alq:2,sub2", first_weights="alq:2", last_weights="alq:2,channel")
    model = calibrate(quantize(LeNet5(), recipe), np.full((2, 1, 28, 28), 200, np.uint8))
    layers = [ALQLayer(m) for m in model.modules() if hasattr(m, "weight_quantizer")]
    prune(layers, 1500, 1e-3, per_weight=True)
    for layer in layers:
        layer.sync()
    save_model(model, recipe, "lenet5", tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    assert average_bits(again) == average_bits(model) < 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28)).astype(np.uint8)
    assert np.array_equal(execute(export(again, "a", (1, 28, 28)), images), execute(export(model, "a", (1, 28, 28)), images))


def test_stored_bits_are_the_published_account():
    w = weights(6, 10)
    quantizer = prepared(w, 3, "sub2")
    alive = int(quantizer.alive.sum())
    assert quantizer.stored_bits(w) == 12 * 4 + alive * 32 + alive * 5


@pytest.mark.parametrize("fields, message", [
    ({"bits": 0}, "bits a weight must be in 0..8"), ({"top_k": 0}, "top_k is a fraction"),
    ({"rounds": 0}, "must be at least 1"), ({"rate": 0}, "rates must be positive")])
def test_a_schedule_refuses_nonsense(fields, message):
    with pytest.raises(ValueError, match=message):
        ALQSchedule(**fields)


def test_training_needs_layers_and_images(task, start):
    with pytest.raises(ValueError, match="no layer has an ALQ quantizer"):
        train_alq(Little(), *task)
    with pytest.raises(ValueError, match="no images"):
        train_alq(start, task[0][:0], task[1][:0])


def test_a_recipe_trains_writes_model_and_graph_and_counts_signs(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (64, 1, 8, 8)).astype(np.uint8), random.integers(0, 10, 64)
    monkeypatch.setattr(api, "load_images", lambda name, split, count: data)
    recipe = replace(RECIPES["lenet5-mnist-alq"], network="digits", quant=RECIPE, real=loop.Schedule(epochs=1, batch=32),
                     low_bit=ALQSchedule(bits=0.5, rounds=1, prunings=2, shadow_epochs=1, batch=32))
    metrics = api.train_network(recipe, tmp_path / "alq", progress=False)
    assert metrics["epochs"] == 4 and 0.4 < metrics["weights_bits"] <= 0.5 and metrics["activation_bits"] == 8
    graph, model = load(tmp_path / "alq" / "graph.npz"), load_model(tmp_path / "alq" / "model.pt")
    assert metrics["weights_bits"] == pytest.approx(average_bits(model), abs=1e-3)
    answers = execute(graph, data[0])
    assert np.array_equal(answers, convert(model, (1, 8, 8))(torch.from_numpy(data[0])).numpy().astype(np.int64))
    assert metrics["graph_top1"] == pytest.approx(100 * (answers.reshape(64, -1).argmax(1) == data[1]).mean(), abs=0.01)
    again = api.train_network(recipe, tmp_path / "b", seed=4, progress=False, float_model=tmp_path / "alq" / "float.pt")
    assert again["float_top1"] == metrics["float_top1"]
    with pytest.raises(ValueError, match="training of ALQ runs in float32, uncompiled"):
        api.train_network(recipe, tmp_path / "c", progress=False, compiled=True, float_model=tmp_path / "alq" / "float.pt")
    assert recipe.with_epochs(3).low_bit.shadow_epochs == 3
