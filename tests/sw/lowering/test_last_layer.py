"""How a last layer is stored: the finest step that fits, and a bound of what rounding does to it that no input exceeds."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.cli import main
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.graph.file import save
from esbflow.lowering.engine_layer import OpenLayer
from esbflow.lowering.last_layer import last_format, rounding_error
from esbflow.lowering.nodes import Stored
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.export import export
from esbflow.quant.recipe import Recipe
from tests.compiler.machine import Machine
from tests.sw.exported_models import both, calibrated, images_for, randomise_norms
from tests.sw.interchange.models import Model, imported
from tests.sw.random_models import RandomModel

SHAPE = (3, 9, 8)


# -- by hand ------------------------------------------------------------------------------------------------------
def layer_of(weight, gain, offset, source=Unsigned(2), residual=None, residual_gain=None, rectified=False, limit=None) -> OpenLayer:
    """A linear layer of a row of weights a channel, perhaps clipped at zero and at a limit."""
    weight = np.array(weight)
    return OpenLayer(ir.Linear, "l", Stored("x", (weight.shape[1], 1, 1), source, 0.5),
                     dict(weight=weight, weight_format=Signed(8), weight_scale=np.ones(len(weight))), np.array(gain, float),
                     np.array(offset, float), residual, residual_gain,
                     0.0 if rectified else -np.inf, limit or np.inf)


@pytest.mark.parametrize("bits, rectified, form, scale", [
    (None, False, "s16", 2**-11), (16, False, "s16", 2**-11), (32, False, "s32", 2**-11), (None, True, "u16", 2**-11)])
def test_the_step_is_the_finest_that_m_allows(bits, rectified, form, scale):
    """Sums of 0..12 in steps of 2**-10 of the largest gain, 0.5: 12 * 1024 fits 16 bits."""
    found = last_format(layer_of([(1, 3), (1, 0)], [0.5, 0.001], [0.25, -0.25], rectified=rectified), bits)
    assert (str(found[0]), found[1]) == (form, scale)


@pytest.mark.parametrize("weight, offset, bits, form, scale", [
    ((100, 27), 0.0, None, "s32", 2**-10), ((100, 27), 0.0, 16, "s16", 2**-6),  # 381 steps of 2**-6 are 24,384
    ((100, 27), 100_000.0, 16, "s16", 4.0), ((100, 27), 100_000.0, None, "s32", 2**-10),  # 100,381 / 32,767 is 3.06
    ((-127, -127), 0.0, 16, "s16", 2**-5), ((1, 1), 2.0**40, None, "s32", 2.0**10), ((0, 0), 3.0, 16, "s16", 3 / 32767 / 0.999),
    ((0, 0), 0.0, 16, "s16", 1 / 32767)])
def test_the_step_is_no_finer_than_the_bits_hold(weight, offset, bits, form, scale):
    found = last_format(layer_of([weight], [1.0], [offset]), bits)
    assert str(found[0]) == form and found[1] == pytest.approx(scale)


def test_a_channel_without_weights_does_not_decide():
    """Its gain may be anything: its sums are zero."""
    layer = layer_of([(1, 1), (0, 0)], [2.0**-10, 1e6], [0.0, 1.0])
    form, scale = last_format(layer)
    q = layer.closed(form, scale, "l")["requantizer"]
    assert scale == 2.0**-20 and q.m[1] == 0 and np.ldexp(q.b[1], -q.s[1]) * scale == 1.0


@pytest.mark.parametrize("gain, limit, form", [
    (0.001, 6.0, Unsigned(23)), (0.5, 6.0, Unsigned(14)), (0.5, 0.25, Unsigned(10)), (1e6, 1.0, Unsigned(1)), (0.0, 6.0, Unsigned(32))])
def test_an_output_that_clips_has_its_limit_as_largest_level(gain, limit, form):
    """As many bits as the factor from acc to levels, gain / scale, has room for in m (2047); 0.5 * 16383 / 6 = 1365."""
    for bits in (None, 16):
        found, scale = last_format(layer_of([(1, 3)], [gain], [0.0], rectified=True, limit=limit), bits)
        assert found == Unsigned(min(form.bits, bits or 32)) and scale == pytest.approx(limit / found.max)


@pytest.mark.parametrize("weight, gain, offset", [
    ([(1, 3), (-2, 5)], [0.5, 0.013], [0.5, -0.1]), ([(-1, 2), (7, 7)], [0.37, 0.21], [-1.0, 3.0]),
    ([(-1, -1), (0, 0)], [0.3, 0.9], [2.0, 0.3]), ([(0, 0), (1, -1)], [1.0, 1e-5], [0.25, 1000.0])])
@pytest.mark.parametrize("residual", [None, Signed(3)])
@pytest.mark.parametrize("bits, rectified, limit", [(None, False, None), (16, False, None), (16, True, None), (None, True, 0.6)])
def test_no_input_goes_beyond_the_error_bound_or_the_format(weight, gain, offset, residual, bits, rectified, limit):
    other = Stored("r", (2, 1, 1), residual, 0.25) if residual else None
    layer = layer_of(weight, gain, offset, Signed(2), other, np.array([0.25, -0.07]) if residual else None, rectified, limit)
    form, scale = last_format(layer, bits)
    node = ir.Linear(name="l", shape=(2, 1, 1), format=form, scale=scale, **layer.closed(form, scale, "l"))
    bound, q, largest, away = rounding_error(layer, node), node.requantizer, np.zeros(2), np.zeros(2)
    for *x, r in itertools.product(*[Signed(2).levels] * 2, residual.levels if residual else [0]):
        y = layer.gain * (np.array(weight) @ x) + layer.offset + (layer.residual_gain * r if residual else 0)
        y = np.clip(y, 0 if rectified else -np.inf, limit or np.inf)
        t = (node.weight @ x) * q.m + (q.n * r if residual else 0) + q.b
        away = np.maximum(away, np.abs(form.round_shift(t, q.s) * scale - y))
        largest = np.maximum(largest, np.abs(y))
        assert (y <= form.max * scale * (1 + 1e-9)).all() and (y >= form.min * scale).all()
    assert away.max() <= bound["largest"] * (1 + 1e-6)
    live = largest > 0
    assert (away[live] / largest[live]).max(initial=0) <= bound["share"] * (1 + 1e-6)
    # Rounding is at most half a step beyond what the coefficients do, so that the bound is not far above.
    assert bound["largest"] <= away.max() + scale or rectified


# -- both front doors ---------------------------------------------------------------------------------------------
class Head(nn.Module):
    def __init__(self, last=nn.Identity(), spread=1.0):
        super().__init__()
        self.first, self.fc, self.last = nn.Conv2d(3, 16, 3), nn.Linear(16, 5), last
        with torch.no_grad():
            self.fc.weight[:4] *= spread

    def forward(self, x):
        return self.last(self.fc(self.first(x).relu().mean((2, 3))))


def of_the_layer(model, graph, images) -> np.ndarray:
    """What fake quantization's last layer gives for the integers that the graph's reads."""
    source = graph[graph.output.inputs[0]]
    values = execute(graph, images, keep=True)[source.name][:, :, 0, 0] * source.scale
    with torch.no_grad():
        return model.double().fc(torch.from_numpy(values)).numpy()


@pytest.mark.parametrize("spread", [1, 8, 64, 512])
@pytest.mark.parametrize("bits", [None, 16, 32])
def test_channels_far_apart_keep_their_values(spread, bits):
    torch.manual_seed(0)
    recipe = Recipe(weights="esb2.0", activations="u2", last_weights="esb2.0", output_bits=bits)
    model, images = calibrated(Head(spread=spread), recipe, SHAPE), images_for(SHAPE, 60, 1)
    graph = export(model, "head", SHAPE)
    found = execute(graph, images)[:, :, 0, 0] * graph.output.scale
    assert np.array_equal(*both(model, SHAPE))
    expected = of_the_layer(model, graph, images)
    error = graph.info["output_error"]
    away = np.abs(found - expected)
    assert away.max() <= error["largest"] * (1 + 1e-4)  # its weights' scales are float32
    if bits != 16:
        assert error["share"] < 0.001 and (away.max(axis=0) / np.abs(expected).max(axis=0)).max() < 0.001
        assert len(np.unique(found[:, 4])) == len(np.unique(expected[:, 4].round(9)))


def test_two_bits_keep_the_best_class():
    """A random 2-bit layer, 64 to 10: the finest step leaves no ties and next to no other best class."""
    random, same, ties = np.random.default_rng(0), [], []
    for _ in range(20):
        weight, x = random.integers(-1, 2, (10, 64)), random.integers(0, 4, (500, 64))
        layer = OpenLayer(ir.Linear, "l", Stored("x", (64, 1, 1), Unsigned(2), 0.3),
                          dict(weight=weight, weight_format=Signed(2), weight_scale=np.ones(10)),
                          random.uniform(0.5, 2, 10), random.normal(size=10))
        form, scale = last_format(layer)
        node = ir.Linear(name="l", shape=(10, 1, 1), format=form, scale=scale, **layer.closed(form, scale, "l"))
        q = node.requantizer
        levels = form.round_shift(x @ node.weight.T * q.m + q.b, np.broadcast_to(q.s, (500, 10)))
        same += list(levels.argmax(axis=1) == (x @ weight.T * layer.gain + layer.offset).argmax(axis=1))
        ties += list((levels == levels.max(axis=1, keepdims=True)).sum(axis=1) > 1)
    assert np.mean(same) > 0.998 and np.mean(ties) < 0.001


def test_an_imported_output_has_the_same_rule():
    random, m = np.random.default_rng(1), Model((1, 3, 6, 6))
    image = m.quant("image", 2**-5, 8)
    weight = random.normal(size=(4, 3, 3, 3)) * np.array([1, 1, 1, 2**-8])[:, None, None, None]
    scale = (np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 7).astype(np.float32)
    graph = imported(m.proto(m.add("Conv", image, m.quant(weight, scale, 4))))
    steepest = float(scale.max()) * 2**-5
    assert graph.output.scale == pytest.approx(steepest / 1024) and graph.output.format == Signed(32)
    assert graph.info["output_error"]["share"] < 0.001


@pytest.mark.parametrize("seed", range(12))
def test_random_models_stay_within_what_is_said(seed):
    """Whatever the last layer is: with a residual, a leaky ReLU, a pool or a clip behind it."""
    model = nn.Sequential(RandomModel(seed), (nn.Identity(), nn.ReLU6(), nn.Hardtanh(0, 0.5))[seed % 3])
    shape = model[0].shape
    randomise_norms(model, images_for(shape, 12, seed), seed)
    model = calibrated(model, Recipe(weights=("s8", "esb2.0")[seed % 2], activations="u4"), shape, seed)
    graph, images = export(model, "net", shape), images_for(shape, 2, seed)
    assert np.array_equal(*both(model, shape, 2, seed)), "graph = frozen module"
    outputs = execute(graph, images)
    assert np.array_equal(Machine(compile_graph(graph, ENGINES["small8x16"], 2)).run(images), outputs), "= program"
    error = graph.info["output_error"]
    assert 0 < graph.output.scale / 2 <= error["largest"] and 0 < error["share"] < 0.05


# -- what is said -------------------------------------------------------------------------------------------------
def test_inspect_says_the_step_and_the_bound(tmp_path, capsys):
    torch.manual_seed(0)
    graph = export(calibrated(Head(), Recipe(), SHAPE), "head", SHAPE)
    path = save(graph, tmp_path / "head.npz")
    assert main(["inspect", str(path)]) == 0
    said, error = capsys.readouterr().out, graph.info["output_error"]
    assert (f"output: s32 in steps of {graph.output.scale:.3g}; rounding moves it by at most {error['largest']:.3g}, no "
            f"channel by more than {100 * error['share']:.2g} % of its largest value") in said
    assert main(["inspect", "zoo:lenet5-esb-w4a4"]) == 0
    assert "output: s16 in steps of" in (said := capsys.readouterr().out) and "rounding moves" not in said
