"""Concatenations: one rule for the common format and scale, and both front doors that follow it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.lowering.joined import common
from esbflow.numbers import Format, Signed, Unsigned
from esbflow.quant.export import export
from esbflow.quant.recipe import Recipe
from tests.sw.exported_models import both, calibrated, distance, images_for
from tests.sw.interchange.models import Model, imported

SHAPE = (3, 9, 8)
FORMATS = [Format.parse(text) for text in ("u1", "u2", "u4", "u8", "s2", "s4", "s8", "esb4.1", "uesb4.2")]
PARTS = st.lists(st.tuples(st.sampled_from(FORMATS), st.floats(1e-4, 1e3)), min_size=2, max_size=4)


# -- the rule -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parts, form, scale", [
    ([(Unsigned(4), 0.3), (Unsigned(4), 0.3)], "u4", 0.3), ([(Signed(4), 0.3), (Signed(8), 0.3)], "s8", 0.3),
    ([(Unsigned(4), 0.1), (Unsigned(4), 0.3)], "u6", 0.1), ([(Signed(4), 1.0), (Unsigned(4), 0.3)], "s8", 0.1),
    ([(Unsigned(8), 1.0), (Signed(8), 1.0)], "s8", 255 / 127), ([(Signed(8), 1.0), (Signed(4), 100.0)], "s8", 100 / 16),
    ([(Format.parse("esb4.1"), 0.5), (Format.parse("uesb4.2"), 0.5)], "s6", 0.5), ([(Signed(16), 1.0), (Unsigned(8), 7.0)], "s16", 1.0)])
def test_the_common_format_by_hand(parts, form, scale):
    for order in itertools.permutations([*parts, parts[0]]):
        found, step = common(list(order))
        assert str(found) == form and step == pytest.approx(scale)


@given(PARTS)
def test_every_level_is_there_to_half_a_step_of_eight_bits(parts):
    form, step = common(parts)
    assert form.bits <= 8 and (form.min < 0) == any(part.min < 0 for part, _ in parts)
    reach, exact = max(scale * max(part.max, -part.min * 127 / 128) for part, scale in parts), True
    for part, scale in parts:
        levels = part.levels * scale
        away = np.abs(form.nearest(levels / step) * step - levels).max()
        assert away <= step / 2 * (1 + 1e-9)
        exact &= away <= 1e-3 * step
    assert exact or (form.bits == 8 and step < 2 * reach / form.max)


@given(PARTS, st.integers(1, 60), st.floats(1e-3, 10))
def test_what_a_step_of_eight_bits_holds_is_exact(parts, largest, unit):
    """Scales that are whole numbers of some unit: no level is lost if s8, or u8, reaches them in that unit."""
    parts = [(form, unit * (1 + int(scale) % largest)) for form, scale in parts]
    low, high = (round(end(scale * getattr(part, name) for part, scale in parts) / unit)
                 for end, name in ((min, "min"), (max, "max")))
    form, step = common(parts)
    if low >= -128 and high <= (127 if low < 0 else 255):
        for part, scale in parts:
            levels = part.levels * scale
            np.testing.assert_allclose(form.nearest(levels / step) * step, levels, atol=1e-4 * unit)


# -- torch --------------------------------------------------------------------------------------------------------
class Branches(nn.Module):
    """Convolutions of other ranges, rectified or not, side by side."""

    def __init__(self, signs, ranges=(1, 1, 1)):
        super().__init__()
        self.signs, self.last = signs, nn.Conv2d(6 * len(signs), 8, 3)
        self.branches = nn.ModuleList(nn.Conv2d(3, 6, 3) for _ in signs)
        with torch.no_grad():
            for branch, size in zip(self.branches, ranges):
                branch.weight.mul_(size), branch.bias.mul_(size)

    def forward(self, x):
        return self.last(torch.cat([branch(x) if signed else branch(x).relu()
                                    for signed, branch in zip(self.signs, self.branches)], 1))


def away(model, graph) -> float:
    """How far the graph is from fake quantization."""
    images = images_for(SHAPE, 12, 5)
    with torch.no_grad():
        fake = model(torch.from_numpy(images).float() / 255).numpy()
    return distance(execute(graph, images) * graph.output.scale, fake, graph.output.scale)


def joined_by_halves_of_steps(graph) -> int:
    """How many tensors are rounded again before a concatenation; each is there to half a step of the concatenation."""
    tensors, found = execute(graph, images_for(SHAPE, 12, 5), keep=True), 0
    for node in graph.nodes:
        if type(node) is ir.Requantize:
            before, half = tensors[node.inputs[0]] * graph[node.inputs[0]].scale, node.scale / 2
            assert np.abs(tensors[node.name] * node.scale - before).max() <= half * 1.06, "m has 12 bits"
            found += 1
    return found


@pytest.mark.parametrize("unsigned, signed", [
    ("u4", "s8"), ("u4", "s4"), ("u8", "s4"), ("u8", "s3"), ("u2", "s2"), ("u8", "s8"), ("uesb4.2", "s4"), ("u4", "esb4.1")])
@pytest.mark.parametrize("signs, ranges", [((0, 1), (1, 1)), ((0, 1), (0.3, 1)), ((1, 0, 0), (1, 1, 2)), ((0, 0), (1, 3))])
def test_joined_branches_stay_as_near_to_fake_quantization_as_eight_bits_do(unsigned, signed, signs, ranges):
    torch.manual_seed(0)
    model = calibrated(Branches(signs, ranges), Recipe(weights="s8", activations=unsigned, signed_activations=signed), SHAPE)
    graph = export(model, "net", SHAPE)
    concat = next(node for node in graph.nodes if isinstance(node, ir.Concat))
    assert np.array_equal(*both(model, SHAPE))
    stored = {str(graph[node.inputs[0]].format if type(node) is ir.Requantize else node.format)
              for node in map(graph.__getitem__, concat.inputs)}
    assert stored == {signed if sign else unsigned for sign in signs}, "first as fake quantization has it"
    assert concat.format.bits == 8 and joined_by_halves_of_steps(graph) >= 1
    # Where the rectified branch was rounded to the signed one's few bits it was 0.05 to 0.1. With levels as far apart as
    # those of two bits and of esb4.1 one value near a tie moves the result as much.
    assert away(model, graph) < (0.03 if "2" not in signed and "esb" not in signed else 0.06)


class Ranges(nn.Module):
    """Two concatenations that share `b`; one has a branch of a thousandfold range."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.large = (nn.Conv2d(3, 4, 1) for _ in range(3))
        self.first, self.second = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.large.weight.mul_(1000)

    def forward(self, x):
        a, b = self.a(x).relu(), self.b(x)
        return self.first(torch.cat([a, b], 1)) + 0.001 * self.second(torch.cat([b, self.large(x)], 1))


def test_a_large_branch_does_not_widen_the_step_of_another_concatenation():
    torch.manual_seed(0)
    model = calibrated(Ranges(), Recipe(weights="s8"), SHAPE)
    concats = [node for node in export(model, "net", SHAPE).nodes if isinstance(node, ir.Concat)]
    assert len(concats) == 2 and max(node.scale for node in concats) > 100 * min(node.scale for node in concats)


class Dense(nn.Module):
    """Each layer reads all before it, by concatenations of concatenations."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 1) for i in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return torch.max_pool2d(x, 2)[:, 1:]


def test_a_dense_block_requantizes_each_tensor_once():
    torch.manual_seed(0)
    model = calibrated(nn.Sequential(Dense(), nn.Conv2d(18, 3, 1)), Recipe(weights="s8"), SHAPE)
    graph = export(model, "net", SHAPE)
    concats = [node for node in graph.nodes if isinstance(node, ir.Concat)]
    assert [len(node.inputs) for node in concats] == [2, 3, 4, 5]
    for before, node in itertools.pairwise(concats):
        if before.scale == node.scale:
            assert set(before.inputs) < set(node.inputs)
    requantized = [node.inputs[0] for node in graph.nodes if type(node) is ir.Requantize]
    assert len(requantized) <= 5 + 2 and joined_by_halves_of_steps(graph) and away(model, graph) < 0.05


# -- ONNX ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parts", [((4, 0.3, False), (8, 0.11, True)), ((8, 0.3, False), (3, 0.7, True)),
                                   ((4, 0.3, False), (4, 0.17, False), (4, 0.5, True))])
def test_the_import_has_the_same_rule(parts):
    random, m = np.random.default_rng(20), Model((1, 3, 6, 6))
    image, tensors = m.quant("image", 2**-5, 8), []
    for bits, scale, signed in parts:
        x = m.add("Conv", image, m.quant(random.normal(size=(4, 3, 3, 3)), 2**-2, 4))
        tensors.append(m.quant(x if signed else m.add("Relu", x), scale, bits, signed=signed))
    output = imported(m.proto(m.add("Concat", *tensors, axis=1))).output
    form, scale = common([((Signed if signed else Unsigned)(bits), scale) for bits, scale, signed in parts])
    assert output.format == form and output.scale == pytest.approx(scale)
