"""Models that compute with the sizes of tensors, and decide by them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.quant.export import export
from esbflow.quant.integer_module import integer_module
from esbflow.quant.quantize import quantize
from esbflow.quant.trace import trace
from esbflow.training.loop import calibrate
from tests.sw.exported_models import images_for

SHAPE = (2, 9, 8)


class SameConv(nn.Conv2d):
    """TensorFlow's padding: what the height and width of a map need, more of it behind."""

    def forward(self, x):
        height, width = x.size()[-2:]
        need = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip((height, width), self.stride, self.weight.shape[2:])]
        if any(need):
            x = F.pad(x, [need[1] // 2, need[1] - need[1] // 2, need[0] // 2, need[0] - need[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Sizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.second = SameConv(2, 6, 3, 2), nn.BatchNorm2d(6), SameConv(6, 4, 3, 2)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(4 * 3 * 2, 3)

    def forward(self, x):
        x = self.second(F.relu(self.norm(self.conv(x))))
        images, channels, height, width = x.shape
        if x.ndim == 4 and height * width > 1:
            x = F.relu(x)
        return self.last(self.drop(x.view(images, channels * height * x.shape[-1])))


def test_sizes_become_numbers_but_the_count_of_images_stays_open():
    torch.manual_seed(0)
    model = Sizes().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    traced = trace(model, SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # no statistics moved
    assert sum(node.op == "call_method" and node.target == "size" for node in traced.graph.nodes) == 1
    images = torch.rand(5, *SHAPE)
    assert torch.allclose(traced.eval()(images), model.eval()(images), rtol=1e-5, atol=1e-6)


def test_padding_by_size_exports_exactly_and_for_one_shape():
    torch.manual_seed(0)
    with pytest.raises(GraphError, match=r"^Sizes: torch.fx cannot trace .*; remove control flow that depends on data or, if it "
                                         r"depends on sizes only, give quantize\(\) the shape of the images$"):
        quantize(Sizes())
    model = calibrate(quantize(Sizes(), shape=SHAPE), images_for(SHAPE, 16), (0.0,), (1.0,)).eval()
    graph, images = export(model, "net", SHAPE), images_for(SHAPE, 3, 1)
    np.testing.assert_array_equal(execute(graph, images), integer_module(model, SHAPE)(torch.from_numpy(images)).numpy())
    assert [type(node) for node in graph.nodes] == [ir.Input, ir.Conv2d, ir.Conv2d, ir.Linear]
    with pytest.raises(GraphError, match=r"^the model was quantized for images of shape \(2, 9, 8\), not \(2, 8, 8\): its sizes "
                                         r"are numbers now; quantize it for that shape$"):
        export(model, "net", (2, 8, 8))


def test_decisions_by_data_are_refused_all_the_same():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(x) if x.mean() > 0 else x

    class Counts(Decides):
        def forward(self, x):
            return self.conv(x).view(len(x), -1)

    with pytest.raises(GraphError, match=r"^Decides: torch.fx cannot trace .*; remove control flow that depends on data$"):
        quantize(Decides(), shape=SHAPE)
    with pytest.raises(GraphError, match=r"^Counts: torch.fx cannot trace .*len.*; remove control flow that depends on data$"):
        quantize(Counts(), shape=SHAPE)
    with pytest.raises(GraphError, match=r"^the network does not take images of shape \(3, 9, 8\): .* 2 channels.*$"):
        quantize(Sizes(), shape=(3, 9, 8))
