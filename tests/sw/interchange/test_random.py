"""Random torch models, exported by torch and quantized by onnxruntime: the import against what onnxruntime computes."""

import re
import warnings

import onnx
import pytest
import torch

from esbflow.graph.errors import GraphError
from esbflow.graph.execute import execute
from esbflow.interchange.onnx_import import import_onnx
from tests.sw.exported_models import distance, images_for, randomise_norms
from tests.sw.interchange.models import quantize_by_onnxruntime, real, run_onnxruntime
from tests.sw.random_models import RandomModel
from tests.sw.random_sequences import RandomSequenceModel

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
REFUSED = {50: "Sub node '/steps.3/Sub': it follows a ReLU, PRelu, Clip, MaxPool or Resize that is not quantized; put a quantizer",
           91: "AveragePool node '/steps.9/AveragePool': its input is not quantized; put a quantizer before it"}
"""Where onnxruntime, which does not quantize a difference, leaves two operators that the engine cannot do in one go."""


def quantized(seed: int, folder, kind=RandomModel):
    """(path of the QDQ file, images) of a random model."""
    model = kind(seed, dilated_same=False)
    images, source, target = images_for(model.shape, 12, seed), str(folder / "float.onnx"), folder / "quantized.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is an old one
        torch.onnx.export(randomise_norms(model, images, seed).eval(), (torch.zeros(1, *model.shape),), source,
                          input_names=["image"], dynamic_axes={"image": {0: "n"}}, dynamo=False)
    quantize_by_onnxruntime(source, target, real(images), per_channel=bool(seed % 2))
    return target, images


@pytest.mark.parametrize("kind, seed", [(RandomModel, seed) for seed in range(24)]
                         + [(RandomSequenceModel, seed) for seed in (*range(16), 37)])
def test_random_models_agree_with_onnxruntime(kind, seed, tmp_path):
    path, images = quantized(seed, tmp_path, kind)
    graph = import_onnx(path)
    expected = run_onnxruntime(onnx.load(path), real(images))
    found = execute(graph, images).reshape(expected.shape) * graph.output.scale
    assert distance(found, expected, graph.output.scale) < 0.06


@pytest.mark.parametrize("kind, seed, sentence", [(RandomModel, *item) for item in REFUSED.items()])
def test_what_has_no_integer_form_is_refused(kind, seed, sentence, tmp_path):
    path, _ = quantized(seed, tmp_path, kind)
    with pytest.raises(GraphError, match="^" + re.escape(sentence)):
        import_onnx(path)
