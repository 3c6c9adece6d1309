"""Models that cannot be looked into are refused by one sentence that says what to give instead."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from esbflow.graph.errors import GraphError
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


def pruned():
    model = plain()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def old_norm(make):
    model = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch keeps it for models that have it
        make(model[2])
    return model


def prepared():
    import torch.ao.quantization as ao

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(ao.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), ao.DeQuantStub()).train()
        model.qconfig = ao.get_default_qat_qconfig("fbgemm")
        return ao.prepare_qat(model)


class Times(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.w = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(8, 4))

    def forward(self, x):
        return self.conv(x).mean((2, 3)) @ self.w


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make, sentence", [
    (lambda: torch.jit.script(plain()), "the model is in TorchScript, .*; give the nn.Module that it was made from"),
    (lambda: torch.jit.trace(plain(), torch.zeros(1, 3, 8, 8)), "the model is in TorchScript, .*"),
    (lambda: torch.compile(plain()), "the model is wrapped by torch.compile; give model._orig_mod, and compile it after"),
    (lambda: nn.DataParallel(plain()), "the model is wrapped in DataParallel; give model.module, and wrap it after"),
    (lambda: nn.Sequential(nn.DataParallel(nn.Conv2d(3, 4, 3))), "0 is wrapped in DataParallel; give model.0.module, and wrap"),
    (lambda: nn.Sequential(torch.compile(nn.Conv2d(3, 4, 3))), "0 is wrapped by torch.compile; give model.0._orig_mod, and"),
    (lambda: torch.export.export(plain(), (torch.zeros(1, 3, 8, 8),)).module(), "the model comes of torch.export, which has no "
                                                                               "layers; give the nn.Module that it was made from"),
    (lambda: quantize(plain()), r"the model is quantized already \(0\.weight_quantizer\); give the model in real numbers"),
    (pruned, r"0: its weight is pruned anew in each pass; .* torch\.nn\.utils\.prune\.remove\(model\.get_submodule\('0'\), "
             r"'weight'\)"),
    (lambda: old_norm(nn.utils.weight_norm), r"2: its weight is computed .*remove_weight_norm\(model.get_submodule\('2'\), "
                                             "'weight'"),
    (lambda: old_norm(nn.utils.spectral_norm), r"2: its weight is computed .*remove_spectral_norm\(model"),
    (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), r"the model: its weight .*remove_parametrizations\(model, "
                                                               "'weight'"),
    (prepared, ".*: it was prepared or converted by torch.ao.quantization; give the model in real numbers, as it was before"),
    (lambda: nn.Conv2d, "a model is a torch.nn.Module, not the class Conv2d; make an object of it"),
    (lambda: {"weight": torch.zeros(3)}, "a model is a torch.nn.Module, not dict"),
    (Times, "w: matmul computes with it in each pass, which has no integer form; use nn.Linear, whose weight is quantized"),
])
def test_a_model_that_cannot_be_looked_into_is_refused_with_the_way_out(make, sentence):
    with pytest.raises(GraphError, match=f"^{sentence}"):
        quantize(make(), shape=(3, 8, 8))


def test_the_way_out_is_one():
    model = pruned()
    prune.remove(model.get_submodule("0"), "weight")
    quantize(model)
    quantize(nn.DataParallel(plain()).module)
    quantize(torch.compile(plain())._orig_mod)


@pytest.mark.parametrize("field, value, example", [("weights", 4, "s4"), ("activations", 4, "u4"), ("last_weights", None, "s8"),
                                                   ("residual_activations", 8, "u8")])
def test_bits_alone_are_no_format(field, value, example):
    with pytest.raises(ValueError, match=f"^{field} must be the text of a format or method, such as '{example}', not {value}$"):
        Recipe(**{field: value})


@pytest.mark.parametrize("given, sentence", [
    ((plain, "s4"), r"recipe must be a Recipe, such as Recipe\(.*\), not 's4'"),
    ((plain, Recipe(), "3x8x8"), r"shape must be sizes of one image, \(channels, height, width\), not '3x8x8'"),
    ((lambda: plain().to("meta"),), "0.weight has no values: it is on torch's meta device; load the weights"),
])
def test_what_is_given_with_a_model_is_checked(given, sentence):
    make, *rest = given
    with pytest.raises(ValueError, match=f"^{sentence}"):
        quantize(make(), *rest)


@pytest.mark.parametrize("multiply", [
    torch.mm, lambda x, w: torch.einsum("bi,io->bo", x, w), lambda x, w: torch.addmm(w[0], x, w),
    lambda x, w: torch.nn.functional.linear(x, w.t())])
def test_a_product_with_a_parameter_names_the_layer_that_it_is(multiply):
    class Multiplied(Times):
        def forward(self, x):
            return multiply(self.conv(x).mean((2, 3)), self.w)

    with pytest.raises(GraphError, match=r"^w: .* no integer form; use nn\.Linear, whose weight is quantized$"):
        quantize(Multiplied())
