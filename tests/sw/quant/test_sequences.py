"""Models of sequences (n, channels, length) and of rows (n, features): maps of one row, or of one pixel, in the graph."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training import loop
from esbflow.training.loop import Schedule, calibrate, evaluate, train
from esbflow.training.post_training import post_train
from tests.compiler.machine import Machine
from tests.sw.exported_models import calibrated, distance, images_for, randomise_norms

FINE = Recipe(weights="s8", activations="u8")


class Sequence(nn.Module):
    """As networks of radio signals and of speech are built."""

    shape = (2, 48)

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(2, 8, 5, padding=2), nn.Conv1d(8, 8, 3, 2, 2, 2, groups=2, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.pool, self.mean = nn.MaxPool1d(2), nn.AvgPool1d(3, 2, 1)
        self.fc1, self.norm3, self.fc2 = nn.Linear(8 * 6, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)

    def forward(self, x):
        x = self.pool(F.relu(self.norm1(self.conv1(x))))
        x = self.mean(F.relu(self.norm2(self.conv2(x)))).flatten(1)
        return self.fc2(F.relu(self.norm3(self.fc1(x))))


CLOSE = 1e-5
"""Relative: float32 sums of a few hundred terms, in two orders, through three layers."""


class Plane(nn.Module):
    """The same network on maps of one row, with the same parameters."""

    def __init__(self, model):
        super().__init__()
        model = copy.deepcopy(model)
        self.conv1, self.conv2 = (self.convolution(conv) for conv in (model.conv1, model.conv2))
        self.norm1, self.norm2 = (self.norm(norm) for norm in (model.norm1, model.norm2))
        self.pool, self.mean = nn.MaxPool2d((1, 2)), nn.AvgPool2d((1, 3), (1, 2), (0, 1))
        self.fc1, self.norm3, self.fc2 = model.fc1, model.norm3, model.fc2

    forward = Sequence.forward

    @staticmethod
    def convolution(conv):
        flat = nn.Conv2d(conv.in_channels, conv.out_channels, (1, *conv.kernel_size), (1, *conv.stride), (0, *conv.padding),
                         (1, *conv.dilation), conv.groups, conv.bias is not None)
        flat.weight.data = conv.weight.data.unsqueeze(2)
        flat.bias = conv.bias
        return flat

    @staticmethod
    def norm(norm):
        flat = nn.BatchNorm2d(norm.num_features)
        flat.load_state_dict(norm.state_dict())
        return flat


@pytest.mark.parametrize("weights", [
    "esb4.1", "ul2q:3", "vecq:2", "lqnets:2", "sq:twn", "srq:4", "alq:2,kernel", "alq:2,pixel", "alq:2,channel", "pq:16,3",
    "binary", "twn", "dorefa:2", "uniform:4", "lsq:s4", "pot:3", "apot:4"])
def test_every_method_gives_the_graph_of_the_same_network_on_maps(weights):
    recipe, model = Recipe(weights=weights, first_weights=weights), randomise_norms(Sequence(), images_for((2, 48), 16))
    flat, sequences = Plane(model), images_for((2, 48), 16)
    graphs = []
    for network, images in ((model, sequences), (flat, sequences[:, :, None])):
        torch.manual_seed(0)
        quantized = calibrate(quantize(network, recipe), images)
        graphs.append(export(quantized, "net", images.shape[1:]))
    assert len(graphs[0].nodes) == len(graphs[1].nodes)
    for one, other in zip(*(graph.nodes for graph in graphs)):
        assert (one.name, one.shape, one.format) == (other.name, other.shape, other.format)
        assert one.scale == pytest.approx(other.scale, rel=CLOSE)  # each has kernels of its own, which round differently
        if getattr(one, "weight", None) is not None:
            assert np.array_equal(one.weight, other.weight)
        if getattr(one, "requantizer", None) is not None:
            same_steps(one.requantizer, other.requantizer)
    assert np.array_equal(execute(graphs[0], sequences), execute(graphs[0], sequences[:, :, None]))


def same_steps(one, other):
    """m, n and b over 2**s are the same real numbers, but for their own rounding to integers."""
    for name in "mnb":
        a, b = (getattr(q, name) / 2.0 ** q.s for q in (one, other))
        unit = 2.0 ** -np.minimum(one.s, other.s).astype(float)
        assert (np.abs(a - b) <= CLOSE * np.abs(a).max(initial=0) + unit).all()


def test_sequences_train_resume_and_are_evaluated(tmp_path, killed_after):
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 256)
    sequences = random.integers(0, 60, (256, 2, 48), dtype=np.uint8)
    for sequence, label in zip(sequences, labels):
        sequence[label % 2, label // 2 * 24:label // 2 * 24 + 24] += 90
    schedule = Schedule(epochs=4, batch=32, rate=0.05, sharpness=0.05)
    model = train(Sequence(), sequences, labels, Schedule(epochs=3, batch=32, rate=0.05))
    low = quantize(copy.deepcopy(model), Recipe())
    whole = train(copy.deepcopy(low), sequences, labels, schedule, precision="bfloat16")
    with killed_after(2):
        train(copy.deepcopy(low), sequences, labels, schedule, precision="bfloat16", checkpoint=tmp_path / "state")
    again = train(copy.deepcopy(low), sequences, labels, schedule, precision="bfloat16", checkpoint=tmp_path / "state")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert evaluate(whole, sequences, labels) > 95
    answers = execute(export(whole, "net", (2, 48)), sequences).reshape(256, -1).argmax(1)
    assert (answers == labels).mean() > 0.95
    with pytest.raises(ValueError, match=r"^only images \(n, c, h, w\) can be moved and turned, not \(32, 2, 48\); use shift=0"):
        train(model, sequences, labels, Schedule(batch=32, shift=1))


def test_sequences_are_quantized_without_training():
    model, sequences = randomise_norms(Sequence(), images_for((2, 48), 64)).eval(), images_for((2, 48), 64)
    quantized = post_train(model, FINE, sequences)
    integers = execute(graph := export(quantized, "net", (2, 48)), sequences).reshape(64, -1)
    with torch.no_grad():
        real = model(torch.from_numpy(sequences) / 255).numpy()
    assert distance(integers * graph.output.scale, real, graph.output.scale) < 0.05


def rows_model():
    return nn.Sequential(nn.Linear(40, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))


def test_rows_of_features_run_through_graph_and_program():
    rows = images_for((40,), 12)
    quantized = calibrated(rows_model(), FINE, (40,))
    graph = export(quantized, "net", (40,))
    assert graph.input.shape == (40, 1, 1)
    integers = execute(graph, rows)
    assert np.array_equal(IntegerModule(graph)(torch.from_numpy(rows)).numpy(), integers)
    with torch.no_grad():
        fake = quantized(torch.from_numpy(rows) / 255).numpy()
    assert distance(integers.reshape(12, 2) * graph.output.scale, fake, graph.output.scale) < 0.05
    program = compile_graph(graph, ENGINES["base16x16"], 4)
    assert np.array_equal(Machine(program).run(rows[:4, :, None, None]), integers[:4])


@pytest.mark.parametrize("length", [64, 128, 1000])
def test_a_pool_over_a_long_sequence_runs(length):
    model = nn.Sequential(nn.Conv1d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))
    graph = export(calibrated(model, FINE, (1, length)), "net", (1, length))
    sequences = images_for((1, length), 2)
    assert np.array_equal(Machine(compile_graph(graph, ENGINES["base16x16"], 2)).run(sequences[:, :, None]),
                          execute(graph, sequences))


def test_what_only_a_size_is_read_of_is_left_out():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 2, 1)

        def forward(self, x):
            x = self.first(x)
            moved = x.view(x.size(0), 2, -1, x.size(2)).transpose(1, 2).flatten(1, 2)
            return self.last(F.interpolate(F.relu(x), size=moved.shape[2:]))

    sequences = images_for((2, 20), 8)
    graph = export(calibrate(quantize(Model(), FINE), sequences), "net", (2, 20))
    assert graph.output.shape == (2, 1, 18)


class Shaped(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.first, self.last, self.call = nn.Conv1d(2, 4, 3), nn.LazyLinear(3), forward

    def forward(self, x):
        return self.last(self.call(F.relu(self.first(x))))


@pytest.mark.parametrize("call, sentence", [
    (lambda x: F.max_pool1d(F.pad(x, (1, 0, 1, 0)), 2).flatten(1), r"^pad: it pads the channels of a sequence, which has no integer form"),
    (lambda x: x.mean(1), r"^mean: a mean has an integer form only over the length of a sequence, dim=2"),
    (lambda x: x[:, 1:3, 1:5].flatten(1), r"^getitem: operator getitem has no integer form; only whole channels"),
    (lambda x: x.transpose(1, 2).flatten(1), r"^transpose: operator transpose has no integer form"),
    (lambda x: F.max_pool1d(x, 2, 1, 0, 2).flatten(1), r"^max_pool1d: a dilated max pool has no integer form; use dilation 1"),
    (lambda x: F.adaptive_avg_pool1d(x, 5).flatten(1), r"adaptive pooling from 1x18 to 1x5 has no integer form"),
    (lambda x: F.interpolate(x, scale_factor=2, mode="linear").flatten(1), r"upsampling with mode 'linear' has no integer form"),
    (lambda x: x, r"^last: a linear layer along the last axis of \(4, 18\) has no integer form; flatten before it"),
])
def test_what_sequences_have_not_is_refused_by_name(call, sentence):
    model, sequences = Shaped(call), images_for((2, 20), 8)
    model(torch.zeros(2, 2, 20))
    with pytest.raises(GraphError, match=sentence):
        export(calibrate(quantize(model, FINE), sequences), "net", (2, 20))


def test_channels_of_a_sequence_may_be_chosen_first_of_all():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv1d(2, 3, 3)

        def forward(self, x):
            return self.body(x[:, 1:])

    sequences = images_for((3, 20), 8)
    quantized = copy.deepcopy(quantize(Chosen(), FINE, (3, 20)))  # the copy's modules are in the order of the calls
    graph = export(calibrate(quantized, sequences), "net", (3, 20))
    assert execute(graph, sequences).shape == (8, 3, 1, 18)


def test_images_of_another_shape_are_refused():
    graph = export(calibrated(Sequence(), Recipe(), (2, 48)), "net", (2, 48))
    for shape in ((3, 48, 2), (3, 96), (3, 2, 48, 1), (3, 1, 2, 1, 48), (3,)):
        with pytest.raises(GraphError, match=r"^images must have shape \(n, 2, 1, 48\), not \(3"):
            execute(graph, np.zeros(shape, np.uint8))
    with pytest.raises(GraphError, match=r"^the network does not take images of shape \(2, 1, 48\)"):
        export(calibrated(Sequence(), Recipe(), (2, 48)), "net", (2, 1, 48))
    with pytest.raises(ValueError, match=r"^images must be uint8 of shape \(n, channels, height, width\), not float32"):
        loop.normalise(np.zeros((3, 2, 48), np.float32), (0,), (1,))
    for use in (lambda images: train(Sequence(), images, np.zeros(3, int), Schedule()),
                lambda images: calibrate(quantize(Sequence()), images),
                lambda images: evaluate(Sequence(), images, np.zeros(3, int))):
        with pytest.raises(ValueError, match=r"^images must be uint8 of shape \(n, channels, length\), not uint8 \(3, 2, 1, 48\)$"):
            use(np.zeros((3, 2, 1, 48), np.uint8))
