"""How near a quantized network stays to the real one, on pictures that did not calibrate it."""

import json

import numpy as np
import pytest
import torch

from esbflow.networks.registry import network
from esbflow.quant.recipe import Recipe
from esbflow.training import fidelity
from esbflow.training.post_training import PostTraining

Image = pytest.importorskip("PIL.Image")


def test_noise_is_counted_in_decibels_and_answers_in_percent():
    wanted = np.array([[3.0, 4.0], [0.0, 5.0]])
    assert fidelity.compare(wanted, wanted)["agreement"] == 100.0
    assert fidelity.compare(wanted, wanted * 0.9) == {"sqnr_db": 20.0, "agreement": 100.0}
    assert fidelity.compare(wanted, wanted[:, ::-1])["agreement"] == 0.0
    assert fidelity.compare(wanted, 0 * wanted)["sqnr_db"] == 0.0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(checkpoint, folder of pictures): a small network with random weights, four pictures of two classes."""
    folder = tmp_path_factory.mktemp("fidelity")
    torch.manual_seed(0)
    model = network("resnet20")()
    torch.save(model.state_dict(), folder / "weights.pth")
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / "pictures" / label).mkdir(parents=True)
        for index in range(2):
            picture = Image.fromarray(random.integers(0, 256, (224, 224, 3), dtype=np.uint8))
            picture.resize((32, 32)).resize((256, 256)).save(folder / "pictures" / label / f"{index}.png")
    return folder / "weights.pth", folder / "pictures"


def test_pictures_are_on_one_side_only(files, monkeypatch):
    calibrated, tested = [], []
    trained, executed = fidelity.post_train, fidelity.execute
    monkeypatch.setattr(fidelity, "post_train", lambda *a: calibrated.append(a[2]) or trained(*a))
    monkeypatch.setattr(fidelity, "execute", lambda graph, images: tested.append(images) or executed(graph, images))
    result = fidelity.measure("resnet20", *files, ["0.png"], Recipe(weights="s8", activations="u8"), PostTraining())
    assert (result["images"], result["calibration_images"]) == (2, 2)
    assert not any(np.array_equal(a, b) for a in calibrated[0] for b in tested[0])
    assert result["sqnr_db_integer_graph"] > 25 and result["sqnr_db_fake_quantization"] > 25, "eight bits keep a network"
    assert result["agreement_integer_graph"] == 100


@pytest.mark.parametrize("patterns", [["*.png"], ["nothing"]])
def test_one_side_without_a_picture_is_refused(files, patterns):
    with pytest.raises(ValueError, match=r"^of 4 pictures [04] match .*; some must, and some not$"):
        fidelity.measure("resnet20", *files, patterns, Recipe(), PostTraining())


def test_the_record_holds_the_command_that_makes_it_again(files, tmp_path, capsys):
    checkpoint, pictures = files
    fidelity.main(["resnet20", str(checkpoint), str(pictures), "--test", "0.png", "--weights", "s8", "--activations", "u8",
                   "--rounding", "nearest", "--results", str(tmp_path / "record.json")])
    written = json.loads((tmp_path / "record.json").read_text())
    assert written == json.loads(capsys.readouterr().out)
    assert written["command"].startswith("python -m esbflow.training.fidelity resnet20 weights.pth pictures --test '0.png'")
    assert "--rounding nearest" in written["command"] and str(tmp_path) not in written["command"]
