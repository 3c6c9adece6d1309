"""Random QONNX networks of few bits, as Brevitas exports them, against qonnx: convolutions with any scales and norms, signs,
pools, truncations and concatenations, but no sums, whose thresholds no b can make exact."""

import numpy as np
import pytest

from esbflow.compiler.pipeline import compile_graph
from esbflow.engines import ENGINES
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from tests.compiler.machine import Machine
from tests.sw.interchange.models import QONNX, Model, imported, random_pixels, real, run_qonnx

SEEDS = 24


class LowBits:
    """A network that grows by random steps; every tensor of `stored` is quantized, (name, (c, h, w), bits)."""

    def __init__(self, seed: int, most_bits: int):
        self.random, self.most_bits = np.random.default_rng((41, seed)), most_bits
        size = int(self.random.integers(5, 10))
        self.model = Model((1, 2, size, size))
        image = self._quantized("image", (2, size, size), bool(self.random.integers(2)), int(self.random.integers(1, 9)))
        self.stored = [image]
        for _ in range(5):
            step = self.random.choice(["conv", "conv", "conv", "max", "average", "concat"])
            self.stored.append(getattr(self, f"_{step}")(*self._one_of(self.stored[-2:])))
        name, shape, _ = self.stored[-1]
        rows = self.model.add("Flatten", name, axis=1)
        x = self.model.add("MatMul", rows, self._weights(5, int(np.prod(shape))))
        x = self.model.add("Add", x, self.random.normal(size=5).astype(np.float32))  # sums of zero are ties
        self.output = self._quantized(x, (5,), False, None)[0]

    def _one_of(self, options: list):
        return options[self.random.integers(len(options))]

    def _weights(self, out: int, *shape) -> str:
        """By channel or tensor; the last two axes of a matrix are (in, out)."""
        matrix, per_channel = len(shape) == 1, bool(self.random.integers(2))
        values = self.random.normal(size=(*shape, out) if matrix else (out, *shape))
        sizes = ((1, out) if matrix else (out, 1, 1, 1)) if per_channel else (1,)
        scale = self.random.uniform(0.2, 1.0, sizes).astype(np.float32)
        if self.random.random() < 0.4:
            return self.model.add("BipolarQuant", values, scale, domain=QONNX)
        bits = int(self.random.integers(2, 5))
        return self.model.add("Quant", values, scale, np.float32(0), np.float32(bits), domain=QONNX, signed=1,
                              narrow=int(self.random.integers(2)), rounding_mode="ROUND")

    def _quantized(self, value: str, shape: tuple, rectified: bool, bits: int | None) -> tuple:
        bits = bits or int(self.random.integers(1, self.most_bits + 1))
        scale = float(self.random.uniform(0.3, 1.2)) * (8 / 2**bits if value != "image" else 1 / 2**bits)
        if rectified:
            return self.model.quant(self.model.add("Relu", value), scale, bits, signed=0), shape, bits
        if bits == 1:
            return self.model.add("BipolarQuant", value, np.float32(scale), domain=QONNX), shape, 1
        return self.model.quant(value, scale, bits, narrow=int(self.random.integers(2))), shape, bits

    def _conv(self, value, shape, bits):
        c, h, w = shape
        kernel, stride, pad = self._one_of([1, 3]), self._one_of([1, 1, 2]), self._one_of([0, 1])
        if min(h, w) + 2 * pad < kernel:
            pad = 1
        groups = self._one_of([1, 1, c])
        out = groups * int(self.random.integers(1, 9)) if groups == 1 else groups
        weight = self._weights(out, c // groups, kernel, kernel)
        x = self.model.add("Conv", value, weight, pads=[pad] * 4, strides=[stride] * 2, group=groups,
                           kernel_shape=[kernel] * 2)
        norm = (self.random.uniform(0.3, 2, out) * self.random.choice((-1, 1), out), self.random.normal(size=out),
                self.random.normal(size=out), self.random.uniform(0.5, 9, out))
        x = self.model.add("BatchNormalization", x, *(values.astype(np.float32) for values in norm))
        sides = [(size + 2 * pad - kernel) // stride + 1 for size in (h, w)]
        return self._quantized(x, (out, *sides), bool(self.random.integers(2)), None)

    def _max(self, value, shape, bits):
        c, h, w = shape
        if min(h, w) < 2:
            return value, shape, bits
        return self.model.add("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2]), (c, h // 2, w // 2), bits

    def _average(self, value, shape, bits):
        """A mean of two or four, cut to fewer bits of a scale that has nothing to do with that of its input."""
        c, h, w = shape
        if min(h, w) < 2:
            return value, shape, bits
        x = self.model.add("AveragePool", value, kernel_shape=[2, 2], strides=[2, 2])
        scale, out = float(self.random.uniform(0.05, 0.3)), int(self.random.integers(2, self.most_bits + 1))
        power = int(self.random.integers(0, 3))
        x = self.model.add("Trunc", x, *np.float32([scale, 0, 8, scale * 2**power, out]), domain=QONNX, signed=1, narrow=0,
                           rounding_mode="FLOOR")
        return x, (c, h // 2, w // 2), out

    def _concat(self, value, shape, bits):
        alike = [(name, other, more) for name, other, more in self.stored if other[1:] == shape[1:]]
        name, other, more = self._one_of(alike)
        return self.model.add("Concat", value, name, axis=1), (shape[0] + other[0], *shape[1:]), max(bits, more)


@pytest.mark.parametrize("most_bits", [2, 4])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_low_bit_networks_are_equal(seed, most_bits):
    """Of 600 seeds with up to four bits four differed, each behind a concatenation of scales that no 8 bits hold."""
    network = LowBits(seed, most_bits)
    proto = network.model.proto(network.output)
    try:
        graph = imported(proto)
    except GraphError as error:
        assert "pixels become 1 of the input's 2 codes" in str(error), "a random scale of one bit may leave one code"
        return
    pixels = random_pixels(network.random, 6, *network.model.shape[1:])
    found = run_qonnx(proto, real(pixels))[network.output]
    integers = execute(graph, pixels)
    assert np.array_equal(np.rint(found / graph.output.scale), integers.reshape(found.shape))
    program = compile_graph(graph, ENGINES["base16x16"], 2)
    assert np.array_equal(Machine(program).run(pixels[:2]), integers[:2])
