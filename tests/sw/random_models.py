"""Random torch models of everything that `quantize` takes, for tests of the whole way to the engine."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Call(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function, *arguments):
        super().__init__()
        self.function, self.arguments = function, arguments

    def forward(self, *tensors):
        return self.function(*tensors, *self.arguments)


class Scale(nn.Module):
    """A learned factor a channel of tensors with so many other `axes`, as LayerScale has it."""

    def __init__(self, channels, axes=2):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, *[1] * axes) + 0.5)

    def forward(self, x):
        return x * self.gamma


def mixed(x):
    """Two halves swapped, or a choice of channels where they are odd."""
    half = x.shape[1] // 2
    return torch.cat([x[:, half:], x[:, :half]], 1)


def parted(x):
    """Half of the channels rectified, the other in front of it."""
    first, second = x.chunk(2, dim=1)
    return torch.cat([second, F.relu(first)], 1)


class RandomModel(nn.Module):
    """`steps` operations on tensors of `shape` (c, h, w) and of each other; then a map, or rows of one or two linear layers.

    The same seed gives the same model with the same weights. Tensors that end up unread are joined before linear layers, and
    left unread before a map.
    dilated_same : whether dilated convolutions may pad "same", which onnxruntime does not take.
    """

    KINDS = ("conv", "conv", "conv", "norm", "relu", "leaky", "affine", "sum", "sum", "pool", "concat", "channels", "split",
             "upsample", "like", "dropout", "pad", "again")

    def __init__(self, seed: int, steps: int = 10, dilated_same: bool = True):
        super().__init__()
        self.random, self.dilated_same = np.random.default_rng(seed), dilated_same
        torch.manual_seed(seed)
        self.shape = (self._one_of(1, 3, 4), *self._sizes())
        self.steps, self.sources, self.shapes, self.names = nn.ModuleList(), [], [self.shape], []
        while len(self.steps) == 0:
            self._append("conv", 0)
        while len(self.steps) < steps:
            kind = self._one_of(*self.KINDS)
            # Mostly what was computed last.
            self._append(kind, max(1, len(self.shapes) - 1 - int(self.random.geometric(0.6)) + 1))
        self.head = self._head(self._one_of("map", "rows", "rows", "hidden"))
        self.end = self._one_of(nn.Identity(), nn.Identity(), nn.ReLU(), nn.Dropout(), nn.LeakyReLU(0.2))
        del self.random

    def forward(self, x):
        values = [x]
        for step, sources in zip(self.steps, self.sources):
            values.append(step(*(values[source] for source in sources)))
        return self.end(self.head(values[-1]))

    def _head(self, kind: str) -> nn.Module:
        if kind == "map":
            return nn.Conv2d(self.shapes[-1][0], 4, 1)
        self._finish()
        channels, height, width = self.shapes[-1]
        to_rows = [Call(torch.mean, (2, 3)), Call(torch.amax, (2, 3)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())]
        if height * width <= 100 and self._one_of(True, False):
            channels *= height * width
            to_rows = [nn.Flatten(), Call(lambda x: x.view(x.size(0), -1))]
        layers = [nn.Linear(channels, 5)]
        if kind == "hidden":
            layers = [nn.Linear(channels, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5)]
        return nn.Sequential(self._one_of(*to_rows), *layers)

    def _sizes(self) -> tuple:
        return tuple(int(n) for n in self.random.integers(6, 15, 2))

    # -- how it is drawn -----------------------------------------------------------------------------------------------
    def _one_of(self, *choices):
        return choices[int(self.random.integers(len(choices)))]

    def _add(self, name, module, shape, *sources):
        self.steps.append(module)
        self.sources.append(sources)
        self.shapes.append(tuple(shape))
        self.names.append(name)

    def _append(self, kind: str, source: int) -> None:
        """One operation that reads `source`, or nothing if it does not fit."""
        getattr(self, f"_{kind}")(source, *self.shapes[source])

    def _conv(self, source, c, h, w):
        kernel, stride, dilation = self._one_of(1, 3, 3, (3, 1), (2, 5)), self._one_of(1, 1, 1, 2), self._one_of(1, 1, 1, 2)
        groups = self._one_of(1, 1, 1, c if c > 1 else 1)
        out = groups * self._one_of(1, 2) if groups > 1 else self._one_of(3, 8, 17)
        padding = self._one_of(0, 1, 1, "same") if stride == 1 else self._one_of(0, 1)
        if padding == "same" and not self.dilated_same:
            dilation = 1
        conv = nn.Conv2d(c, out, kernel, stride, padding, dilation, groups, bias=self._one_of(True, False))
        if padding not in (0, "same") and min(np.broadcast_to(kernel, 2)) == 1:
            conv.padding = (0, 0)
        try:
            shape = conv(torch.zeros(1, c, h, w)).shape[1:]
        except RuntimeError:
            return
        self._add("conv", conv, shape, source)

    def _norm(self, source, c, h, w):
        if c > 1:
            self._add("norm", nn.BatchNorm2d(c), (c, h, w), source)

    def _relu(self, source, c, h, w):
        self._add("relu", self._one_of(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(0, 1.5), Call(torch.relu)),
                  (c, h, w), source)

    def _leaky(self, source, c, h, w):
        every = nn.PReLU(c)
        every.weight.data = torch.linspace(-0.5, 1.5, c)
        self._add("leaky", self._one_of(nn.LeakyReLU(0.1), nn.PReLU(), every, Call(F.leaky_relu, 0.3)), (c, h, w), source)

    def _affine(self, source, c, h, w):
        self._add("affine", self._one_of(Scale(c), Call(torch.mul, -0.7), Call(torch.add, 0.25), Call(lambda x: 1 - x)),
                  (c, h, w), source)

    def _sum(self, source, c, h, w):
        same = [i for i, shape in enumerate(self.shapes) if shape == (c, h, w)]
        combine = self._one_of(torch.add, torch.add, torch.sub, lambda x, y: torch.add(x, y, alpha=0.5))
        self._add("sum", Call(combine), (c, h, w), *self._one_of((source, other := self._one_of(*same)), (other, source)))

    def _pool(self, source, c, h, w):
        pool = self._one_of(nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2),
                            nn.AvgPool2d(3, 1, 1))
        if self._one_of(*[False] * 7, True):
            pool = self._one_of(nn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool2d((h, 1)), nn.AdaptiveAvgPool2d((1, w)),
                                Call(lambda x: x.amax((2, 3), keepdim=True)), Call(lambda x: x.mean((-1, -2), keepdim=True)))
        if min(h, w) >= 3:
            self._add("pool", pool, pool(torch.zeros(1, c, h, w)).shape[1:], source)

    def _concat(self, source, c, h, w):
        same = [i for i, shape in enumerate(self.shapes) if shape[1:] == (h, w)]
        parts = [source, *(self._one_of(*same) for _ in range(self._one_of(1, 1, 2)))]
        channels = sum(self.shapes[part][0] for part in parts)
        if channels <= 40:
            self._add("concat", Call(lambda *tensors: torch.cat(tensors, 1)), (channels, h, w), *parts)

    def _channels(self, source, c, h, w):
        if c >= 4:
            self._add("channels", Call(mixed), (c, h, w), source)
            self._add("channels", Call(lambda x, n: x[:, 1:n], c - 1), (c - 2, h, w), len(self.shapes) - 1)

    def _split(self, source, c, h, w):
        if c % 2 == 0:
            self._add("split", Call(parted), (c, h, w), source)

    def _like(self, source, c, h, w):
        """As large as another map."""
        larger = [i for i, shape in enumerate(self.shapes) if shape[1] % h == 0 and shape[2] % w == 0 and i]
        other = self._one_of(*larger)
        self._add("like", Call(lambda x, y: F.interpolate(x, size=y.shape[2:])), (c, *self.shapes[other][1:]), source, other)

    def _upsample(self, source, c, h, w):
        if h * w <= 80:
            self._add("upsample", self._one_of(nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=(1, 3))),
                      (c, 2 * h, 2 * w), source)
            self.shapes[-1] = tuple(self.steps[-1](torch.zeros(1, c, h, w)).shape[1:])

    def _again(self, source, c, h, w):
        """A layer that is there already, on another tensor."""
        known = [i for i, step in enumerate(self.steps) if isinstance(step, nn.Conv2d | nn.ReLU | nn.LeakyReLU | nn.PReLU)
                 and self.shapes[self.sources[i][0]][0] == c]
        if known:
            step = self.steps[self._one_of(*known)]
            try:
                self._add("again", step, step(torch.zeros(1, c, h, w)).shape[1:], source)
            except RuntimeError:  # the map is smaller than the kernel
                return

    def _dropout(self, source, c, h, w):
        self._add("dropout", self._one_of(nn.Dropout(), nn.Dropout2d(), nn.Identity()), (c, h, w), source)

    def _pad(self, source, c, h, w):
        if min(h, w) >= 3:
            conv = nn.Sequential(nn.ZeroPad2d((1, 0, 0, 2)), nn.Conv2d(c, 6, 3, 2))
            self._add("pad", conv, conv(torch.zeros(1, c, h, w)).shape[1:], source)

    def _finish(self):
        """Average what nothing reads to one pixel and join it."""
        read = {source for sources in self.sources for source in sources}
        loose = [i for i in range(1, len(self.shapes)) if i not in read]
        if len(loose) > 1:
            for i in loose:
                self._add("pool", nn.AdaptiveAvgPool2d(1), (self.shapes[i][0], 1, 1), i)
            parts = range(len(self.shapes) - len(loose), len(self.shapes))
            self._add("concat", Call(lambda *tensors: torch.cat(tensors, 1)),
                      (sum(self.shapes[part][0] for part in parts), 1, 1), *parts)


class Swish(nn.Module):
    """With a slope that is learned."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class WithFunctions(RandomModel):
    """Functions of single values among the rest, as modules and in several steps."""

    KINDS = (*RandomModel.KINDS, *["function"] * 5)

    def _function(self, source, c, h, w):
        act = self._one_of(nn.SiLU(), nn.Hardswish(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), Call(lambda x: x * torch.sigmoid(x)),
                           Call(lambda x: x * F.relu6(x + 3) / 6), Swish())
        self._add("function", act, (c, h, w), source)
