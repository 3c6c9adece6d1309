"""A wrong range of pixels and dead layers are refused or said, wherever a graph comes from."""

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.cli import main
from esbflow.graph.doubts import GraphWarning, doubts, unmoved
from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.graph.file import load, save
from esbflow.graph.random import KINDS, LOOKUP_KINDS, random_graph, random_images
from esbflow.networks.digits import DigitsNet
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training.loop import calibrate
from tests.sw.exported_models import calibrated, images_for
from tests.sw.interchange.models import Model, imported

SHAPE = (1, 8, 8)


def network(scale: float, quantized: bool = True):
    """ONNX model whose input has codes of `scale`, or none of its own; its ReLU was calibrated on pixels of 0..255."""
    m, random = Model((1, 1, 8, 8)), np.random.default_rng(0)
    x = m.qdq("image", scale, np.uint8(0)) if quantized else "image"
    weight = np.rint(random.normal(0, 40, (4, 1, 3, 3))).clip(-127, 127) * 0.01
    x = m.add("Relu", m.add("Conv", x, m.qdq(m.constant(weight), 0.01, np.int8(0)), name="conv", kernel_shape=[3, 3]))
    return m.proto(m.qdq(x, 4.0, np.uint8(0)))


def test_an_onnx_model_of_pixels_to_255_is_refused_without_its_range():
    for scale, given, codes in ((1.0, {}, 2), (3.0, {}, 1), (1 / 255, {"pixel_max": 255}, 2),
                                (1.0, {"mean": 128.0, "std": 64.0}, 1)):
        with pytest.raises(GraphError, match=rf"^pixels become {codes} of the input's 256 codes: the model takes another range; "
                                             r"give --pixel-max 255 \(pixel_max\) if it was trained on pixels of 0\.\.255, or "
                                             r"its --mean and --std$"):
            imported(network(scale), **given)
    for scale, given in ((1.0, {"pixel_max": 255}), (1 / 255, {})):
        assert len(np.unique(imported(network(scale), **given).input.table)) == 256


def test_an_input_without_codes_of_its_own_shows_its_range_in_the_first_layer():
    with pytest.warns(GraphWarning, match="conv: it stores the same whatever the image is"):
        imported(network(1.0, quantized=False))
    assert not doubts(imported(network(1.0, quantized=False), pixel_max=255))


@pytest.mark.filterwarnings("error")
def test_a_sound_network_raises_no_doubt():
    images = images_for(SHAPE, 16)
    graph = export(calibrate(quantize(DigitsNet(), Recipe(mean=0.13, std=0.3)), images), "digits", SHAPE)
    assert doubts(graph) == unmoved(graph, images) == []


class Dead(nn.Module):
    """Nothing gets through its second ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)
        nn.init.constant_(self.conv2.bias, -1e4)

    def forward(self, x):
        return self.last(torch.relu(self.conv2(torch.relu(self.conv1(x)))))


def test_a_dead_layer_is_said_by_loops_exports_files_and_commands(tmp_path, capsys):
    with pytest.warns(GraphWarning, match="^activation conv2 has been zero for all images: the layer is dead$"):
        model = calibrated(Dead(), Recipe(), SHAPE)
    with pytest.warns(GraphWarning, match="^conv2: it stores the same whatever the image is; the layer is dead"):
        graph = export(model, "dead", SHAPE)
    path = save(graph, tmp_path / "graph.npz")
    with pytest.warns(GraphWarning, match="^conv2: "):
        load(path)
    np.savez(tmp_path / "images.npz", images=images_for(SHAPE, 4))
    for command in (["inspect", path], ["estimate", path], ["run", path, "--data", tmp_path / "images.npz"]):
        assert main([str(word) for word in command]) == 0
        error = capsys.readouterr().err
        assert error.count(f"esbflow {command[0]}: warning: conv2: it stores the same whatever the image is") == 1
        assert ("the same is stored for all of 4 images in conv2, last" in error) == (command[0] == "run")


def test_images_of_another_range_are_said_when_they_are_run():
    images = images_for(SHAPE, 16)
    graph = export(calibrate(quantize(DigitsNet(), Recipe()), images), "digits", SHAPE)
    assert unmoved(graph, images) == []
    dark = (images > 128).astype(np.uint8)  # 0 and 1 in place of 0 and 255
    assert "digits: the same is stored for all of 8 images in conv1, " in unmoved(graph, dark)[0]
    assert unmoved(graph, images[:1]) == unmoved(graph, np.zeros_like(images)) == []


@pytest.mark.parametrize("seed", range(20))
def test_what_is_called_dead_is_dead(seed):
    random = np.random.default_rng(seed)
    graph = random_graph(random, kinds=LOOKUP_KINDS if seed % 2 else KINDS)
    values = execute(graph, random_images(random, graph, 4), keep=True)
    for sentence in doubts(graph):
        name = sentence.split(":")[0]
        assert name == graph.name or (values[name] == values[name][:1]).all()
