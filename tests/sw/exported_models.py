"""Quantized models with random weights and real statistics, as tests export them."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from esbflow.graph.execute import execute
from esbflow.maps import map_shape
from esbflow.networks.digits import DigitsNet
from esbflow.networks.lenet5 import LeNet5
from esbflow.quant.export import export
from esbflow.quant.integer_module import integer_module
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate, normalise


def images_for(shape, count=12, seed=0):
    """Smooth random images, sequences or rows: noise alone leaves most neurons of a random network silent."""
    random = np.random.default_rng(seed)
    c, h, w = map_shape(shape)
    coarse = torch.from_numpy(random.random((count, c, 4, 4)))
    smooth = F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False).numpy()
    noisy = 255 * (0.8 * smooth + 0.2 * random.random((count, c, h, w)))
    return noisy.round().astype(np.uint8).reshape(count, *shape)


def randomise_norms(model, images, seed=0):
    """Statistics of real data and any affine parameters, with negative and zero gammas among them."""
    random = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) and m.track_running_stats]
    with torch.no_grad():
        for norm in norms:
            norm.weight.copy_((0.5 + torch.rand(norm.num_features, generator=random))
                              * (1 - 2 * torch.randint(2, (norm.num_features,), generator=random)))
            norm.bias.copy_(0.5 * torch.randn(norm.num_features, generator=random))
            norm.weight[0], norm.weight[1], norm.momentum = -0.7, 0.0, 1.0
        model.train()(normalise(images, (0.0,), (1.0,)))
        for norm in norms:
            # A channel that a zero gamma silenced has no variance; dividing by that would make noise of it.
            norm.running_var.mul_(0.5 + torch.rand(norm.num_features, generator=random)).clamp_(min=0.05)
    return model


def distance(found: np.ndarray, expected: np.ndarray, step: float) -> float:
    """Root mean square of the difference as a share of that of `expected`, which a step adds to."""
    return np.sqrt(np.square(found - expected).mean()) / (np.sqrt(np.square(expected).mean()) + step)


def calibrated(model, recipe, shape, seed=0):
    """A quantized model with random weights whose activation scales were set by images."""
    images = images_for(shape, 16, seed + 100)
    return calibrate(quantize(randomise_norms(model, images, seed), recipe), images, recipe.mean, recipe.std).eval()


def both(model, shape, count=12, seed=0):
    """(graph's outputs, converted module's outputs) on the same images."""
    images = images_for(shape, count, seed)
    graph = export(model, "net", shape)
    return execute(graph, images), integer_module(model, shape)(torch.from_numpy(images)).numpy()


class Residual(nn.Module):
    """Every construct at once: stride, groups, dilation, biases with norms, both pools, concat, stand-alone norm."""

    shape = (3, 16, 14)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(n) for n in (8, 8, 8, 16))
        self.group = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False)
        self.depth = nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=8)
        self.point = nn.Conv2d(16, 12, 1)
        self.fc1, self.fc2, self.norm5 = nn.Linear(12, 20), nn.Linear(20, 7), nn.BatchNorm1d(20)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.relu(self.norm1(self.stem(x)))
        y = F.relu(self.norm2(self.group(x)) + x)
        z = self.norm3(self.depth(y)) + x
        both = torch.cat([F.relu(z), F.max_pool2d(y, 3, 1, 1)], dim=1)
        both = F.relu(self.norm4(both))
        x = F.avg_pool2d(F.relu(self.point(both)), 2)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return self.fc2(self.drop(F.relu(self.norm5(self.fc1(x)))))


RECIPES = {
    "demo": Recipe(weights="esb4.1", activations="u4", first_weights="esb4.1", last_weights="esb4.1"),
    "uesb4.2": Recipe(activations="uesb4.2", output_bits=32),
    "esb6.3": Recipe(weights="esb6.3", first_weights="esb6.3", signed_activations="s4"),
    "s8 u8": Recipe(weights="s8", activations="u8", scale_mode="closed_form", mean=(0.4,), std=(0.25,)),
    "ema": Recipe(weights="esb3.0", activation_scale="ema", per_channel=False, mean=(0.13,), std=(0.31,)),
    "pow2": Recipe(scale_mode="pow2", pooled_activations="uesb6.3", input_bits=4),
    "signed esb": Recipe(weights="s4", activations="uesb3.1", signed_activations="esb4.1"),
}
NETWORKS = {"lenet": LeNet5, "digits": DigitsNet, "residual": Residual}
