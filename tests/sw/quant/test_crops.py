"""Parts of maps and sequences, and zeros as channels: from torch and from ONNX to the engine's program."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.networks.resnet20 import ResNet20
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.compiler.machine import Machine
from tests.sw.exported_models import distance, images_for
from tests.sw.interchange.models import Model, compare, imported, random_pixels, real, run_onnxruntime

FINE = Recipe(weights="s8", activations="u8")
MAP, SEQUENCE = (1, 12, 10), (1, 20)


class Cropped(nn.Module):
    """`call` of the rectified output of a layer and of another layer, between two convolutions or before a linear layer."""

    def __init__(self, call, shape, rows=False):
        super().__init__()
        conv, lazy = (nn.Conv2d, nn.LazyConv2d) if len(shape) == 3 else (nn.Conv1d, nn.LazyConv1d)
        self.first, self.other, self.call = conv(1, 4, 3, padding=1), conv(4, 4, 3, padding=1), call
        self.last = nn.LazyLinear(3) if rows else lazy(3, 1)

    def forward(self, x):
        return self.last(self.call(F.relu(self.first(x)), self.other))


def chomp(x, other):
    """As temporal networks are causal: what a padded convolution has too much at its end is taken off."""
    return F.relu(other(F.pad(x, (2, 2)))[:, :, :-4] + x)


MAPS = [
    lambda x, other: x[:, :, 1:-2, 2:], lambda x, other: other(x[..., 1:-1]), lambda x, other: x[:, :, 3:4],
    lambda x, other: torch.cat([x[:, :, 2:-2, 2:-2], F.relu(other(x))[:, :, 2:-2, 2:-2]], 1),
    lambda x, other: other(x)[:, :, :, 1:] + x[:, :, :, :-1], lambda x, other: x[:, :, 1::3, ::2],
    lambda x, other: F.max_pool2d(x[:, :, 1:, 1:], 2), lambda x, other: x[:, :, 1:x.size(2) - 1],
    lambda x, other: x[:, :, 5:6, 7:8], lambda x, other: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 1)),
    lambda x, other: x[:, :, :], lambda x, other: other(x)[:, :, 2:, :]]
SEQUENCES = [chomp, lambda x, other: x[:, :, ::2], lambda x, other: x[:, :, 1:x.shape[-1] - 1], lambda x, other: x[..., 3:9],
             lambda x, other: F.pad(x, (0, 0, 1, 1))]
ROWS = [(lambda x, other: x[:, :, -1], SEQUENCE), (lambda x, other: other(x)[:, :, 2, 3], MAP),
        (lambda x, other: x[:, :, 4].flatten(1), MAP)]
CASES = [(call, MAP, False) for call in MAPS] + [(call, SEQUENCE, False) for call in SEQUENCES] \
    + [(call, shape, True) for call, shape in ROWS]


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("call, shape, rows", CASES)
def test_a_part_of_a_map_is_the_same_in_torch_graph_and_program(call, shape, rows, sized):
    model, images = Cropped(call, shape, rows).eval(), images_for(shape, 8)
    with torch.no_grad():
        expected = model(torch.from_numpy(images) / 255).numpy()
    quantized = calibrate(quantize(model, FINE, shape if sized else None), images)
    graph = export(quantized, "net", shape)
    found = execute(graph, images)
    step = graph.output.scale
    # Where the network is one layer deep, a step here and there; random weights may cancel.
    assert distance(found.reshape(expected.shape) * step, expected, step) < 0.15
    with torch.no_grad():
        fake = quantized.eval()(torch.from_numpy(images) / 255).numpy()
    assert distance(found.reshape(expected.shape) * step, fake, step) < 0.02
    assert np.array_equal(IntegerModule(graph)(torch.from_numpy(images)).numpy(), found)
    program = compile_graph(graph, ENGINES["base16x16"], 2)
    assert np.array_equal(Machine(program).run(images[:2].reshape(2, *graph.input.shape)), found[:2])


@pytest.mark.parametrize("call, shape, rows, sentence", [
    (lambda x, other: x[:, :, :, 3].flatten(1), MAP, True, r"^getitem: what it takes of a map of shape \(4, 12, 10\) has no "
                                                            "integer form; only rectangles of pixels have"),
    (lambda x, other: x.flatten(1)[..., 3:8], SEQUENCE, True, r"^getitem: a choice of features has no integer form"),
    (lambda x, other: x[:, 1:3, 2:], MAP, False, r"^getitem: operator getitem has no integer form; only whole channels"),
    (lambda x, other: x[:, :, x.argmax()], MAP, False, r"^(getitem|argmax): operator \w+ has no integer form"),
    (lambda x, other: x[:, :, [1, 3]], MAP, False, r"^getitem: operator getitem has no integer form"),
    (lambda x, other: x[1:], MAP, False, r"^getitem: operator getitem has no integer form"),
    (lambda x, other: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0), MAP, False, r"^pad: padding by 1.0 has no integer form"),
    (lambda x, other: F.pad(x, (0, 0, 0, 0, -1, 1)), MAP, False, r"^pad: padding \(0, 0, 0, 0, -1, 1\) has no integer form"),
])
def test_other_parts_are_refused_by_name(call, shape, rows, sentence):
    images, model = images_for(shape, 8), Cropped(call, shape, rows)
    if rows:
        model(torch.zeros(2, *shape))
    else:
        model.last = nn.Conv2d(4, 3, 1)
    with pytest.raises(GraphError, match=sentence):
        export(calibrate(quantize(model, FINE), images), "net", shape)


class Block(nn.Module):
    """As the public code of CIFAR's ResNets writes it: the shortcut takes every second pixel and pads channels by zeros."""

    def __init__(self, channels, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.pads = (0, 0, 0, 0, planes // 4, planes // 4) if stride > 1 else None

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += F.pad(x[:, :, ::2, ::2], self.pads, "constant", 0) if self.pads else x
        return F.relu(out)


class PublicResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, planes in enumerate((16, 32, 64)):
            blocks = [Block(planes // 2 if i and not j else planes, planes, 2 if i and not j else 1) for j in range(3)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


def test_the_public_code_of_resnet20_gives_the_integers_of_ours():
    ours, public, images = ResNet20(), PublicResNet20(), images_for((3, 32, 32), 8)
    state = {name: value for name, value in ours.state_dict().items() if "shortcut" not in name}
    public.load_state_dict(state)
    outputs = []
    for model in (ours, public):
        graph = export(calibrate(quantize(model, Recipe(residual_activations="u8")), images), "net", (3, 32, 32))
        outputs.append(execute(graph, images))
    assert np.array_equal(*outputs) and outputs[0].std() > 0


@pytest.mark.parametrize("size", [lambda x: x.size()[3], lambda x: x.size()[2:], lambda x: x.shape[-2:],
                                  lambda x: (x.size(2), x.size(3))])
@pytest.mark.parametrize("pool", [F.avg_pool2d, F.max_pool2d])
def test_a_pool_may_be_as_large_as_the_size_that_it_asks_for(pool, size):
    model = nn.ModuleList([nn.Conv2d(1, 4, 3), nn.Linear(4, 2)])

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            x = F.relu(self.layers[0](x))
            return self.layers[1](pool(x, size(x)).flatten(1))

    images = images_for((1, 8, 8), 8)
    graph = export(calibrate(quantize(Pooled(), FINE), images), "net", (1, 8, 8))
    assert [node.shape for node in graph.nodes][-2:] == [(4, 1, 1), (2, 1, 1)]


# -- ONNX -------------------------------------------------------------------------------------------------------------
def sliced(x, m, axes, starts, ends, steps=None):
    given = [np.int64(values) for values in (starts, ends, axes, steps or [1] * len(axes))]
    return m.add("Slice", x, *given)


@pytest.mark.parametrize("shape, move", [
    ((3, 9, 8), lambda m, x: sliced(x, m, [2, 3], [1, 0], [-2, 7])),
    ((3, 9, 8), lambda m, x: sliced(x, m, [2, 3], [0, 1], [99, 99], [2, 3])),
    ((3, 9, 8), lambda m, x: sliced(sliced(x, m, [2], [3], [6]), m, [3], [5], [6])),
    ((3, 9, 8), lambda m, x: m.add("Gather", m.add("Gather", x, np.int64(4), axis=2), np.int64(-1), axis=2)),
    ((3, 20), lambda m, x: sliced(x, m, [2], [0], [-4])), ((3, 20), lambda m, x: m.add("Gather", x, np.int64(-1), axis=2)),
    ((3, 20), lambda m, x: sliced(x, m, [-1], [1], [99], [2]))])
@pytest.mark.parametrize("behind_a_layer", [False, True])
def test_slices_of_pixels_are_imported(shape, move, behind_a_layer):
    random = np.random.default_rng(3)
    m = Model(("n", *shape))
    x = m.qdq("image", 1 / 255, np.uint8(0))
    if behind_a_layer:
        weights = m.add("DequantizeLinear", random.integers(-90, 90, (5, 3, *[1] * (len(shape) - 1))).astype(np.int8),
                        np.float32(0.004), np.int8(0))
        x = m.add("Conv", x, weights)
    output = m.qdq(move(m, x), 1 / 100, np.int8(0))
    proto, pixels = m.proto(output), random_pixels(random, 8, *shape)
    graph = imported(proto)
    expected = run_onnxruntime(proto, real(pixels))
    step, share = compare(graph, pixels, expected)
    assert step <= 1 and share < 0.02 and np.ptp(expected) > 0.2


def test_other_slices_of_pixels_are_refused():
    m = Model(("n", 3, 9, 8))
    x = sliced(m.qdq("image", 1 / 255, np.uint8(0)), m, [2], [8], [0], [-1])
    weights = m.add("DequantizeLinear", np.ones((2, 3, 1, 1), np.int8), np.float32(0.1), np.int8(0))
    with pytest.raises(GraphError, match=r"^Slice node 'slice3': what it makes of a map of shape \(3, 9, 8\) has no integer form"):
        imported(m.proto(m.qdq(m.add("Conv", x, weights), 0.1, np.int8(0))))
