"""Splits, slices and shuffles of channels, as ShuffleNet, GhostNet, Res2Net and CSP networks have them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.quant.channels import replace_channel_moves
from esbflow.quant.export import export
from esbflow.quant.layers import SelectChannels
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.quant.trace import trace
from esbflow.training.loop import calibrate
from tests.compiler.machine import Machine
from tests.sw.exported_models import both, calibrated, distance, images_for, randomise_norms

SHAPE = (3, 9, 8)


def block(inputs, outputs, kernel=3, groups=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs), nn.ReLU())


def shuffle(x, groups):
    images, channels, height, width = x.size()
    x = x.view(images, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(images, channels, height, width)


class Shuffled(nn.Module):
    """Half of the channels pass by, and halves are mixed: ShuffleNetV2's unit, twice."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two, self.last = block(3, 8), block(4, 4, 3, 4), block(4, 4, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(x)
        for branch in (self.one, self.two):
            kept, changed = x.chunk(2, dim=1)
            x = shuffle(torch.cat((kept, branch(changed)), dim=1), 2)
        return self.last(x.mean([2, 3]))


class Sliced(nn.Module):
    """Cheap features beside a few dear ones, of which as many as needed are taken: GhostNet."""

    def __init__(self):
        super().__init__()
        self.first, self.cheap, self.second, self.last = block(3, 6), block(6, 6, 3, 6), block(10, 4, 1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.second(torch.cat([x, self.cheap(x)], 1)[:, :10, :, :]).mean((2, 3)))


class Steps(nn.Module):
    """Each part takes in the one before: Res2Net."""

    def __init__(self):
        super().__init__()
        self.first, self.parts, self.last = block(3, 8), nn.ModuleList(block(2, 2) for _ in range(3)), nn.Linear(8, 5)

    def forward(self, x):
        parts = torch.split(self.first(x), 2, 1)
        done = [parts[0]]
        for i, part in enumerate(self.parts, 1):
            done.append(part(parts[i] + done[-1]))
        return self.last(torch.flatten(F.adaptive_avg_pool2d(torch.cat(done, 1), 1), 1))


class Halves(nn.Module):
    """Nothing is concatenated, so that the engine takes it."""

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.last = block(3, 8), nn.ChannelShuffle(2), nn.Linear(4 * 72, 5)

    def forward(self, x):
        a, b = self.mix(self.first(x)).split([4, 4], dim=1)
        return self.last(F.relu(a + b).flatten(1))


MODELS = {model.__name__: model for model in (Shuffled, Sliced, Steps, Halves)}


@pytest.mark.parametrize("shape", [None, SHAPE], ids=["sizes open", "sizes known"])
@pytest.mark.parametrize("name", MODELS)
def test_exports_exactly(name, shape):
    torch.manual_seed(2)
    images = images_for(SHAPE, 16)
    model = quantize(randomise_norms(MODELS[name](), images), Recipe(weights="esb3.1"), shape)
    calibrate(model, images)
    graph, converted = both(model.eval(), SHAPE)
    np.testing.assert_array_equal(graph, converted)
    assert len(np.unique(graph)) > 20


@pytest.mark.parametrize("name", MODELS)
def test_modules_compute_what_the_operators_did(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    traced = trace(model)
    replace_channel_moves(traced)
    traced.recompile()
    x = torch.randn(3, *SHAPE)
    assert torch.allclose(traced(x), model(x), rtol=1e-5, atol=1e-6)  # copies lie otherwise in memory: other kernels
    assert any(isinstance(module, SelectChannels) for module in traced.modules())
    moves = "chunk", "split", "getitem", "view", "transpose", "contiguous", "mix"
    assert not [node for node in traced.graph.nodes if getattr(node.target, "__name__", node.target) in moves]


def test_a_shuffle_and_the_split_behind_it_are_one_selection():
    layers = [node for node in quantize(Shuffled()).graph.nodes if node.target.__class__ is str and "channels" in node.target]
    selections = [quantize(Shuffled()).get_submodule(node.target).weight[:, :, 0, 0].argmax(dim=1).tolist() for node in layers]
    assert selections == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 4, 1, 5], [2, 6, 3, 7], [0, 4, 1, 5, 2, 6, 3, 7]]


def test_halves_run_on_the_engine():
    torch.manual_seed(3)
    graph = export(calibrated(Halves(), Recipe(), SHAPE), "halves", SHAPE)
    images = images_for(SHAPE, 4, 9)
    np.testing.assert_array_equal(Machine(compile_graph(graph, ENGINES["base16x16"], 4)).run(images), execute(graph, images))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_any_slice_of_any_shuffle(groups, each, data):
    channels = groups * each
    low = data.draw(st.integers(0, channels - 1))
    high, stride = data.draw(st.integers(low + 1, channels)), data.draw(st.integers(1, 3))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, channels, 1)
            self.after = nn.Conv2d(len(range(low, high, stride)), 2, 1)

        def forward(self, x):
            return self.after(shuffle(self.conv(x), groups)[:, low:high:stride])

    model = Model()
    traced = trace(model)
    replace_channel_moves(traced)
    traced.recompile()
    x = torch.randn(2, 3, 4, 6)
    assert torch.allclose(traced(x), model(x), rtol=1e-5, atol=1e-6)  # copies lie otherwise in memory: other kernels
    assert {type(m) for m in traced.modules()} <= {type(traced), nn.Module, nn.Conv2d, SelectChannels}
    quantize(model)


@pytest.mark.parametrize("moved, says", [
    (lambda x: x.flip(0), "flip: operator flip has"), (lambda x: x.transpose(2, 3), "transpose: operator transpose has"),
    (lambda x: x[:, 1:, 1:], "getitem: operator getitem has"), (lambda x: x[:2], "getitem: operator getitem has"),
    (lambda x: x.chunk(2, dim=2)[1], "chunk: operator chunk has"),
    (lambda x: x.reshape(x.size(0), 2, 12, -1), None)])
def test_other_moves_are_refused_by_name(moved, says):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = block(3, 4), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(moved(self.first(x)))

    if says is None:  # a view that does not keep pixels has a shape of its own: the next layer cannot read it
        with pytest.raises(GraphError, match="does not take images of shape"):
            export(quantize(Model()), "net", SHAPE)
        return
    with pytest.raises(GraphError, match=f"^{says} no integer form; (use Conv2d|only whole channels can be chosen), .*$"):
        quantize(Model())


def mixed(x):
    half = x.shape[1] // 2
    return torch.cat([x[:, half:], x[:, :half]], 1)


@pytest.mark.parametrize("rows", [lambda x: x.flatten(1), lambda x: x.reshape(x.size(0), -1), nn.Flatten(),
                                  lambda x: torch.flatten(shuffle(x, 2), 1)])
def test_chosen_channels_may_be_flattened_at_once(rows):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rows, self.last = block(3, 6), rows, nn.Linear(4 * SHAPE[1] * SHAPE[2], 5)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.rows(x[:, :4])) + self.last(self.rows(shuffle(x, 3)[:, 1:5]))

    model, images = Model(), images_for(SHAPE, 8)
    with torch.no_grad():
        expected = randomise_norms(model, images).eval()(torch.from_numpy(images) / 255).numpy()
    quantized = calibrate(quantize(model, Recipe(weights="s8", activations="u8")), images).eval()
    with torch.no_grad():
        assert distance(quantized(torch.from_numpy(images) / 255).numpy(), expected, 0) < 0.05


@pytest.mark.parametrize("shape", [None, SHAPE])
@pytest.mark.parametrize("call", [
    lambda x, y: (y := mixed(y)[:, 1:5], mixed(y) + y)[1],  # sizes of what was chosen, read after others have read it
    lambda x, y: mixed(torch.cat([y, x], 1))[:, :4], lambda x, y: mixed(F.adaptive_max_pool2d(y, 1))[:, :4],
    lambda x, y: mixed(y.amax((2, 3), keepdim=True))[:, :4], lambda x, y: mixed(F.leaky_relu(y, 0.1) - y)[:, :4]])
def test_channels_are_counted_through_other_layers(call, shape):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = block(3, 6), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(call(x, self.first(x)))

    model, images = Model(), images_for(SHAPE, 8)
    with torch.no_grad():
        expected = randomise_norms(model, images).eval()(torch.from_numpy(images) / 255).numpy()
    graph = export(calibrate(quantize(model, Recipe(weights="s8", activations="u8"), shape), images), "net", SHAPE)
    step = graph.output.scale
    assert distance(execute(graph, images) * step, expected, step) < 0.15


def test_what_asks_for_the_size_of_a_map_is_left_alone():
    """A squeeze is nothing to most maps, and a flatten to those of one pixel."""
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1).squeeze(-1).squeeze(-1))

    model, x = Model(), torch.randn(3, *SHAPE)
    for shape in (None, SHAPE):
        traced = trace(model, shape)
        replace_channel_moves(traced, shape)
        traced.recompile()
        assert torch.allclose(traced(x), model(x), rtol=1e-5, atol=1e-6)  # copies lie otherwise in memory: other kernels
        assert sum(node.target == "squeeze" for node in traced.graph.nodes) == 2


def test_rows_of_a_matrix_are_no_channels():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(F.relu(self.conv(x)).mean((2, 3)).chunk(2, 1)[0])

    with pytest.raises(GraphError, match=r"^chunk: operator chunk has no integer form"):
        quantize(Model())


def test_parts_are_counted_where_sizes_are_known():
    class Looped(Steps):
        def forward(self, x):
            parts = self.first(x).split(2, 1)
            last, *rest = parts
            for part, values in zip(self.parts, rest):
                last = part(values + last)
            return last if len(parts) == 4 else x

    images = torch.randn(3, *SHAPE)
    model = Looped().eval()
    assert torch.allclose(trace(model, SHAPE)(images), model(images), rtol=1e-5, atol=1e-6)
    quantize(model, shape=SHAPE)


def test_sizes_that_do_not_fit_say_so():
    with pytest.raises(GraphError, match=r"^the network does not take images of shape \(2, 9, 8\): .*$"):
        quantize(Shuffled(), shape=(2, 9, 8))
