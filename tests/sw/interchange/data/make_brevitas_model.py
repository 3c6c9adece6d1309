"""Makes brevitas_residual.onnx, a QONNX file by another tool for tests/sw/interchange/test_brevitas.py.

Brevitas is no dependency of this project, so the file is committed. It was made in an environment of its own with
Brevitas 0.13.4, torch 2.13.0, onnx 1.23.2, onnxoptimizer, qonnx 1.0.0 and scikit-learn 1.9.1:

    python tests/sw/interchange/data/make_brevitas_model.py tests/sw/interchange/data/brevitas_residual.onnx

The network takes (1, 1, 8, 8) images of scikit-learn's digits, pixel / 255. It is trained for a few epochs on the first
1437 of them; the tests look at the other 360. It holds what Brevitas users have: an 8-bit input quantizer, 4-bit weights
by channel and by tensor, batch norms, a residual sum of two tensors of one quantizer, e2m1 floating-point weights (the
values of ESB(4,1)), and an output that nothing quantizes.
"""

import sys

import brevitas.nn as qnn
import torch
from brevitas.export import export_qonnx
from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat
from brevitas.quant.float_base import FloatWeightBase, ScaledFloatWeightBase
from brevitas.quant.float_quant_ocp import FpOCPWeight
from sklearn.datasets import load_digits
from torch import nn


class E2M1Weight(FpOCPWeight, ScaledFloatWeightBase, FloatWeightBase):
    """Sign, two exponent bits, one mantissa bit, one scale."""

    bit_width = 4
    exponent_bit_width = 2
    mantissa_bit_width = 1


class Block(nn.Module):
    """relu(q(x) + q(bn(conv(relu(bn(conv(x))))))): one quantizer q for both, as Brevitas asks for."""

    def __init__(self, width: int, sum_quantizer):
        super().__init__()
        weights = dict(kernel_size=3, padding=1, bias=False, weight_quant=Int8WeightPerChannelFloat, weight_bit_width=4)
        self.conv1, self.norm1 = qnn.QuantConv2d(width, width, **weights), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = qnn.QuantConv2d(width, width, **weights), nn.BatchNorm2d(width)
        self.relu1 = qnn.QuantReLU(bit_width=4)
        self.relu2 = qnn.QuantReLU(bit_width=4)
        self.quantizer = sum_quantizer

    def forward(self, x):
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.quantizer(self.norm2(self.conv2(y))) + self.quantizer(x))


class Network(nn.Module):
    """(n, 1, 8, 8) -> (n, 10)."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.image = qnn.QuantIdentity(bit_width=8)
        self.conv = qnn.QuantConv2d(1, width, 3, padding=1, bias=False, weight_quant=Int8WeightPerTensorFloat,
                                    weight_bit_width=4)
        self.norm = nn.BatchNorm2d(width)
        self.relu = qnn.QuantReLU(bit_width=4)
        self.block = Block(width, qnn.QuantIdentity(bit_width=4))
        self.pool = nn.MaxPool2d(2)
        self.wide = qnn.QuantConv2d(width, 2 * width, 3, bias=False, weight_quant=E2M1Weight)
        self.wide_norm, self.wide_relu = nn.BatchNorm2d(2 * width), qnn.QuantReLU(bit_width=4)
        self.linear = qnn.QuantLinear(8 * width, 10, bias=True, weight_quant=Int8WeightPerTensorFloat,
                                      weight_bit_width=4)

    def forward(self, x):
        x = self.block(self.relu(self.norm(self.conv(self.image(x)))))
        x = self.wide_relu(self.wide_norm(self.wide(self.pool(x))))
        return self.linear(torch.flatten(x, 1))


def main(path: str) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] * 255 // 16 / 255, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(15):
        model.train()
        for batch in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (model(images[1437:]).argmax(1) == labels[1437:]).float().mean()
    print(f"top-1 on 360 images: {100 * right:.2f} %")
    export_qonnx(model, args=images[:1], export_path=path, opset_version=17, dynamo=False)


if __name__ == "__main__":
    main(sys.argv[1])
