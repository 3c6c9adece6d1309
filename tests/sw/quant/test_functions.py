"""Functions of single values inside a network: tables of 256 entries, however the model writes them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.compiler.errors import CompileError
from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.quant.base import round_to_levels
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate, normalise
from tests.sw.exported_models import calibrated, images_for
from tests.sw.random_models import Call, Swish, WithFunctions

SHAPE = (3, 9, 8)
FINE = Recipe(weights="s8", activations="u8")
MODULES = (nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.ELU(), nn.CELU(0.5),
           nn.SELU(), nn.Mish(), nn.Softplus(), nn.Softsign())


WRITTEN = {
    "silu": (lambda x: x * torch.sigmoid(x), nn.SiLU()), "silu, method": (lambda x: x.sigmoid() * x, nn.SiLU()),
    "silu, in place": (lambda x: x.mul_(x.sigmoid()), nn.SiLU()), "functional silu": (F.silu, nn.SiLU()),
    "hardswish": (lambda x: x * F.relu6(x + 3) / 6, nn.Hardswish()), "hardswish, clamped": (
        lambda x: x * ((x + 3.0).clamp(0, 6) * (1 / 6)), nn.Hardswish()),
    "hardsigmoid as modules": (nn.Sequential(nn.Hardsigmoid(), nn.Identity()), nn.Hardsigmoid()),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), nn.Mish()), "sigmoid of exp": (lambda x: 1 / (1 + torch.exp(-x)), nn.Sigmoid()),
    "gelu of erf": (lambda x: 0.5 * x * (1 + torch.erf(x / 2 ** 0.5)), nn.GELU()), "functional gelu": (
        lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")),
    "a sum of functions": (lambda x: x + torch.sigmoid(x), Call(lambda x: x + torch.sigmoid(x))),
    "squared relu": (lambda x: F.relu(x) ** 2, Call(lambda x: x.relu().square())), "learned slope": (Swish(), Swish()),
    "tanh, then relu": (lambda x: x.tanh().relu(), Call(lambda x: x.tanh().relu())),
}


class Net(nn.Module):
    """A function behind a norm, behind a sum, behind a pool, and of what a function has made."""

    def __init__(self, act):
        super().__init__()
        self.act = act
        self.first, self.depth, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.norm1, self.norm2, self.fc = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.act(self.norm1(self.first(x)))
        y = self.act(self.norm2(self.depth(x)))
        y = F.max_pool2d(self.act(self.last(y) + x), 2)
        return self.fc(self.act(y.mean((2, 3))))


def exported(act, recipe=FINE, seed=0):
    """(graph, quantized model, images)"""
    torch.manual_seed(seed)
    model = calibrated(Net(copy.deepcopy(act)), recipe, SHAPE, seed)
    return export(model, "net", SHAPE), model, images_for(SHAPE, 12, seed)


def kinds(graph) -> list:
    return [type(node).__name__ for node in graph.nodes]


@pytest.mark.parametrize("act", MODULES, ids=str)
@pytest.mark.parametrize("recipe", [FINE, Recipe(), Recipe(activation_scale="ema", signed_activations="s4"),
                                    Recipe(power_of_two=True)], ids=["8 bits", "4 bits", "ema", "powers of two"])
def test_the_graph_computes_what_the_fake_quantized_model_does(act, recipe):
    graph, model, images = exported(act, recipe)
    assert kinds(graph).count("Lookup") == 4
    out = execute(graph, images)
    assert np.array_equal(IntegerModule(graph)(torch.from_numpy(images)).numpy(), out)
    with torch.no_grad():
        fake = model(normalise(images, recipe.mean, recipe.std)).numpy()
    # Rounding of requantizers only; a level off is a step of 4 bits in the coarse recipes.
    assert np.abs(out[:, :, 0, 0] * graph.output.scale - fake).max() < (0.03 if recipe is FINE else 0.3) * np.abs(fake).max()


@pytest.mark.parametrize("act", MODULES, ids=str)
def test_each_entry_is_what_torch_s_quantizers_make_of_the_level(act):
    graph, _model, _ = exported(act)
    for node in graph.nodes:
        if isinstance(node, ir.Lookup):
            source = graph[node.inputs[0]]
            levels = torch.tensor(source.format.levels)
            real = act(levels.float() * np.float32(source.scale)) / np.float32(node.scale)
            assert node.table[levels.numpy() & 255].tolist() == round_to_levels(real, node.format).long().tolist()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_function_written_as_several_steps_becomes_the_same_table(name):
    written, module = WRITTEN[name]
    (graph, _, _), (plain, _, _) = exported(written), exported(module)
    assert kinds(graph) == kinds(plain)
    assert [type(node) for node in graph.nodes].count(ir.Lookup) == 4
    for one, other in zip(graph.nodes, plain.nodes):
        if isinstance(one, ir.Lookup):  # written otherwise, float32 rounds otherwise: half a step may become a step
            assert np.abs(one.table - other.table).max() <= 1 and (one.table != other.table).mean() < 0.05
            assert abs(one.scale - other.scale) < 1e-4 * other.scale


def test_functions_that_are_never_negative_are_stored_without_a_sign():
    graph, _, _ = exported(nn.Sigmoid(), Recipe())
    lookups = [node for node in graph.nodes if isinstance(node, ir.Lookup)]
    assert {str(node.format) for node in lookups} == {"u4"}
    # A norm's output has a sign; what an average of sigmoids is has none.
    assert [str(graph[node.inputs[0]].format) for node in lookups] == ["s8", "s8", "s8", "u8"]
    graph, _, _ = exported(nn.SiLU(), Recipe(signed_activations="s5"))
    lookups = [node for node in graph.nodes if isinstance(node, ir.Lookup)]
    assert {str(node.format) for node in lookups} == {"s5"} and {str(graph[node.inputs[0]].format) for node in lookups} == {"s8"}


def test_overrides_name_what_a_function_reads_and_what_it_stores():
    model = quantize(Net(nn.SiLU()), Recipe(activation_overrides={"first": "s6", "act": "s4"}))
    graph = export(calibrate(model, images_for(SHAPE, 8)).eval(), "net", SHAPE)
    assert str(graph["first"].format) == "s6" and str(graph["act"].format) == "s4"


def test_scales_are_learned_through_a_function():
    model = calibrated(Net(nn.Hardswish()), Recipe(), SHAPE).train()
    model(normalise(images_for(SHAPE, 8), (0.0,), (1.0,))).square().sum().backward()
    assert all(quantizer.step.grad is not None and quantizer.step.grad != 0
               for name, quantizer in model.quantizers.items() if isinstance(getattr(quantizer, "step", None), nn.Parameter))


def test_a_function_behind_the_last_layer_has_its_largest_value_as_largest_level():
    model = calibrated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(168, 5), nn.GELU()), FINE, SHAPE)
    graph, images = export(model, "net", SHAPE), images_for(SHAPE, 6)
    with torch.no_grad():
        fake = model(normalise(images, (0.0,), (1.0,))).numpy()
    assert isinstance(graph.output, ir.Lookup) and abs(graph.output.table).max() == 127
    error = np.abs(execute(graph, images)[:, :, 0, 0] * graph.output.scale - fake).max()
    assert error < graph.info["output_error"]["largest"] + 0.02 * np.abs(fake).max()


def test_a_sigmoid_at_the_end_is_left_to_the_host_as_before():
    graph = export(calibrated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()), FINE, SHAPE), "net", SHAPE)
    assert kinds(graph) == ["Input", "Conv2d"] and "left to the host" in graph.info["notes"][0]


@pytest.mark.parametrize("seed", range(12))
def test_random_models_with_functions_compute_what_torch_does(seed):
    model = WithFunctions(seed, steps=12)
    quantized = calibrated(model, FINE, model.shape, seed)
    graph, images = export(quantized, "random", model.shape), images_for(model.shape, 8, seed)
    with torch.no_grad():
        fake = quantized(normalise(images, (0.0,), (1.0,))).numpy()
    found = execute(graph, images).reshape(fake.shape) * graph.output.scale
    assert np.array_equal(IntegerModule(graph)(torch.from_numpy(images)).numpy(), execute(graph, images))
    assert np.sqrt(np.square(found - fake).mean()) < 0.08 * np.sqrt(np.square(fake).mean()) + graph.output.scale, model.names


@pytest.mark.parametrize("call, message", [
    (torch.sqrt, r"^\w+: its function is not finite for all of -[\d.]+\.\.[\d.]+, which is what it reads; clip its input$"),
    (lambda x: torch.relu(torch.reciprocal(x)), r"its function is not finite"),
])
def test_a_function_that_is_not_finite_for_what_it_reads_is_refused(call, message):
    model = quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Call(call), nn.Conv2d(4, 2, 1)), FINE)
    with torch.no_grad():
        for _name, quantizer in model.quantizers.items():
            if hasattr(quantizer, "seen"):
                quantizer.seen.fill_(True)
    with pytest.raises(GraphError, match=message):
        export(model, "net", SHAPE)


def test_an_engine_without_a_table_says_what_is_missing():
    graph, _, _ = exported(nn.SiLU())
    with pytest.raises(CompileError, match=r"^layer first: its result is looked up in a function table \(act\) and engine base16x16 "
                                           r"is built without one \(function_table = false\); use an engine with one, .*$"):
        compile_graph(graph, ENGINES["base16x16"])
