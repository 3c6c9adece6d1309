"""The networks: torchvision's tensors, known sizes, and torch = integer graph for each; the operators that they brought."""

import copy
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.networks.checkpoints import load_network
from esbflow.networks.registry import NETWORKS
from esbflow.networks.resnet20 import ResNet
from esbflow.quant.export import export
from esbflow.quant.integer_module import IntegerModule
from esbflow.quant.limit import StepLimit
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe, recipe_of
from esbflow.training import api
from esbflow.training.api import top1
from esbflow.training.folders import load_folder
from esbflow.training.loop import Schedule, calibrate, normalise, train
from tests.sw.exported_models import images_for

CLOSED = Recipe(scale_mode="closed_form")  # in place of the search, which takes seconds for millions of weights
WIDE = Recipe(weights="s8", activations="u8", scale_mode="closed_form")


def quantized(model, shape, recipe=WIDE, seed=0):
    """The model with batch norms of real data's statistics, quantized and calibrated on a few random images."""
    images = images_for(shape, 4, seed + 100)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
    with torch.no_grad():
        model.train()(normalise(images, recipe.mean, recipe.std))
    return calibrate(quantize(model, recipe), images, recipe.mean, recipe.std).eval()


def both(model, shape, count=2):
    """(graph, its outputs, the torch module's outputs, the fake-quantized model's outputs in output steps)."""
    graph, images = export(model, "net", shape), images_for(shape, count)
    with torch.no_grad():
        fake = model(normalise(images, recipe_of(model)[0].mean, recipe_of(model)[0].std)).double().numpy() / graph.output.scale
    outputs = execute(graph, images)
    return graph, outputs, IntegerModule(graph)(torch.from_numpy(images)).numpy(), fake.reshape(outputs.shape)


# -- as published -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, parameters, digest", [
    ("alexnet", 61_100_840, "9c198ebdae1863e4"), ("resnet18", 11_689_512, "84fb10d9c6905a1c"),
    ("resnet50", 25_557_032, "d7e4f8bb0a536344"), ("mobilenet-v2", 3_504_872, "37bbbce8932fd0c4"),
    ("googlenet", 6_624_904, "f66489fa14bd9d5a"), ("densenet121", 7_978_856, "aa0fd9923b0003b8")])
def test_names_and_shapes_are_torchvisions(name, parameters, digest):
    """Digests of the state dicts that torchvision 0.28 makes; with its weights the outputs were equal bit for bit."""
    with torch.device("meta"):
        model = NETWORKS[name]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items())
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("depth, parameters", [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)])
def test_cifar_resnets_have_the_published_sizes(depth, parameters):
    assert sum(p.numel() for p in ResNet(depth).parameters()) == parameters


@pytest.mark.parametrize("depth", [18, 21, 2, -4])
def test_a_depth_that_no_cifar_resnet_has_is_refused(depth):
    with pytest.raises(ValueError, match=rf"^a CIFAR-10 ResNet has a depth of 6\*k \+ 2, such as 20, 32 or 56, not {depth}$"):
        ResNet(depth)


def test_every_network_is_made_by_name_with_any_number_of_classes():
    assert api.named_network("lenet5") is NETWORKS["lenet5"]
    for name, entry in NETWORKS.items():
        for options, classes in ((dict(), entry.classes), (dict(classes=3), 3)):
            with torch.device("meta"):
                model = entry(**options)
            layers = [m for m in model.modules() if isinstance(m, nn.Conv2d if name == "unet" else nn.Linear)]
            assert layers[-1].weight.shape[0] == classes, name


# -- torch = graph ------------------------------------------------------------------------------------------------
SMALL = {  # shape of the images, and options: ImageNet's networks on few pixels, the heaviest layers narrower
    "tfc": ((1, 28, 28), {}), "cifarnet": ((3, 32, 32), {}), "cnv": ((3, 32, 32), {}), "vgg7-64": ((3, 32, 32), {}),
    "vgg-small": ((3, 32, 32), {}), "resnet32": ((3, 32, 32), {}), "resnet56": ((3, 16, 16), {}),
    "lenet-caffe": ((1, 28, 28), {}), "resnet18": ((3, 64, 64), dict(width=32)), "resnet50": ((3, 64, 64), dict(width=32)),
    "mobilenet-v2": ((3, 64, 64), {}), "alexnet": ((3, 224, 224), dict(width=64)), "googlenet": ((3, 64, 64), {}),
    "densenet121": ((3, 64, 64), {}), "unet": ((3, 32, 32), {}),
    "vgg10": ((2, 256), dict(length=256)), "m5": ((1, 4000), dict(width=32))}


@pytest.mark.parametrize("name", SMALL)
def test_the_integer_module_equals_the_graph_on_every_value(name):
    torch.manual_seed(0)
    shape, options = SMALL[name]
    model = quantized(NETWORKS[name](classes=1 if name == "unet" else 10, **options), shape, CLOSED)
    graph, outputs, module, _ = both(model, shape)
    assert np.array_equal(outputs, module) and len(np.unique(outputs)) >= 10
    if name == "unet":
        assert outputs.shape == (2, 1, 32, 32)
    operators = [type(node).__name__ for node in graph.nodes]
    assert operators.count("Add") == 0, "additions are residuals of convolutions"
    expected = {"unet": 3, "googlenet": 9, "densenet121": 62}.get(name, 0)
    assert operators.count("Concat") == expected
    # A norm before its convolution is a Requantize; so is each concatenated tensor, and AlexNet's pool that changes nothing.
    assert operators.count("Requantize") <= {"unet": 6, "densenet121": 62 + 62, "alexnet": 1, "googlenet": 36}.get(name, 0)


@pytest.mark.parametrize("name", ["unet", "mobilenet-v2", "googlenet", "densenet121", "vgg10", "m5"])
def test_fake_quantization_follows_the_graph(name):
    """At 8 bits: what is left is the rounding of m, and a common scale where tensors are concatenated."""
    torch.manual_seed(0)
    shape, options = SMALL[name]
    model = quantized(NETWORKS[name](classes=1 if name == "unet" else 10, **options), shape)
    _, outputs, _, fake = both(model, shape, 4)
    correlation = np.corrcoef(outputs.ravel(), fake.ravel())[0, 1]
    assert correlation > 0.9


# -- ReLU6 --------------------------------------------------------------------------------------------------------
class Clipped(nn.Module):
    """conv - clip - conv, with values far above the clip."""

    def __init__(self, clip):
        super().__init__()
        self.conv, self.clip, self.last = nn.Conv2d(1, 4, 3), clip, nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.conv.weight.mul_(100)

    def forward(self, x):
        return self.last(self.clip(self.conv(x)))


@pytest.mark.parametrize("activations", ["u4", "u8", "uesb4.2", "pact:4", "srq:4", "lqnets:3"])
@pytest.mark.parametrize("clip, limit", [
    (nn.ReLU6(inplace=True), 6), (nn.Hardtanh(0, 2.5), 2.5), (lambda x: F.relu6(x), 6), (lambda x: x.clamp(0, 3), 3),
    (lambda x: F.hardtanh(x, 0, 3), 3), (lambda x: torch.clamp(x, min=0, max=1), 1)])
def test_a_clip_becomes_the_largest_level(clip, limit, activations):
    torch.manual_seed(1)
    recipe, shape = Recipe(weights="s8", activations=activations, last_weights="s8"), (1, 8, 8)
    model = quantized(Clipped(copy.deepcopy(clip)), shape, recipe)
    graph, outputs, module, _ = both(model, shape, 10)
    stored = graph.nodes[1]
    assert np.array_equal(outputs, module)
    assert 0.5 * limit < stored.scale * stored.format.max <= limit * (1 + 1e-6)
    images = images_for(shape, 10)
    with torch.no_grad():
        x = model.quantizers[next(iter(model.quantizers))](normalise(images, (0.0,), (1.0,)))
        y = model.get_submodule("conv")(x).clamp(0, limit).double().numpy() / stored.scale
    values = execute(graph, images, keep=True)[stored.name]
    far = np.abs(y - np.floor(y) - 0.5) > 0.2
    assert np.array_equal(values[far], stored.format.nearest(y)[far]) or activations == "uesb4.2"
    assert (values[y * stored.scale >= limit] == stored.format.max).all() and (y * stored.scale >= limit).mean() > 0.1


def test_the_step_of_a_clipped_activation_still_trains():
    """It is projected back below the limit, from where its gradient can move it."""
    torch.manual_seed(2)
    model = quantized(Clipped(nn.Sequential(nn.ReLU6(), nn.AdaptiveAvgPool2d(1))), (1, 8, 8))
    hooks = [h for m in model.modules() for h in m._forward_pre_hooks.values() if isinstance(h, StepLimit)]
    assert len(hooks) == 1 and hooks[0].limit == 6
    quantizer = model.quantizers["clip_0"]
    model.train()
    with torch.no_grad():
        quantizer.step.fill_(1.0)
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    assert quantizer.step.item() == pytest.approx(6 / 255) and quantizer.step.grad is not None
    with torch.no_grad():
        quantizer.step.fill_(0.01)
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    assert quantizer.step.item() == pytest.approx(0.01)


def test_mobilenet_trains_a_step():
    torch.manual_seed(3)
    images = images_for((3, 32, 32), 4)
    model = quantize(NETWORKS["mobilenet-v2"](classes=4), Recipe(scale_mode="closed_form"))
    train(model, images, np.arange(4), Schedule(epochs=1, batch=2, rate=0.001))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("clip, message", [
    (nn.Hardtanh(), r"clip: operator Hardtanh from -1\.0 to 1\.0 has no integer form"),
    (lambda x: x.clamp(-1, 1), r"clamp: operator clamp from -1 to 1 has no integer form"),
    (lambda x: x.clamp(max=1), r"clamp: operator clamp from None to 1 has no integer form"),
    (lambda x: F.hardtanh(x), r"hardtanh: operator hardtanh from -1\.0 to 1\.0 has no integer form")])
def test_a_clip_that_does_not_begin_at_zero_is_refused(clip, message):
    with pytest.raises(GraphError, match=f"^{message}; let it begin at 0, as ReLU and ReLU6 do$"):
        quantize(Clipped(clip))


# -- upsampling, pools, shapes ------------------------------------------------------------------------------------
class Between(nn.Module):
    """conv - ReLU - `call` - conv, on maps of 6x6."""

    def __init__(self, call, channels=2):
        super().__init__()
        self.conv, self.call, self.last = nn.Conv2d(1, 2, 1), call, nn.Conv2d(channels, 3, 1)
        nn.init.constant_(self.conv.bias, 0.5)

    def forward(self, x):
        return self.last(self.call(F.relu(self.conv(x))))


@pytest.mark.parametrize("call, operator, shape", [
    (nn.Upsample(scale_factor=2), "Upsample", (2, 12, 12)), (nn.UpsamplingNearest2d(scale_factor=3), "Upsample", (2, 18, 18)),
    (lambda x: F.interpolate(x, scale_factor=(2, 1), mode="nearest"), "Upsample", (2, 12, 6)),
    (lambda x: F.interpolate(x, (12, 18)), "Upsample", (2, 12, 18)),
    (lambda x: F.interpolate(x, size=(x.shape[2] * 2, x.size(3) * 2), mode="nearest-exact"), "Upsample", (2, 12, 12)),
    (nn.AdaptiveAvgPool2d((2, 3)), "AvgPool2d", (2, 2, 3)), (nn.AdaptiveAvgPool2d((12, 12)), "Upsample", (2, 12, 12)),
    (nn.AdaptiveAvgPool2d((None, 6)), "Requantize", (2, 6, 6)), (nn.AvgPool2d(3, 2), "AvgPool2d", (2, 2, 2)),
    (nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), "AvgPool2d", (2, 3, 3)),
    (nn.MaxPool2d(3, 2, ceil_mode=True), "MaxPool2d", (2, 3, 3)), (nn.AdaptiveMaxPool2d((2, 3)), "MaxPool2d", (2, 2, 3)),
    (lambda x: F.adaptive_max_pool2d(x, 1), "MaxPool2d", (2, 1, 1)),
    (lambda x: torch.amax(x, (-1, -2), keepdim=True), "MaxPool2d", (2, 1, 1)),
    (nn.Sequential(nn.ZeroPad2d(1), nn.AdaptiveMaxPool2d(2)), "MaxPool2d", (2, 2, 2))])
def test_maps_change_their_size(call, operator, shape):
    torch.manual_seed(4)
    model = quantized(Between(call), (1, 6, 6))
    graph, outputs, module, fake = both(model, (1, 6, 6))
    node = next(node for node in graph.nodes if type(node).__name__ == operator)
    assert np.array_equal(outputs, module) and node.shape == shape
    assert np.abs(outputs - fake).max() < 0.05 * np.abs(fake).max()


@pytest.mark.parametrize("call, message", [
    (lambda x: F.interpolate(x, scale_factor=2, mode="area"), "mode 'area'"),
    (nn.Upsample(scale_factor=2, mode="bicubic"), "mode 'bicubic'")])
def test_other_upsampling_is_refused(call, message):
    with pytest.raises(GraphError, match=rf"^\w+: upsampling with {message} has no integer form; use mode='nearest', or "
                                         "'bilinear', which the host computes$"):
        quantize(Between(call))


@pytest.mark.parametrize("call, message", [
    (nn.Upsample(scale_factor=1.5), r"call: upsampling from \(6, 6\) to \(9, 9\) has no integer form; use whole factors"),
    (lambda x: x.mean(1, keepdim=True).expand(-1, 2, -1, -1), r"expand: operator expand has no integer form; .*"),
    (nn.AdaptiveMaxPool2d(4), r"call: adaptive pooling from 6x6 to 4x4 has no integer form; one size must divide the other"),
    (nn.AdaptiveMaxPool2d(12), r"call: adaptive pooling from 6x6 to 12x12 has no integer form; one size must divide the other"),
    (lambda x: x.amax((1, 2), keepdim=True), r"amax: a amax has an integer form only over height and width, dim=\(2, 3\)"),
    (lambda x: x.mean((1, 2), keepdim=True), r"mean: a mean has an integer form only over height and width, dim=\(2, 3\)")])
def test_other_changes_of_size_are_refused(call, message):
    with pytest.raises(GraphError, match=f"^{message}$"):
        export(quantized(Between(call), (1, 6, 6)) if "dim=" not in message else _mean_model(call), "net", (1, 6, 6))


def _mean_model(call):
    return calibrate(quantize(Between(call, 1)), images_for((1, 6, 6)))


class Flattens(nn.Module):
    """The ways in which networks flatten, with the batch's size in them."""

    def __init__(self, call):
        super().__init__()
        self.conv, self.call, self.fc = nn.Conv2d(1, 2, 6), call, nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(F.dropout(self.call(F.relu(self.conv(x))), 0.5, training=False))


@pytest.mark.parametrize("call", [
    lambda x: x.view(x.size(0), -1), lambda x: x.reshape(x.shape[0], 2 * x.size(2)), lambda x: torch.flatten(x, 1),
    lambda x: x.flatten(start_dim=1), lambda x: x.mean([2, 3]), lambda x: x.amax((2, 3)), lambda x: x.squeeze(-1).squeeze(-1),
    lambda x: torch.mean(x, dim=(-2, -1)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout())])
def test_flattening_as_networks_do_it(call):
    torch.manual_seed(5)
    _, outputs, module, fake = both(quantized(Flattens(call), (1, 6, 6)), (1, 6, 6))
    assert np.array_equal(outputs, module) and np.abs(outputs - fake).max() < 0.05 * np.abs(fake).max()


class StochasticDepth(nn.Module):
    """Named as the model libraries' class; cannot be traced into."""

    def forward(self, x):
        return x if not self.training or x.sum() > 0 else 0 * x


def test_stochastic_parts_of_model_libraries_do_nothing():
    _, outputs, module, _ = both(quantized(Between(StochasticDepth()), (1, 6, 6)), (1, 6, 6))
    assert np.array_equal(outputs, module)


# -- concatenation ------------------------------------------------------------------------------------------------
class Concats(nn.Module):
    """Tensors of scales a hundredfold apart, signed and not, concatenated again and again, and one of them twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(1, 2, 1) for _ in range(3))
        self.d, self.last = nn.Conv2d(6, 2, 1), nn.Conv2d(10, 2, 1)
        with torch.no_grad():
            self.b.weight.mul_(100)
            for conv in (self.a, self.c, self.d):
                conv.bias.fill_(1)

    def forward(self, x):
        a, b, c = F.relu(self.a(x)), self.b(x), F.relu6(self.c(x))
        first = torch.cat([a, b, c], dim=1)
        return self.last(torch.concat((first, F.relu(self.d(first)), a), 1))


@pytest.mark.parametrize("seed", range(3))
def test_concatenated_tensors_keep_their_signs_and_range(seed):
    torch.manual_seed(seed)
    recipe = Recipe(weights="s8", activations="u8", signed_activations="s8")
    graph, outputs, module, fake = both(quantized(Concats(), (1, 6, 6), recipe), (1, 6, 6), 8)
    concats = [node for node in graph.nodes if isinstance(node, ir.Concat)]
    assert np.array_equal(outputs, module) and len(concats) == 2
    assert {str(node.format) for node in concats} == {"s8"} and concats[0].scale == concats[1].scale
    assert [len(node.inputs) for node in concats] == [3, 5] and concats[1].inputs == (
        *concats[0].inputs, concats[1].inputs[3], concats[0].inputs[0])
    # b is the largest, and has the common step; a, c and d are requantized once each.
    assert [type(node).__name__ for node in graph.nodes].count("Requantize") == 3
    assert np.corrcoef(outputs.ravel(), fake.ravel())[0, 1] > 0.99


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return self.last(torch.cat(tensors=[a, b, a, F.max_pool2d(b, 3, 1, 1)], dim=1))


def test_a_tensor_that_is_joined_twice_is_requantized_once():
    torch.manual_seed(6)
    graph, outputs, module, _ = both(quantized(Twice(), (1, 6, 6)), (1, 6, 6))
    assert np.array_equal(outputs, module)
    operators = [type(node).__name__ for node in graph.nodes]
    read = [node.inputs for node in graph.nodes if type(node) is ir.Requantize]
    assert operators.count("Concat") == 1 and 1 <= len(read) == len(set(read)), "a, b and what is pooled of b at most"


# -- trained weights ----------------------------------------------------------------------------------------------
DATA = Path(os.environ.get("ESBFLOW_DATA", ""))
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.skipif(not (os.environ.get("ESBFLOW_DATA") and (DATA / "photos").is_dir() and (DATA / "weights").is_dir()),
                    reason="needs photographs: set ESBFLOW_DATA to a folder that holds photos and weights")
def test_resnet18_on_photographs_at_8_bits():
    images, labels = load_folder(DATA / "photos")
    chosen, weights = np.arange(0, 50, 5), "uniform:8"
    recipe = Recipe(weights=weights, first_weights=weights, last_weights=weights, activations="u8", **IMAGENET)
    model = load_network("resnet18", DATA / "weights" / "resnet18_imagenet.npz", folded_statistics=True)
    with torch.no_grad():
        real = model(normalise(images[chosen], *IMAGENET.values())).double().numpy()
    model = calibrate(quantize(model, recipe), np.delete(images, chosen, axis=0)[:10], **IMAGENET).eval()
    graph = export(model, "resnet18", images.shape[1:])
    outputs = execute(graph, images[chosen])
    assert np.array_equal(IntegerModule(graph)(torch.from_numpy(images[chosen[:2]])).numpy(), outputs[:2])
    assert top1(outputs, labels[chosen]) >= top1(real, labels[chosen]) - 20  # two photographs of ten
    # 0.964 with ten photographs for the scales of activations.
    assert np.corrcoef(outputs.ravel(), real.ravel())[0, 1] > 0.95
