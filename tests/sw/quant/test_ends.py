"""A softmax, sigmoid, ... behind the last layer is left to the host; anywhere else it is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.integer_module import integer_module
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.sw.exported_models import distance, images_for


class Classifier(nn.Module):
    def __init__(self, end, rows=True):
        super().__init__()
        self.first, self.last, self.end = nn.Conv2d(1, 4, 3), nn.Linear(4, 3) if rows else nn.Conv2d(4, 3, 1), end

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.end(self.last(x.mean((2, 3)) if isinstance(self.last, nn.Linear) else x))


@pytest.mark.parametrize("end, rows", [
    (nn.Softmax(dim=1), True), (nn.LogSoftmax(dim=-1), True), (lambda x: F.log_softmax(x, dim=1), True),
    (lambda x: F.softmax(F.dropout(x, training=False), -1), True), (lambda x: torch.log_softmax(x, 1), True),
    (lambda x: x.softmax(1), True), (lambda x: x.softmax(dim=1), False), (nn.Softmax(1), False),
    (torch.sigmoid, True), (nn.Sigmoid(), False), (lambda x: F.softmax(x, 1).squeeze(-1), True), (torch.tanh, True)])
def test_the_graph_ends_before_what_the_host_does(end, rows):
    model, images = Classifier(end, rows), images_for((1, 8, 8), 8)
    quantized = calibrate(quantize(model), images)
    graph = export(quantized, "net", (1, 8, 8))
    plain = export(calibrate(quantize(Classifier(nn.Identity(), rows)), images), "net", (1, 8, 8))
    assert graph.output.format == plain.output.format and graph.output.name == "last"
    (note,) = graph.info["notes"]
    assert note.endswith(" is left to the host: the largest value stays the largest")
    with torch.no_grad():
        answers = quantized.eval()(torch.from_numpy(images) / 255).numpy().argmax(1)
    assert np.array_equal(execute(graph, images).argmax(1).reshape(answers.shape), answers)


@pytest.mark.parametrize("end, sentence", [
    (lambda x: F.softmax(x, 0), r"^softmax: a softmax over axis 0 is not over the classes; take it out of the model"),
    (lambda x: F.relu(F.log_softmax(x, 1)), r"^log_softmax: operator log_softmax has no integer form; only behind the last layer"),
    (lambda x: F.log_softmax(x, 1) + x, r"^log_softmax: operator log_softmax has no integer form; only behind the last layer")])
def test_what_the_host_does_is_refused_elsewhere(end, sentence):
    images = images_for((1, 8, 8), 8)
    with pytest.raises(GraphError, match=sentence):
        export(calibrate(quantize(Classifier(end)), images), "net", (1, 8, 8))


def test_pixels_that_are_shuffled_at_the_end_are_those_of_the_graph():
    """As networks of super-resolution end (ESPCN)."""
    model = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2))
    images = images_for((1, 8, 8), 8)
    quantized = calibrate(quantize(model, Recipe(weights="s8", activations="u8")), images).eval()
    graph = export(quantized, "net", (1, 8, 8))
    assert graph.info["notes"] == ["_3 is left to the host: it moves the graph's output"]
    found = F.pixel_shuffle(torch.from_numpy(execute(graph, images) * graph.output.scale), 2).numpy()
    with torch.no_grad():
        assert distance(found, quantized(torch.from_numpy(images) / 255).numpy(), graph.output.scale) < 0.01


class Shuffles(nn.Module):
    """Pixels to channels at first, channels to pixels within."""

    def __init__(self):
        super().__init__()
        self.first, self.up, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x):
        return self.last(F.relu(self.up(self.first(F.pixel_unshuffle(x, 2)))))


def test_pixels_that_are_shuffled_within_are_the_hosts():
    """The ReLU becomes the layer's before it: nothing is stored with a sign."""
    images = images_for((1, 8, 8), 8)
    model = calibrate(quantize(Shuffles(), Recipe(weights="s8", activations="u8")), images).eval()
    graph = export(model, "net", (1, 8, 8))
    assert [(type(node).__name__, str(node.format)) for node in graph.nodes[1:4]] == [
        ("SpaceToDepth", str(graph.input.format)), ("Conv2d", "u8"), ("DepthToSpace", "u8")]
    found = execute(graph, images) * graph.output.scale
    with torch.no_grad():
        assert distance(found, model(torch.from_numpy(images) / 255).numpy(), graph.output.scale) < 0.01
    assert np.array_equal(integer_module(model, (1, 8, 8))(torch.from_numpy(images)).numpy(), execute(graph, images))


def test_an_argmax_at_the_end_is_that_of_the_graph():
    model, images = Classifier(lambda x: x.argmax(dim=1)), images_for((1, 8, 8), 8)
    quantized = calibrate(quantize(model), images)
    answers = quantized.eval()(torch.from_numpy(images) / 255).numpy()
    assert np.array_equal(execute(export(quantized, "net", (1, 8, 8)), images).reshape(8, 3).argmax(1), answers)


def test_a_softmax_over_an_axis_that_is_not_said_is_that_of_torch():
    images = images_for((1, 8, 8), 8)
    with pytest.warns(UserWarning, match="Implicit dimension choice"):
        export(calibrate(quantize(Classifier(nn.Softmax())), images), "net", (1, 8, 8))
