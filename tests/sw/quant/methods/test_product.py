"""Product quantization: clustering against brute force, gradients, blocks of any size, training, integers and files."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.graph.execute import execute
from esbflow.networks.lenet5 import LeNet5
from esbflow.numbers import ESB
from esbflow.quant.export import export
from esbflow.quant.integer_module import integer_module
from esbflow.quant.methods.product import ProductQuantizer, clamp_count, cluster, from_blocks, to_blocks
from esbflow.quant.methods.registry import weight_quantizer
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training import api, loop
from esbflow.training.api import load_model, save_model
from esbflow.training.loop import calibrate
from esbflow.training.product import ProductSchedule, distillation, gram_of, layers_of, train_product
from esbflow.training.recipes import RECIPES


def weights(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prepared(w, text="pq:16,4", **options):
    quantizer = weight_quantizer(text, **options)
    quantizer.prepare(w)
    return quantizer


# -- blocks and counts --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count, vectors, expected", [
    (256, 10**6, 256), (256, 1023, 128), (256, 1024, 256), (200, 10**6, 128), (256, 3, 1), (256, 0, 1), (1, 100, 1),
    (2048, 8192, 2048)])
def test_codewords_are_a_power_of_two_up_to_a_quarter_of_the_blocks(count, vectors, expected):
    assert clamp_count(count, vectors) == expected


@pytest.mark.parametrize("shape", [(3, 4, 3, 3), (3, 10), (1, 1, 1, 1), (5, 7)])
@pytest.mark.parametrize("size", [1, 4, 9, 50])
def test_blocks_go_back_also_where_they_do_not_divide(shape, size):
    w = weights(*shape)
    blocks = to_blocks(w, size)
    assert blocks.shape == (shape[0] * math.ceil(w[0].numel() / size), size)
    assert torch.equal(from_blocks(blocks, w.shape), w)


def test_layers_with_one_input_channel_have_blocks_of_a_kernels_width():
    assert prepared(weights(32, 1, 3, 3), "pq:256,9").codebook.shape == (16, 3)
    assert prepared(weights(32, 16, 3, 3), "pq:256,9").codebook.shape == (128, 9)
    assert prepared(weights(32, 6), "pq:256,9").codebook.shape == (8, 6)


# -- clustering ---------------------------------------------------------------------------------------------------
def brute_force(vectors, start, x, iterations):
    """k-means as published: distances between outputs X v, means mapped back by the pseudo-inverse."""
    centroids = start.clone()
    for _ in range(iterations):
        outputs = vectors @ x.T
        assigned = torch.stack([(outputs - c @ x.T).square().sum(dim=1) for c in centroids]).argmin(dim=0)
        centroids = torch.stack([outputs[assigned == k].mean(dim=0) @ torch.linalg.pinv(x).T for k in range(len(start))])
    return centroids, assigned


@pytest.mark.parametrize("seed", range(5))
def test_whitened_clusters_are_those_of_brute_force(seed):
    vectors = weights(60, 4, seed=seed).double()
    x = weights(30, 4, seed=seed + 100).double() * torch.tensor([3.0, 1, 0.3, 2]) + weights(30, 1, seed=9).double()
    centroids, assigned = cluster(vectors, vectors[:6], x.T @ x, iterations=200)
    expected, expected_assigned = brute_force(vectors, vectors[:6], x, 60)
    assert torch.equal(assigned, expected_assigned)
    assert torch.allclose(centroids, expected, atol=1e-5)


def test_clustering_by_outputs_preserves_them_better():
    vectors, x = weights(400, 4), weights(200, 4, seed=1) * torch.tensor([4.0, 1, 0.5, 0.1])
    errors = []
    for gram in (None, x.T @ x):
        centroids, assigned = cluster(vectors, vectors[:8], gram)
        errors.append(float(((vectors - centroids[assigned]) @ x.T).square().sum()))
    assert errors[1] < 0.7 * errors[0]


def test_a_singular_gram_matrix_survives():
    vectors, x = weights(40, 3), torch.tensor([[1.0, 2, 0]])
    centroids, assigned = cluster(vectors, vectors[:4], x.T @ x)
    assert torch.isfinite(centroids).all()
    assert ((vectors - centroids[assigned]) @ x.T).square().sum() < 0.2 * (vectors @ x.T).square().sum()
    assert torch.isfinite(cluster(vectors, vectors[:4], torch.zeros(3, 3))[0]).all()


def test_an_empty_cluster_takes_half_of_the_largest():
    vectors = torch.cat([weights(50, 2), weights(50, 2, seed=1) + 20])
    start = torch.tensor([[0.0, 0], [20, 20], [1e3, 1e3], [-1e3, 1e3]])
    _, assigned = cluster(vectors, start)
    assert (torch.bincount(assigned, minlength=4) > 0).all()


def test_weighted_vectors_count_as_often():
    vectors = weights(30, 2)
    times = torch.randint(1, 4, (30,), generator=torch.Generator().manual_seed(0))
    once = cluster(vectors, vectors[:4], weights=times.float())[0]
    assert torch.allclose(once, cluster(vectors.repeat_interleave(times, 0), vectors[:4])[0], atol=1e-5)


def test_blocks_of_zeros_stay_zeros_through_training():
    w = weights(16, 16)
    w[3] = w[7] = 0
    quantizer = prepared(w)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    for _ in range(3):
        (quantizer(w) - 1).square().sum().backward()
        optimizer.step()
    values = quantizer(w)
    assert not values[3].any() and not values[7].any() and values[0].all()


# -- the quantizer ------------------------------------------------------------------------------------------------
def test_enough_codewords_are_exact():
    words = weights(4, 3)
    w = words[torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(1))].reshape(10, 12)
    assert torch.allclose(prepared(w, "pq:8,3")(w), w, atol=1e-6)


def test_a_codewords_gradient_is_the_mean_of_its_blocks():
    w = nn.Parameter(weights(8, 16))
    quantizer = prepared(w)
    slope = weights(8, 16, seed=3)
    (quantizer(w) * slope).sum().backward()
    for k in range(len(quantizer.codebook)):
        mine = to_blocks(slope, 4)[quantizer.assignments == k]
        expected = mine.mean(dim=0) if len(mine) else torch.zeros(4)
        assert torch.allclose(quantizer.codebook.grad[k], expected, atol=1e-6)
    assert w.grad is None


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("text", ["pq:16,4", "pq:16,5,esb4.1", "pq:16,3,esb5.2", "pq:16,4,s4"])
def test_integers_are_levels_and_what_the_layer_computes(text, per_channel):
    w = weights(12, 4, 3, 3) * (weights(12, seed=1).exp().reshape(-1, 1, 1, 1) if per_channel else 1)
    quantizer = weight_quantizer(text)
    quantizer = ProductQuantizer(quantizer.most, quantizer.size, quantizer.form if "," in text[6:] else None, per_channel)
    quantizer.prepare(w)
    if per_channel:
        with torch.no_grad():
            quantizer.gains[2].neg_()
    integers, scale = quantizer.integers(w)
    assert integers.shape == w.shape and scale.shape == ((12, 1, 1, 1) if per_channel else (1, 1, 1, 1))
    assert quantizer.form.contains(integers.numpy()).all()
    quantizer.snapped = True
    assert torch.allclose(quantizer(w), (integers * scale).float(), rtol=1e-5)
    assert len(integers.reshape(12, -1)[:, :quantizer.size].unique(dim=0)) <= 2 * len(quantizer.codebook)
    limit = 0.6 if per_channel else 0.5
    assert (quantizer(w) - w).square().sum() < limit * w.square().sum()


def test_rounded_codewords_are_esb_levels():
    quantizer = prepared(weights(32, 64), "pq:32,4,esb4.1")
    levels, _ = quantizer.integer_codewords()
    assert set(levels.unique().tolist()) <= set(ESB(4, 1).levels.tolist()) and levels.shape == (32, 4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 7), (1, 1, 3, 3), (2, 2), (3, 1, 3, 3), (1, 64, 3, 3)])
@pytest.mark.parametrize("text", ["pq:256,9", "pq:256,4,esb4.1"])
def test_zeros_one_filter_and_tiny_layers(shape, text):
    zero = torch.zeros(shape)
    quantizer = prepared(zero, text)
    assert torch.equal(quantizer(zero), zero) and not quantizer.integers(zero)[0].any()
    w = weights(*shape)
    quantizer = prepared(w, text)
    assert torch.isfinite(quantizer(w)).all() and quantizer(w).shape == w.shape
    assert quantizer.integers(w)[0].shape == w.shape


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_by_name(bad):
    w = weights(8, 8)
    quantizer = weight_quantizer("pq:4,4", name="layer fc: weight")
    quantizer.prepare(w)
    broken = w.clone()
    broken[1, 2] = bad
    for call in (quantizer.prepare, quantizer, quantizer.integers, quantizer.fit):
        with pytest.raises(ValueError, match=r"^layer fc: weight holds NaN or infinity"):
            call(broken)
    with torch.no_grad():
        quantizer.codebook[0, 0] = bad
    for call in (quantizer, quantizer.integers):
        with pytest.raises(ValueError, match=r"^layer fc: weight holds NaN or infinity"):
            call(w)


@pytest.mark.parametrize("text, message", [
    ("pq:256", "write pq:K,d"), ("pq:x,4", "write pq:K,d"), ("pq:0,4", "1 to 32768 codewords"),
    ("pq:65536,4", "1 to 32768 codewords"), ("pq:256,0", "of at least one weight"), ("pq:256,4,u4", "need a signed format"),
    ("pq:256,4,nonsense", "nonsense")])
def test_a_text_that_says_nonsense_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        weight_quantizer(text)


def test_stored_bits_are_the_published_account():
    w = weights(64, 64)
    assert prepared(w, "pq:256,4").stored_bits(w) == 1024 * 8 + 256 * 4 * 16
    assert prepared(w, "pq:256,4,esb4.1").stored_bits(w) == 1024 * 8 + 256 * 4 * ESB(4, 1).bits + 16


# -- training -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("conv, x", [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), weights(3, 4, 7, 7)),
    (nn.Conv2d(4, 8, 3, dilation=2, groups=2, bias=False), weights(3, 4, 9, 9)),
    (nn.Conv2d(6, 6, 3, groups=6, bias=False), weights(2, 6, 5, 5)), (nn.Linear(10, 3, bias=False), weights(5, 10))])
def test_the_gram_matrix_of_whole_rows_gives_the_outputs_power(conv, x):
    # One filter a group, the same in all: then the sum of squared outputs is w^T G w.
    row = conv.weight[0].detach()
    with torch.no_grad():
        conv.weight.copy_(row.expand_as(conv.weight))
    gram = gram_of(conv, x, row.numel())
    power = row.reshape(-1).double() @ gram @ row.reshape(-1).double()
    outputs = conv(x).detach().double().square().sum()
    filters = conv.weight.shape[0] // getattr(conv, "groups", 1)
    assert float(power) == pytest.approx(float(outputs) / filters, rel=1e-4)


class Little(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.fc = nn.Linear(16 * 4 * 4, 10)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.norm(self.conv1(x)))))
        return self.fc(torch.flatten(x, 1))


RECIPE = Recipe(weights="pq:32,9", first_weights="pq:256,9", last_weights="pq:64,5,esb4.1", activations="u8")
SCHEDULE = ProductSchedule(images=128, iterations=20, layer_steps=20, epochs=3, batch=32, shift=0)


@pytest.fixture(scope="module")
def teacher(task):
    model = Little()
    return loop.train(model, *task, loop.Schedule(epochs=8, batch=32, rate=0.05))


def test_distillation_is_the_divergence_from_the_teacher():
    student, wanted = weights(6, 10), weights(6, 10, seed=1)
    p, q = wanted.softmax(dim=1), student.softmax(dim=1)
    assert torch.allclose(distillation(student, wanted), (p * (p / q).log()).sum(dim=1).mean(), atol=1e-6)
    assert float(distillation(wanted, wanted)) == pytest.approx(0, abs=1e-6)


def test_a_trained_model_answers_in_integers_as_in_torch(task, teacher):
    images, labels = task
    model = quantize(copy.deepcopy(teacher), RECIPE)
    losses = []
    train_product(model, teacher, images, SCHEDULE, report=lambda done, total, loss: losses.append((done, total, loss)))
    assert [done for done, _, _ in losses] == list(range(1, losses[0][1] + 1)) and losses[0][1] == 3 * 20 + 3 * 16
    assert sum(loss for _, _, loss in losses[-16:]) < sum(loss for _, _, loss in losses[40:56])
    assert loop.evaluate(model, images, labels) > 97
    graph = export(model, "little", (1, 8, 8))
    nodes = [node for node in graph.nodes if hasattr(node, "weight")]
    for layer, node in zip(layers_of(model), nodes, strict=True):
        quantizer = layer.weight_quantizer
        integers, scale = quantizer.integers(layer.weight)
        assert np.array_equal(node.weight.reshape(integers.shape), integers.numpy())
        # Half a step, and what a scale of least error takes off the largest codewords.
        assert (integers * scale - quantizer(layer.weight)).abs().max() <= scale.max()
        quantizer.snapped = True
        assert torch.allclose(quantizer(layer.weight), (integers * scale).float(), rtol=1e-5)
    random = np.random.default_rng(1).integers(0, 256, (50, 1, 8, 8)).astype(np.uint8)
    answers = execute(graph, random)
    assert np.array_equal(integer_module(model, (1, 8, 8))(torch.from_numpy(random)).numpy().astype(np.int64), answers)
    assert (execute(graph, images).reshape(len(images), -1).argmax(axis=1) == labels).mean() > 0.97


def test_layers_are_clustered_on_inputs_of_the_quantized_network(task, teacher, monkeypatch):
    model = quantize(copy.deepcopy(teacher), RECIPE)
    waiting = []
    fit = ProductQuantizer.fit
    monkeypatch.setattr(ProductQuantizer, "fit", lambda self, *a, **k: (
        waiting.append([layer.weight_quantizer.waiting for layer in layers_of(model)]), fit(self, *a, **k))[1])
    train_product(model, teacher, task[0], ProductSchedule(images=64, iterations=3, layer_steps=1, epochs=0, batch=32))
    assert waiting == [[True] * 3, [False, True, True], [False, False, True]]
    assert not any(layer.weight_quantizer.waiting for layer in layers_of(model))


def test_a_killed_run_goes_on_to_the_same_result(task, teacher, tmp_path, killed_after):
    schedule = ProductSchedule(images=64, iterations=5, layer_steps=4, epochs=2, batch=64)
    whole = train_product(quantize(copy.deepcopy(teacher), RECIPE), teacher, task[0], schedule, seed=3).state_dict()
    for number in range(1, 6):
        path = tmp_path / f"{number}.ckpt"
        with killed_after(number):
            train_product(quantize(copy.deepcopy(teacher), RECIPE), teacher, task[0], schedule, seed=3, checkpoint=path)
        model = quantize(copy.deepcopy(teacher), RECIPE)
        train_product(model, teacher, task[0], schedule, seed=3, checkpoint=path)
        for name, value in model.state_dict().items():
            assert torch.equal(value, whole[name]), (number, name)


def test_state_survives_a_file(tmp_path):
    recipe = Recipe(weights="pq:256,8,esb4.1", first_weights="pq:256,5", last_weights="pq:256,4")
    model = calibrate(quantize(LeNet5(), recipe), np.full((2, 1, 28, 28), 200, np.uint8))
    with torch.no_grad():
        for layer in layers_of(model):
            layer.weight_quantizer.codebook.mul_(1.1)
    save_model(model, recipe, "lenet5", tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28)).astype(np.uint8)
    assert np.array_equal(execute(export(again, "a", (1, 28, 28)), images), execute(export(model, "a", (1, 28, 28)), images))


@pytest.mark.parametrize("fields, message", [
    ({"images": 0}, "must be at least 1"), ({"epochs": -1}, "not negative"), ({"rate": 0}, "rates must be positive")])
def test_a_schedule_refuses_nonsense(fields, message):
    with pytest.raises(ValueError, match=message):
        ProductSchedule(**fields)


def test_training_needs_layers_and_images(task, teacher):
    with pytest.raises(ValueError, match="no layer has a ProductQuantizer"):
        train_product(copy.deepcopy(teacher), teacher, task[0])
    with pytest.raises(ValueError, match="no images"):
        train_product(quantize(copy.deepcopy(teacher), RECIPE), teacher, task[0][:0])


@pytest.mark.parametrize("name", ["lenet5-mnist-pq", "lenet5-mnist-pq-esb"])
def test_recipes_train_both_kinds_of_codewords(name, task, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "load_images", lambda name, split, count: (task[0][:64], task[1][:64]))
    recipe = replace(RECIPES[name], network="digits", real=loop.Schedule(epochs=1, batch=32),
                     low_bit=ProductSchedule(images=32, iterations=3, layer_steps=1, epochs=1, batch=32))
    metrics = api.train_network(recipe, tmp_path / "pq", seed=2, progress=False)
    model = load_model(tmp_path / "pq" / "model.pt")
    sizes = [layer.weight.numel() for layer in layers_of(model)]
    stored = sum(layer.weight_quantizer.stored_bits(layer.weight) for layer in layers_of(model))
    assert metrics["bytes"] == round(stored / 8) and metrics["weights_bits"] == round(stored / sum(sizes), 3)
    assert all((layer.weight_quantizer.form == ESB(4, 1)) == name.endswith("esb") for layer in layers_of(model))
    with pytest.raises(ValueError, match="product quantization runs in float32"):
        api.train_network(recipe, tmp_path / "b", progress=False, precision="bfloat16")
