"""A network trained on scikit-learn's digits and quantized by onnxruntime: the import against what onnxruntime computes.

Differences come from 12-bit multipliers (relative error 2**-12 at most) and from ties. They are bounded here and stated in
docs/interchange.md.
"""

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from esbflow.graph import ir
from esbflow.graph.execute import execute
from esbflow.interchange.onnx_file import GraphError
from esbflow.interchange.onnx_import import import_onnx
from tests.sw.interchange.models import Model, quantize_by_onnxruntime, real, run_onnxruntime


class Network(nn.Module):
    """(n, 1, 8, 8) -> (n, 10), with a residual sum and both pools."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.wide, self.last = nn.Conv2d(8, 24, 3), nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.third(torch.relu(self.second(x))))
        x = torch.relu(self.wide(nn.functional.max_pool2d(x, 2)))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    return (found.images[:, None] * 255 // 16).astype(np.uint8), found.target


@pytest.fixture(scope="module")
def model(digits):
    """The trained network as float32 ONNX."""
    torch.manual_seed(0)
    images, labels = torch.tensor(real(digits[0][:1437])), torch.tensor(digits[1][:1437])
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(12):
        for batch in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    network.eval()
    p = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    m = Model(("n", 1, 8, 8))

    def conv(x, name, **options):
        return m.add("Conv", x, p[f"{name}.weight"], p[f"{name}.bias"], name=name, **options)

    x = conv("image", "first", pads=[1] * 4)
    x = m.add("Relu", m.add("BatchNormalization", x, *(p[f"norm.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))))
    y = m.add("Relu", conv(x, "second", pads=[1] * 4))
    x = m.add("Relu", m.add("Add", conv(y, "third", pads=[1] * 4), x, name="sum"))
    x = m.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], name="pool")
    x = m.add("Flatten", m.add("GlobalAveragePool", m.add("Relu", conv(x, "wide")), name="mean"))
    return m.proto(m.add("Gemm", x, p["last.weight"], p["last.bias"], transB=1, name="last"))


def quantized(model, digits, folder, symmetric=True, per_channel=True, prepared=True):
    """Path of the model in QDQ format."""
    source, target = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), source)
    quantize_by_onnxruntime(source, target, real(digits[0][:100]), per_channel, symmetric, prepared)
    return target


@pytest.mark.parametrize("per_channel, prepared", [(True, True), (False, True), (True, False)])
def test_a_statically_quantized_network_agrees(model, digits, tmp_path, per_channel, prepared):
    path = quantized(model, digits, tmp_path, per_channel=per_channel, prepared=prepared)
    graph = import_onnx(path)
    pixels, labels = digits[0][1437:], digits[1][1437:]
    expected = run_onnxruntime(onnx.load(path), real(pixels))
    levels = execute(graph, pixels).reshape(len(pixels), -1)
    steps = np.abs(levels - np.rint(expected / graph.output.scale))
    agreement = (levels.argmax(1) == expected.argmax(1)).mean()
    print(f"output values that differ: {100 * (steps > 0).mean():.2f} %, at most {steps.max():.0f} of 256 steps; same top-1 on "
          f"{100 * agreement:.2f} % of {len(pixels)} images; top-1 {100 * (levels.argmax(1) == labels).mean():.2f} % and "
          f"{100 * (expected.argmax(1) == labels).mean():.2f} %")
    assert agreement >= 0.99
    assert steps.max() <= 3 and (steps > 0).mean() <= 0.35


def test_each_layer_is_at_most_one_step_off(model, digits, tmp_path):
    """onnxruntime runs each layer on the integers that the graph gives it, so that differences do not add up."""
    path = quantized(model, digits, tmp_path)
    graph, proto = import_onnx(path), onnx.load(path)
    pixels = digits[0][1437:1537]
    makers = {node.output[0]: node for node in proto.graph.node}

    def tensor_after(name):
        """Output of the DequantizeLinear that follows a layer and its ReLU; a pool's own output."""
        tensor = next(node.output[0] for node in proto.graph.node if name in (node.name, node.output[0]))
        while not isinstance(graph[name], ir.MaxPool2d) and makers[tensor].op_type != "DequantizeLinear":
            tensor = next(node.output[0] for node in proto.graph.node if tensor in node.input)
        relu = next((node for node in proto.graph.node if node.op_type == "Relu" and tensor in node.input), None)
        if relu is None:
            return tensor
        return next(n.output[0] for n in proto.graph.node if n.input[0] == f"{relu.output[0]}_QuantizeLinear_Output")

    tensors = execute(graph, pixels, keep=True)
    whole, checked = onnx.shape_inference.infer_shapes(proto), 0
    for node in graph.nodes[1:]:
        inputs = [(graph[source], tensor_after(source) if source != "input" else next(
            n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in makers))
            for source in node.inputs]
        part = onnx.utils.Extractor(whole).extract_model([tensor for _, tensor in inputs], [tensor_after(node.name)])
        values = {tensor: (tensors[source.name] * source.scale).astype(np.float32) for source, tensor in inputs}
        expected = np.rint(run_onnxruntime(part, values) / node.scale).reshape(tensors[node.name].shape)
        difference = np.abs(tensors[node.name] - expected)
        print(f"{node.name}: {100 * (difference > 0).mean():.2f} % differ, at most {difference.max():.0f}")
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02
        checked += 1
    assert checked >= 7


def test_layers_keep_their_names_and_kinds(model, digits, tmp_path):
    graph = import_onnx(quantized(model, digits, tmp_path))
    kinds = {node.name: type(node) for node in graph.nodes}
    assert kinds["second"] is ir.Conv2d and kinds["sum"] is ir.Add and kinds["pool"] is ir.MaxPool2d
    assert kinds["mean"] is ir.AvgPool2d and kinds["last"] is ir.Linear


def test_asymmetric_activations_are_refused_by_name(model, digits, tmp_path):
    with pytest.raises(GraphError, match=r"QuantizeLinear node '\w+_QuantizeLinear': its zero point gives the levels "
                                         r"-?\d+..\d+, which the engine does not have; .*ActivationSymmetric=True"):
        import_onnx(quantized(model, digits, tmp_path, symmetric=False))


def test_a_network_padded_as_keras_does_agrees(tmp_path):
    """ResNet's stem with zeros of their own, then MobileNet's strided depthwise convolution, padded at the end alone."""
    random, m = np.random.default_rng(0), Model(("n", 3, 21, 22))

    def conv(x, out, channels, kernel, name, **options):
        weight = random.standard_normal((out, channels, kernel, kernel)) / np.sqrt(channels) / kernel
        return m.add("Conv", x, weight, random.standard_normal(out) / 4, name=name, **options)

    def pad(x, *zeros):
        top, left, bottom, right = zeros
        return m.add("Pad", x, np.int64([0, 0, top, left, 0, 0, bottom, right]))

    x = m.add("Relu", conv(pad("image", 3, 3, 3, 3), 8, 3, 7, "stem", strides=[2, 2]))
    x = m.add("MaxPool", pad(x, 1, 1, 1, 1), kernel_shape=[3, 3], strides=[2, 2], name="pool")
    x = m.add("Clip", conv(x, 8, 1, 3, "depthwise", strides=[2, 2], group=8, auto_pad="SAME_UPPER"), np.float32(0), np.float32(6))
    x = m.add("Relu", conv(pad(x, 0, 0, 1, 1), 8, 8, 2, "uneven"))
    x = m.add("Flatten", m.add("GlobalAveragePool", x, name="mean"))
    float_model = m.proto(m.add("Gemm", x, random.standard_normal((10, 8)), transB=1, name="last"))
    pixels = random.integers(0, 256, (150, 3, 21, 22), dtype=np.uint8)
    path = quantized(float_model, (pixels, None), tmp_path)
    graph = import_onnx(path)
    assert graph["depthwise"].padding == (0, 0) and graph["depthwise"].behind(graph["pool"].shape) == (1, 1)
    assert [type(node).__name__ for node in graph.nodes] == ["Input", "Conv2d", "MaxPool2d", "Conv2d", "Conv2d", "AvgPool2d",
                                                             "Linear"]
    expected = run_onnxruntime(onnx.load(path), real(pixels[100:]))
    steps = np.abs(execute(graph, pixels[100:]).reshape(50, -1) - np.rint(expected / graph.output.scale))
    print(f"output values that differ: {100 * (steps > 0).mean():.2f} %, at most {steps.max():.0f} of 256 steps")
    assert steps.max() <= 3 and np.abs(expected).max() > 50 * graph.output.scale


def test_a_detector_with_leaky_relus_agrees(tmp_path):
    """As YOLOv3-tiny is built: leaky ReLUs throughout, max pools, and maps that are repeated and joined with larger ones."""
    random, m = np.random.default_rng(1), Model(("n", 3, 16, 24))

    def conv(x, out, channels, kernel, name, **options):
        weight = random.standard_normal((out, channels, kernel, kernel)) * np.sqrt(2 / channels) / kernel
        x = m.add("Conv", x, weight, random.standard_normal(out) / 4, name=name, pads=[kernel // 2] * 4)
        return m.add("LeakyRelu", x, name=f"{name}_leaky", alpha=0.1)

    x = m.add("MaxPool", conv("image", 8, 3, 3, "first"), kernel_shape=[2, 2], strides=[2, 2], name="pool1")
    route = conv(x, 16, 8, 3, "second")
    x = m.add("MaxPool", route, kernel_shape=[2, 2], strides=[2, 2], name="pool2")
    x = conv(conv(x, 24, 16, 3, "third"), 8, 24, 1, "narrow")
    x = m.add("Resize", x, "", np.float32([1, 1, 2, 2]), mode="nearest", coordinate_transformation_mode="asymmetric",
              nearest_mode="floor")
    x = conv(m.add("Concat", x, route, axis=1), 16, 24, 3, "joined")
    head = m.add("Conv", x, random.standard_normal((18, 16, 1, 1)) / 4, name="head")
    pixels = random.integers(0, 256, (60, 3, 16, 24), dtype=np.uint8)
    path = quantized(m.proto(head), (pixels, None), tmp_path)
    graph = import_onnx(path)
    kinds = [type(node).__name__ for node in graph.nodes]
    assert kinds.count("Add") == 5 and kinds.count("Conv2d") == 6
    expected = run_onnxruntime(onnx.load(path), real(pixels[20:]))
    steps = np.abs(execute(graph, pixels[20:]) - np.rint(expected / graph.output.scale))
    print(f"output values that differ: {100 * (steps > 0).mean():.2f} %, at most {steps.max():.0f} of 256 steps")
    assert steps.max() <= 3 and np.abs(expected).max() > 50 * graph.output.scale
