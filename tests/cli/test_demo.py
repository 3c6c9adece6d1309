"""Parts of the demo that need neither synthesis nor the simulator."""

from esbflow.commands.demo import _top1_on
from esbflow.graph.file import load
from esbflow.training.api import train_network
from esbflow.training.data import load_images


def test_the_three_accuracies_are_those_of_the_training_on_the_same_images(tmp_path):
    metrics = train_network("digits", tmp_path, epochs=2, progress=False)
    images, labels = load_images("digits", "test")
    found = _top1_on(tmp_path, load(tmp_path / "graph.npz"), images, labels)
    assert found == {name: metrics[name] for name in ("float_top1", "fake_quant_top1", "graph_top1")}
    assert min(found.values()) > 20  # of ten classes, after two epochs


def test_a_graph_without_its_models_has_the_accuracy_of_the_integers_only(tmp_path):
    metrics = train_network("digits", tmp_path, epochs=1, progress=False)
    images, labels = load_images("digits", "test")
    (tmp_path / "model.pt").unlink()
    found = _top1_on(tmp_path, load(tmp_path / "graph.npz"), images, labels)
    assert found == {"float_top1": None, "fake_quant_top1": None, "graph_top1": metrics["graph_top1"]}
