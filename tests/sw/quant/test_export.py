"""From a quantized torch model to integers: torch = graph on every value, and what the exporter writes."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from esbflow.graph import ir
from esbflow.graph.bounds import check
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.graph.file import load, save
from esbflow.graph.random import random_graph, random_images
from esbflow.lowering.engine_layer import requantizer
from esbflow.networks.digits import DigitsNet
from esbflow.networks.lenet5 import LeNet5
from esbflow.networks.resnet20 import ResNet20
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule, integer_module
from esbflow.quant.recipe import Recipe
from esbflow.training.api import load_model, save_model
from esbflow.training.loop import normalise
from tests.sw.exported_models import NETWORKS, RECIPES, both, calibrated, images_for


# -- torch = graph ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_converted_module_equals_the_graph_on_every_value(network, recipe):
    torch.manual_seed(1)
    net = NETWORKS[network]()
    graph, module = both(calibrated(net, RECIPES[recipe], net.shape), net.shape)
    assert np.array_equal(graph, module) and (graph.std(axis=0) > 0).any()


@pytest.mark.parametrize("recipe", ["demo", "uesb4.2"])
def test_converted_resnet20_equals_the_graph_on_every_value(recipe):
    torch.manual_seed(2)
    model = calibrated(ResNet20(), RECIPES[recipe], ResNet20.shape)
    graph, module = both(model, ResNet20.shape, count=4)
    assert np.array_equal(graph, module) and len(np.unique(graph)) > 10


@pytest.mark.parametrize("seed", range(25))
def test_the_torch_module_of_a_random_graph_equals_its_executor(seed):
    random = np.random.default_rng(seed)
    graph = random_graph(random, channels=10, size=9)
    images = random_images(random, graph, 3)
    assert np.array_equal(IntegerModule(graph)(torch.from_numpy(images)).numpy(), execute(graph, images))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_fake_quantization_agrees_with_the_graph_but_for_rare_roundings(network, recipe):
    torch.manual_seed(3)
    net, recipe = NETWORKS[network](), RECIPES[recipe]
    model = calibrated(net, recipe, net.shape)
    images = images_for(net.shape, 40, seed=7)
    graph = export(model, "net", net.shape)
    with torch.no_grad():
        fake = model(normalise(images, recipe.mean, recipe.std)).double().numpy()
    real = execute(graph, images)[:, :, 0, 0] * graph.output.scale
    # m has 11 bits, so a value near a tie may fall the other way and move what follows by a step. Where tensors of
    # different scales are concatenated the graph rounds once more.
    distance, agreement = (0.3, 0.7) if network == "residual" else (0.12, 0.85)
    assert np.sqrt(np.mean((real - fake) ** 2)) < distance * fake.std()
    assert (real.argmax(axis=1) == fake.argmax(axis=1)).mean() >= agreement


@pytest.mark.parametrize("name", ["relu1", "conv1"])
def test_every_stored_tensor_is_what_torch_computes_there(name):
    """One layer, values far from ties: exported integers are torch's levels."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU() if name == "relu1" else nn.Identity(), nn.Conv2d(4, 2, 1))
    model = calibrated(net, Recipe(), (1, 6, 6))
    graph = export(model, "net", (1, 6, 6))
    stored = graph.nodes[1]
    images = images_for((1, 6, 6), 20)
    with torch.no_grad():
        x = model.quantizers[next(iter(model.quantizers))](normalise(images, (0.0,), (1.0,)))
        y = model.get_submodule("0")(x).double().numpy() / stored.scale
    y = np.maximum(y, 0) if name == "relu1" else y
    far = np.abs(y - np.floor(y) - 0.5) > 0.05  # 12 bits of m on values up to 127
    values = execute(graph, images, keep=True)[stored.name]
    assert np.array_equal(values[far], stored.format.nearest(y)[far]) and far.mean() > 0.85


# -- what the exporter writes -------------------------------------------------------------------------------------
def test_the_output_has_one_scale_and_cannot_saturate():
    torch.manual_seed(4)
    for bits in (16, 32):
        model = calibrated(LeNet5(), Recipe(output_bits=bits), LeNet5.shape)
        graph = export(model, "net", LeNet5.shape)
        assert graph.output.format == Signed(bits) and isinstance(graph.output.scale, float)
        q, found = graph.output.requantizer, check(graph, 32)[graph.output.name]
        assert found.sum_high / 2.0 ** q.s.min() <= graph.output.format.max * 2.0 ** (q.s.max() - q.s.min())
        low, high = found.sum_low, found.sum_high
        assert graph.output.format.round_shift(np.array([low, high]), int(q.s.max())).tolist() == [
            math.floor(low / 2 ** int(q.s.max()) + 0.5), math.floor(high / 2 ** int(q.s.max()) + 0.5)]


def test_all_outputs_share_one_real_unit():
    """Two classes with weights a hundredfold apart: integers times the scale are the real logits of both."""
    torch.manual_seed(9)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2))
    with torch.no_grad():
        net[3].weight[1] *= 0.01
        net[3].bias[1] *= 0.01
    model = calibrated(net, Recipe(output_bits=32), (1, 6, 6))
    images = images_for((1, 6, 6), 30)
    graph = export(model, "net", (1, 6, 6))
    with torch.no_grad():
        fake = model(normalise(images, (0.0,), (1.0,))).double().numpy()
    real = execute(graph, images)[:, :, 0, 0] * graph.output.scale
    # On average over the images: a hidden activation near a tie may be a level apart in one of them.
    assert (np.abs(real - fake).mean(axis=0) < 0.03 * fake.std(axis=0) + 2 * graph.output.scale).all()


@pytest.mark.parametrize("mean, std, bits, form", [
    ((0.0,), (1.0,), 8, Unsigned(8)), ((0.0,), (2.0,), 1, Unsigned(1)), ((-0.5,), (1.0,), 3, Unsigned(3)),
    ((0.1307,), (0.3081,), 8, Signed(8)), ((0.0, 0.1), (1.0, 1.0), 2, Signed(2)),
    ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), 8, Signed(8)), ((0.5,), (0.5,), 4, Signed(4))])
def test_code_zero_of_the_input_table_is_real_zero(mean, std, bits, form):
    """A sign is there where a pixel can be negative."""
    recipe = Recipe(mean=mean, std=std, input_bits=bits)
    net = nn.Sequential(nn.Conv2d(len(mean), 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
    shape = (len(mean), 6, 6)
    node = export(calibrated(net, recipe, shape), "net", shape).input
    assert node.format == form and node.table.shape == (len(mean), 256)
    real = (np.arange(256) / 255 - np.array(mean)[:, None]) / np.array(std)[:, None]
    # A table entry times the scale is within half a step of the normalised pixel: no zero point hides in it.
    assert np.abs(node.table * node.scale - real).max() <= 0.5 * node.scale * (1 + 1e-5)
    assert np.abs(node.table).max() == node.format.max


def test_a_batch_norm_with_negative_gamma_turns_the_sign_of_m():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = calibrated(net, Recipe(), (1, 6, 6))
    q = export(model, "net", (1, 6, 6)).nodes[1].requantizer
    assert q.m[0] < 0 and q.m[1] == 0
    assert np.sign(q.m).tolist() == np.sign(net[1].weight.detach().numpy()).tolist()


def test_resnet_shortcut_copies_integers():
    torch.manual_seed(5)
    graph = export(calibrated(ResNet20(), Recipe(), ResNet20.shape), "net", ResNet20.shape)
    node = graph["layer2.0.shortcut"]
    values = execute(graph, images_for(ResNet20.shape, 2), keep=True)
    x, y = values[node.inputs[0]], values[node.name]
    assert np.array_equal(y[:, 8:24], x[:, :, ::2, ::2]) and not y[:, :8].any() and not y[:, 24:].any()
    assert (node.scale, node.format) == (graph[node.inputs[0]].scale, graph[node.inputs[0]].format)
    assert [type(n).__name__ for n in graph.nodes].count("Add") == 0, "all nine additions are residuals of convolutions"


def test_a_tensor_added_to_itself_doubles():
    net = AddsItself()
    graph, module = both(calibrated(net, Recipe(), (1, 5, 5)), (1, 5, 5))
    assert np.array_equal(graph, module)
    exported = export(calibrated(net, Recipe(), (1, 5, 5)), "net", (1, 5, 5))
    assert isinstance(exported.nodes[2], ir.Add) and exported.nodes[2].inputs == ("conv", "conv")
    assert np.array_equal(exported.nodes[2].requantizer.m, exported.nodes[2].requantizer.n)


class AddsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 2, 2), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.last(F.relu(x + x))


class AddsAnything(nn.Module):
    """Sums whose operands are a pool, a linear layer, a norm of a stored tensor, and a signed pool."""

    shape = (2, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv, self.side = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1, stride=2)
        self.norm, self.fc1, self.fc2 = nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv(x)
        pooled = F.avg_pool2d(y, 2) + self.side(x)
        pooled = F.avg_pool2d(pooled, 2) + F.max_pool2d(pooled, 2)
        normed = self.norm(F.relu(pooled)) + pooled
        flat = F.adaptive_avg_pool2d(normed, 1).flatten(1)
        return self.fc2(F.relu(self.fc1(flat) + flat))


@pytest.mark.parametrize("recipe", ["s8 u8", "uesb4.2"])
def test_sums_of_pools_linear_layers_and_norms_equal_torch(recipe):
    torch.manual_seed(8)
    model = calibrated(AddsAnything(), RECIPES[recipe], AddsAnything.shape)
    graph, module = both(model, AddsAnything.shape, count=40)
    assert np.array_equal(graph, module) and (graph.std(axis=0) > 0).any()
    exported = export(model, "net", AddsAnything.shape)
    pools = [node for node in exported.nodes if isinstance(node, ir.AvgPool2d)]
    assert len(pools) == 3 and all(node.format.signed for node in pools), "the mean of signed values has a sign"
    images = images_for(AddsAnything.shape, 40, seed=9)
    with torch.no_grad():
        fake = model(normalise(images, RECIPES[recipe].mean, RECIPES[recipe].std)).double().numpy()
    real = execute(exported, images)[:, :, 0, 0] * exported.output.scale
    assert np.sqrt(np.mean((real - fake) ** 2)) < 0.1 * fake.std()


def test_exported_models_survive_their_files(tmp_path):
    torch.manual_seed(6)
    recipe = RECIPES["uesb4.2"]
    model = calibrated(DigitsNet(), recipe, DigitsNet.shape)
    graph, images = export(model, "digits", DigitsNet.shape), images_for(DigitsNet.shape)
    expected = execute(graph, images)
    assert np.array_equal(execute(load(save(graph, tmp_path / "graph.npz")), images), expected)
    # The state dict holds scales and statistics, and the loaded model exports the same integers.
    save_model(model, recipe, "digits", tmp_path / "model.pt")
    assert np.array_equal(execute(export(load_model(tmp_path / "model.pt"), "digits", DigitsNet.shape), images), expected)
    # The frozen module is an ordinary one: its buffers go through torch.save too.
    memory = io.BytesIO()
    frozen = integer_module(model, DigitsNet.shape)
    torch.save(frozen.state_dict(), memory)
    memory.seek(0)
    again = IntegerModule(graph)
    for buffer in again.buffers():
        buffer.zero_()
    again.load_state_dict(torch.load(memory, weights_only=True))
    assert np.array_equal(again(torch.from_numpy(images)).numpy(), expected)


def test_a_model_file_that_is_damaged_or_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^there is no model file .*none\.pt; make one with `esbflow train`$"):
        load_model(tmp_path / "none.pt")
    model = calibrated(DigitsNet(), Recipe(), DigitsNet.shape)
    path = tmp_path / "model.pt"
    save_model(model, Recipe(), "digits", path)
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"(?s)^.*model\.pt is not a quantized model that `esbflow train` or `save_model` wrote \(.+\)$"):
            load_model(path)


def test_export_leaves_the_model_as_it_was():
    model = calibrated(DigitsNet(), Recipe(), DigitsNet.shape).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, "net", DigitsNet.shape)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- requantizer --------------------------------------------------------------------------------------------------
gains = st.floats(1e-9, 2000) | st.floats(-2000, -1e-9)


@given(st.lists(st.tuples(gains, st.floats(-1e6, 1e6), st.just(0.0) | gains), min_size=1, max_size=5))
@example([(1e-9, 63 / 64, 0.0)])
def test_constants_are_as_precise_as_their_widths_allow(channels):
    gain, offset, residual = (np.array(v) for v in zip(*channels, strict=True))
    q = requantizer(gain, offset, residual)
    for real, integers, bits in ((gain, q.m, 12), (residual, q.n, 12), (offset, q.b, 40)):
        assert np.abs(integers).max() < 2 ** (bits - 1)
        # Each is rounded once at the common shift.
        assert np.abs(integers - real * 2.0**q.s).max() <= 0.5
    assert q.s.min() >= 0 and q.s.max() <= 40
    # With one bit more, something would not fit. b keeps 2 % of its range, by which exact thresholds move it.
    widest = np.maximum(np.abs(gain), np.abs(residual)) * 2.0 ** (q.s + 1)
    full = (q.s == 40) | (widest > 2047.4) | (np.abs(offset) * 2.0 ** (q.s + 1) > 0.979 * 2**39)
    assert full.all()


def test_a_gain_that_uses_the_whole_width_is_right_to_eleven_bits():
    gain = np.exp(np.linspace(np.log(1e-6), np.log(1000), 500))
    q = requantizer(gain, np.zeros(500))
    assert np.abs(q.m / 2.0**q.s / gain - 1).max() < 2.0**-11


@pytest.mark.parametrize("gain, offset, residual, message", [
    (3000.0, 0.0, None, r"a scale of 3e\+03 or bias of 0 output steps does not fit the requantizer; its output scale is "
                        r"far too small"),
    (1.0, 1e12, None, r"a scale of 1 or bias of 1e\+12 output steps does not fit the requantizer; its output scale is far "
                      r"too small"),
    (1.0, 0.0, 5000.0, r"a scale of 5e\+03 or bias of 0 output steps does not fit .*"),
    (math.nan, 0.0, None, r"a scale or bias is not finite; the model has diverged, or a batch norm has no variance"),
    (1.0, math.inf, None, r"a scale or bias is not finite; .*"),
    (1.0, 0.0, math.nan, r"a scale or bias is not finite; .*"),
])
def test_constants_that_do_not_fit_are_refused_by_layer(gain, offset, residual, message):
    with pytest.raises(GraphError, match=f"^layer fc1: {message}$"):
        requantizer(np.array([gain]), np.array([offset]), None if residual is None else np.array([residual]),
                    "layer fc1")


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_of_a_quantized_model_exports_the_same(way):
    net = NETWORKS["residual"]()
    model, images = calibrated(net, RECIPES["s8 u8"], net.shape), images_for(net.shape)
    other = way(model)
    with torch.no_grad():
        model.stem.weight.mul_(-1)  # of its own
    before, after = export(other, "net", net.shape), export(model, "net", net.shape)
    with torch.no_grad():
        model.stem.weight.mul_(-1)
    again = export(model, "net", net.shape)
    assert before.info == again.info and np.array_equal(execute(before, images), execute(again, images))
    assert not np.array_equal(execute(before, images), execute(after, images))
