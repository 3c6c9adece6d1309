"""Random torch models of sequences (n, channels, length)."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.sw.random_models import Call, RandomModel, Scale, mixed, parted


class Functional(nn.Module):
    """Convolution and norm as calls of functions on the module's own parameters."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.weight, self.stride = conv.weight, conv.stride
        norm = nn.BatchNorm1d(conv.out_channels)
        self.gamma, self.beta = norm.weight, norm.bias
        self.register_buffer("mean", torch.rand(conv.out_channels) / 4)
        self.register_buffer("variance", torch.rand(conv.out_channels) + 0.2)

    def forward(self, x):
        x = F.conv1d(x, self.weight, stride=self.stride)
        return F.batch_norm(x, self.mean, self.variance, self.gamma, self.beta, self.training)


def shuffled(x):
    """Channels in another order, by views."""
    return x.view(x.size(0), 2, -1, x.size(2)).transpose(1, 2).flatten(1, 2)


class RandomSequenceModel(RandomModel):
    """As RandomModel, with the operations of sequences, parts of them and zeros as channels among them."""

    KINDS = (*RandomModel.KINDS, "part", "part", "zeros")

    def _sizes(self):
        return (int(self.random.integers(9, 40)),)

    def _head(self, kind):
        if kind == "map":
            return nn.Conv1d(self.shapes[-1][0], 4, 1)
        self._finish()
        channels, length = self.shapes[-1]
        to_rows = [Call(torch.mean, 2), Call(torch.amax, -1), Call(lambda x: x.mean(dim=(-1,))),
                   nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten()),
                   Call(lambda x: F.adaptive_max_pool1d(x, 1).squeeze(-1))]
        if length <= 40 and self._one_of(True, False):
            channels *= length
            to_rows = [nn.Flatten(), Call(lambda x: x.view(x.size(0), -1))]
        layers = [nn.Linear(channels, 5)]
        if kind == "hidden":
            layers = [nn.Linear(channels, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5)]
        return nn.Sequential(self._one_of(*to_rows), *layers)

    def _try(self, name, module, source):
        """Add it if the sequence is long enough."""
        try:
            self._add(name, module, module.eval()(torch.zeros(1, *self.shapes[source])).shape[1:], source)
        except RuntimeError:
            return
        module.train()

    def _conv(self, source, c, length):
        kernel, stride, dilation = self._one_of(1, 3, 3, 4, 7), self._one_of(1, 1, 1, 2), self._one_of(1, 1, 1, 2)
        groups = self._one_of(1, 1, 1, c if c > 1 else 1)
        out = groups * self._one_of(1, 2) if groups > 1 else self._one_of(3, 8, 17)
        padding = self._one_of(0, 1, kernel // 2, "same") if stride == 1 and kernel > 1 else 0
        if padding == "same" and not self.dilated_same:
            dilation = 1
        conv = nn.Conv1d(c, out, kernel, stride, padding, dilation, groups, bias=self._one_of(True, False))
        self._try("conv", Functional(conv) if dilation == groups == 1 and padding == 0 and self._one_of(True, False) else conv,
                  source)

    def _norm(self, source, c, length):
        if c > 1:
            self._add("norm", nn.BatchNorm1d(c), (c, length), source)

    def _relu(self, source, c, length):
        self._add("relu", self._one_of(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), Call(torch.relu)), (c, length), source)

    def _leaky(self, source, c, length):
        super()._leaky(source, c, 1, length)
        self.shapes[-1] = (c, length)

    def _affine(self, source, c, length):
        self._add("affine", self._one_of(Scale(c, 1), Call(torch.mul, -0.7), Call(torch.add, 0.25), Call(lambda x: 1 - x)),
                  (c, length), source)

    def _sum(self, source, c, length):
        same = [i for i, shape in enumerate(self.shapes) if shape == (c, length)]
        combine = self._one_of(torch.add, torch.sub, lambda x, y: torch.add(x, y, alpha=0.5))
        self._add("sum", Call(combine), (c, length), source, self._one_of(*same))

    def _pool(self, source, c, length):
        pool = self._one_of(nn.MaxPool1d(2), nn.MaxPool1d(3, 2, 1), nn.MaxPool1d(2, ceil_mode=True), nn.AvgPool1d(2),
                            nn.AvgPool1d(3, 1, 1), Call(F.max_pool1d, 3, 1), Call(F.avg_pool1d, 3, 2),
                            Call(lambda x: F.max_pool1d(x, kernel_size=2)), nn.ConstantPad1d((1, 0), 0))
        if isinstance(pool, nn.ConstantPad1d):
            pool = nn.Sequential(pool, nn.Conv1d(c, 6, 3))
        if self._one_of(*[False] * 7, True):
            pool = self._one_of(nn.AdaptiveMaxPool1d(1), nn.AdaptiveAvgPool1d(1), Call(lambda x: x.mean(-1, keepdim=True)))
        self._try("pool", pool, source)

    def _pad(self, source, c, length):
        self._try("pad", nn.Sequential(nn.ZeroPad1d((2, 1)), nn.Conv1d(c, 6, 4, 2)), source)

    def _part(self, source, c, length):
        if length >= 6:
            part = self._one_of(lambda x: x[:, :, 2:-1], lambda x: x[:, :, ::2], lambda x: x[..., 1:x.shape[2] - 2],
                                lambda x: x[:, :, 1::3], lambda x: x[:, :, -2:])
            self._try("part", Call(part), source)

    def _zeros(self, source, c, length):
        self._try("zeros", Call(F.pad, (0, 0, 1, 2)), source)

    def _concat(self, source, c, length):
        same = [i for i, shape in enumerate(self.shapes) if shape[1:] == (length,)]
        parts = [source, self._one_of(*same)]
        channels = sum(self.shapes[part][0] for part in parts)
        if channels <= 40:
            self._add("concat", Call(lambda *tensors: torch.cat(tensors, -2)), (channels, length), *parts)

    def _channels(self, source, c, length):
        if c >= 4:
            self._add("channels", Call(mixed), (c, length), source)
            self._add("channels", Call(lambda x, n: x[:, 1:n], c - 1), (c - 2, length), len(self.shapes) - 1)

    def _split(self, source, c, length):
        if c % 2 == 0:
            self._add("split", Call(self._one_of(parted, shuffled)), (c, length), source)

    def _upsample(self, source, c, length):
        if length <= 40:
            self._add("upsample", nn.Upsample(scale_factor=2), (c, 2 * length), source)

    def _like(self, source, c, length):
        larger = [i for i, shape in enumerate(self.shapes) if shape[1] % length == 0 and i]
        other = self._one_of(*larger)
        self._add("like", Call(lambda x, y: F.interpolate(x, size=y.shape[2:])), (c, self.shapes[other][1]), source, other)

    def _again(self, source, c, length):
        known = [i for i, step in enumerate(self.steps) if isinstance(step, nn.Conv1d | nn.ReLU | nn.LeakyReLU | nn.PReLU)
                 and self.shapes[self.sources[i][0]][0] == c]
        if known:
            self._try("again", self.steps[self._one_of(*known)], source)

    def _dropout(self, source, c, length):
        self._add("dropout", self._one_of(nn.Dropout(), nn.Dropout1d(), nn.Identity()), (c, length), source)

    def _finish(self):
        read = {source for sources in self.sources for source in sources}
        loose = [i for i in range(1, len(self.shapes)) if i not in read]
        if len(loose) > 1:
            for i in loose:
                self._add("pool", nn.AdaptiveAvgPool1d(1), (self.shapes[i][0], 1), i)
            parts = range(len(self.shapes) - len(loose), len(self.shapes))
            self._add("concat", Call(lambda *tensors: torch.cat(tensors, 1)),
                      (sum(self.shapes[part][0] for part in parts), 1), *parts)
