"""Operations in place: what comes after them reads what they made, in the model as in the graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.sw.exported_models import distance, images_for

SHAPE = (3, 6, 7)


class Twice(nn.Module):
    """One ReLU in place before and after another operation."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.relu(x).sub_(0.1))


def add_half(x):
    y = x
    y += 0.5
    return y


@pytest.mark.parametrize("shape", [None, SHAPE])
@pytest.mark.parametrize("change", [
    nn.ReLU(inplace=True), Twice(), nn.Sequential(nn.Identity(), nn.ReLU(True)), nn.ReLU6(True), nn.LeakyReLU(0.1, inplace=True), lambda x: F.relu(x, inplace=True), lambda x: F.relu(x, True),
    lambda x: F.leaky_relu(x, 0.2, True), F.leaky_relu_, torch.relu_, lambda x: x.relu_(), lambda x: x.add_(x), add_half,
    lambda x: x.mul_(-0.5)])
def test_what_comes_later_reads_the_result(change, shape):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.change, self.first, self.second, self.last = change, *(nn.Conv2d(c, 5, 3, padding=1) for c in (3, 5, 5))

        def forward(self, x):
            x = self.first(x)
            before = self.second(x)
            changed = self.change(x)
            return self.last(x - changed + before + x)

    torch.manual_seed(1)
    for module in change.modules() if isinstance(change, nn.Module) else ():
        module.inplace = True  # quantize() has made it plain in an earlier run
    model, images = Model().eval(), images_for(SHAPE, 8)
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        expected = model(x).numpy()
    quantized = calibrate(quantize(model, Recipe(weights="s8", activations="u8"), shape), images).eval()
    with torch.no_grad():
        fake = quantized(x)
        assert torch.equal(quantized(x), fake)
    graph = export(quantized, "net", SHAPE)
    step = graph.output.scale
    assert distance(fake.numpy(), expected, step) < 0.05 and distance(execute(graph, images) * step, expected, step) < 0.05
    quantized.train()(x).square().sum().backward()


def test_sizes_are_no_tensors():
    """A number that is counted up is another number: its old name keeps the old one."""
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.first(x).relu()
            height = rows = x.shape[2]
            rows += height
            return self.last(F.interpolate(x, (rows, x.shape[3] * (rows // height))))

    graph = export(calibrate(quantize(Model()), images_for(SHAPE)), "net", SHAPE)
    assert graph.output.shape == (2, 12, 14)
