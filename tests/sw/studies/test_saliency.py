"""Saliency: data and their errors, losses, measures, integers against fake quantization, the command."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from esbflow import cli
from esbflow.graph.execute import execute
from esbflow.networks.unet import UNet
from esbflow.quant.export import export
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.studies import saliency
from esbflow.studies.saliency import record_name
from esbflow.studies.saliency_data import list_pairs, load_saliency
from esbflow.studies.saliency_measures import graph_maps, measure, network_maps
from esbflow.training.augment import augmented_pair
from esbflow.training.data import DataUnavailable
from esbflow.training.loop import Schedule, train
from esbflow.training.losses import task_loss, teacher_loss

Image = pytest.importorskip("PIL.Image", reason="needs pillow (esbflow[train])")
NEEDS_SOD = pytest.mark.skipif(not __import__("importlib").util.find_spec("py_sod_metrics"),
                               reason="needs PySODMetrics (esbflow[saliency])")
ECSSD = os.path.join(os.environ.get("ESBFLOW_DATA", ""), "ecssd", "masks")


def squares(count: int, size: int = 16, seed: int = 0):
    """Bright squares on noise: uint8 (count, 3, size, size) and their masks (count, 1, size, size)."""
    random = np.random.default_rng(seed)
    images, masks = random.integers(0, 90, (count, 3, size, size), dtype=np.uint8), np.zeros((count, 1, size, size), np.uint8)
    for image, mask in zip(images, masks):
        y, x = random.integers(0, size // 2, 2)
        image[:, y:y + size // 2, x:x + size // 2] += 120
        mask[:, y:y + size // 2, x:x + size // 2] = 255
    return images, masks


def write_pairs(folder, images, masks, names=("images", "masks"), suffix=".png"):
    for name, arrays, ending in zip(names, (images.transpose(0, 2, 3, 1), masks[:, 0]), (suffix, ".png")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, array in enumerate(arrays, 1):
            Image.fromarray(array).save(folder / name / f"{i:04}{ending}")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


# -- data ----------------------------------------------------------------------------------------------------------
def test_every_fifth_picture_is_tested_on(home):
    images, masks = squares(12)
    write_pairs(home / "ecssd", images, masks)
    got, got_masks = load_saliency("test", size=16)
    assert np.array_equal(got, images[[4, 9]]) and np.array_equal(got_masks, masks[[4, 9]])
    got, got_masks = load_saliency("train", 5, size=16)
    assert np.array_equal(got, images[[0, 1, 2, 3, 5]]) and np.array_equal(got_masks, masks[[0, 1, 2, 3, 5]])
    assert got_masks.dtype == got.dtype == np.uint8 and set(np.unique(got_masks)) == {0, 255}


@pytest.mark.parametrize("names", [("images", "ground_truth_mask"), ("Imgs", "Imgs"), ("Image", "GT")])
def test_the_layouts_of_other_saliency_sets_are_read_and_scaled(tmp_path, names):
    images, masks = squares(2, 64)
    write_pairs(tmp_path, images, masks, names, ".jpg")
    pairs = list_pairs(tmp_path)
    assert [path.name for pair in pairs for path in pair] == ["0001.jpg", "0001.png", "0002.jpg", "0002.png"]
    from esbflow.studies.saliency_data import load_pairs

    got, got_masks = load_pairs(pairs, 32)
    assert got.shape == (2, 3, 32, 32) and got_masks.shape == (2, 1, 32, 32)
    assert abs(int((got_masks > 0).sum()) * 4 - int((masks > 0).sum())) < 0.1 * (masks > 0).sum()
    assert set(np.unique(got_masks)) == {0, 255}, "a mask is not blurred by scaling"


def test_pictures_that_are_missing_or_damaged_are_named(home, monkeypatch):
    with pytest.raises(DataUnavailable, match="set ESBFLOW_DATA to a folder that holds ecssd/images and ecssd/masks"):
        load_saliency("test")
    (home / "ecssd" / "images").mkdir(parents=True)
    with pytest.raises(DataUnavailable, match="ecssd needs two folders, images and masks"):
        load_saliency("test")
    (home / "ecssd" / "masks").mkdir()
    with pytest.raises(DataUnavailable, match="images holds no pictures"):
        load_saliency("test")
    write_pairs(home / "ecssd", *squares(3))
    with pytest.raises(DataUnavailable, match="holds 3 pictures, too few to have one to test with"):
        load_saliency("test")
    (home / "ecssd" / "masks" / "0002.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataUnavailable, match=r"masks/0002.png is no picture, or damaged"):
        load_saliency("train")
    (home / "ecssd" / "masks" / "0002.png").unlink()
    with pytest.raises(DataUnavailable, match=r"images/0002.png has no mask .*masks/0002.png"):
        load_saliency("train")
    for arguments, text in ((("val",), "split must be train or test"), (("test", 0), "at least 1, not 0")):
        with pytest.raises(ValueError, match=text):
            load_saliency(*arguments)
    monkeypatch.delenv("ESBFLOW_DATA")
    with pytest.raises(DataUnavailable, match="not at hand"):
        load_saliency("test")


@pytest.mark.skipif(not os.path.isdir(ECSSD), reason="ESBFLOW_DATA/ecssd is not at hand")
def test_ecssd_as_it_is():
    images, masks = load_saliency("test")
    assert images.shape == (200, 3, 96, 96) and masks.shape == (200, 1, 96, 96)
    assert 0.15 < (masks > 0).mean() < 0.35 and (masks > 0).any(axis=(1, 2, 3)).all()


def test_masks_move_and_turn_with_their_images():
    images, masks = squares(60)
    images[:, 2:] = masks
    moved, moved_masks = augmented_pair(images, masks, 3, True, np.random.default_rng(0))
    assert np.array_equal(moved[:, 2:], moved_masks) and not np.array_equal(moved_masks, masks)
    labels = np.arange(60)
    assert augmented_pair(images, labels, 3, True, np.random.default_rng(0))[1] is labels


# -- losses --------------------------------------------------------------------------------------------------------
def test_the_loss_of_a_mask_by_hand():
    """One pixel of two is salient, both are said to be so with 1/2: ln 2, and an overlap of (1/2 + 1) / (3/2 + 1)."""
    scores, masks = torch.zeros(1, 1, 1, 2), torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    assert task_loss(scores, masks).item() == pytest.approx(np.log(2) + 1 - 1.5 / 2.5, rel=1e-6)
    sure = torch.tensor([30.0, -30.0]).reshape(1, 1, 1, 2)
    assert task_loss(sure, masks).item() == pytest.approx(0, abs=1e-6)
    assert task_loss(-sure, masks).item() == pytest.approx(30 + 1 - 1 / 3, rel=1e-5)
    assert torch.isfinite(task_loss(scores, torch.zeros_like(masks)))
    with pytest.raises(ValueError, match=r"maps of shape \(1, 1, 1, 2\) for masks of shape \(1, 1, 2, 2\)"):
        task_loss(scores, torch.zeros(1, 1, 2, 2))


def test_labels_keep_their_cross_entropy():
    scores, labels = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([1])
    assert task_loss(scores, labels).item() == pytest.approx(-np.log(np.exp(2) / np.exp([1, 2, 0.5]).sum()), rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 5), (2, 1, 3, 3)])
def test_a_teacher_is_matched_best_by_its_own_scores_at_any_temperature(shape):
    torch.manual_seed(0)
    wanted = torch.randn(shape)
    for heat in (1.0, 4.0):
        scores = wanted.clone().requires_grad_()
        loss = teacher_loss(scores, wanted, heat)
        loss.backward()
        assert scores.grad.abs().max() < 1e-6
        assert teacher_loss(wanted + torch.randn(shape), wanted, heat) > loss


# -- measures ------------------------------------------------------------------------------------------------------
@NEEDS_SOD
def test_measures_of_perfect_inverted_and_half_right_maps():
    _, masks = squares(5)
    perfect = measure(masks[:, 0], masks)
    assert perfect["mae"] == 0 and all(perfect[name] == pytest.approx(1, abs=0.01) for name in ("max_f", "s_measure", "e_measure"))
    inverted = measure(255 - masks[:, 0], masks)
    assert inverted["mae"] == 1 and all(inverted[name] < 0.5 for name in ("max_f", "s_measure", "e_measure"))
    # Half of the object found, nothing else: precision 1, recall 1/2, so F = 1.3 * 0.5 / (0.3 + 0.5).
    mask = np.zeros((1, 1, 8, 8), np.uint8)
    mask[..., :4] = 255
    half = mask[:, 0].copy()
    half[..., 2:] = 0
    got = measure(half, mask)
    assert got["mae"] == pytest.approx(0.25) and got["max_f"] == pytest.approx(1.3 * 0.5 / 0.8, abs=1e-6)
    with pytest.raises(ValueError, match="1 maps and 5 masks cannot be compared"):
        measure(half, masks)


@pytest.fixture(scope="module")
def trained():
    """(a U-Net of 2-bit weights, pictures, masks) after a short training on bright squares."""
    images, masks = squares(64)
    torch.manual_seed(0)
    model = UNet(widths=(8, 16))
    train(model, images, masks, Schedule(8, 16, 0.05, mirror=True))
    low = quantize(model, Recipe("vecq:2", "u8"))
    train(low, images, masks, Schedule(4, 16, 0.02, mirror=True, distill=0.5), seed=1, teacher=model)
    return low, *squares(20, seed=9)


@NEEDS_SOD
def test_a_small_network_learns_and_its_integers_say_the_same(trained):
    model, images, masks = trained
    graph = export(model, "squares", images.shape[1:])
    fake, whole = network_maps(model, images), graph_maps(graph, images)
    assert fake.dtype == whole.dtype == np.uint8 and fake.shape == whole.shape == (20, 16, 16)
    assert np.abs(fake.astype(int) - whole).mean() < 2
    assert measure(whole, masks)["mae"] < 0.1 < measure(np.zeros_like(whole), masks)["mae"]
    # By hand: the sigmoid of the integers times the size of a step.
    logits = execute(graph, images)[:, 0] * graph.output.scale
    assert np.abs(255 / (1 + np.exp(-logits)) - whole).max() <= 0.5 + 1e-9


def test_networks_that_give_no_map_are_refused(trained):
    _, images, _ = trained
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 10), nn.Unflatten(1, (10, 1, 1)))
    with pytest.raises(ValueError, match="one map of 16x16 a picture, not 10 of 1x1"):
        network_maps(model, images)
    with pytest.raises(ValueError, match="no pictures"):
        network_maps(model, images[:0])
    with pytest.raises(ValueError, match=r"maps of shape \(16, 1, 8, 8\) for masks of shape \(16, 1, 16, 16\)"):
        train(nn.Conv2d(3, 1, 3, 2, 1), *squares(16), Schedule(1, 16))


# -- the command ---------------------------------------------------------------------------------------------------
def main(words):
    return cli.main(["study", "saliency", *words])


@NEEDS_SOD
def test_a_run_writes_its_record_and_goes_on_after_it_was_killed(home, tmp_path, monkeypatch, capsys):
    write_pairs(home / "ecssd", *squares(20))
    small = lambda split, count: load_saliency(split, count, 16)  # noqa: E731
    monkeypatch.setattr(saliency, "load_saliency", small)
    monkeypatch.setitem(saliency.NETWORKS, "unet", lambda: UNet(widths=(4, 8)))
    for name in ("REAL", "LOW_BIT"):
        monkeypatch.setattr(saliency, name, replace(getattr(saliency, name), epochs=2))
    arguments = ["--weights", "twn", "--control", "--float", str(tmp_path / "float.pt"), "--json"]
    assert main([*arguments, "--results", str(tmp_path / "one"), "--out", str(tmp_path / "a"),
                 "--draw", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        test, test_masks = small("test", None)
        assert sheet.size == (4 * 16, 4 * 16)
        assert np.array_equal(np.asarray(sheet)[:16, 16:32].transpose(2, 0, 1), test[1])
        assert np.array_equal(np.asarray(sheet)[16:32, 32:48, 0], test_masks[2, 0])
    path = tmp_path / "one" / "saliency-unet-twn-u8.json"
    one = json.loads(path.read_text())
    assert json.loads(capsys.readouterr().out) == one and one["images"] == 4 and one["bytes"] * 8 < one["bytes_float"]
    assert one["command"] == "esbflow study saliency --weights twn --activations u8 --control"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["graph.npz"]

    def killed(model, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saliency, "export", killed)
        assert main([*arguments[:-2], str(tmp_path / "b.pt"), "--out", str(tmp_path / "b")]) == 130
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["control.ckpt", "low_bit.ckpt", "real.ckpt"]
    steps = []
    again = saliency.run("twn", control=True, floats=tmp_path / "b.pt", out=tmp_path / "b", report=steps.append)
    assert steps == [], "all stages were done"
    assert {k: v for k, v in again.items() if k != "minutes"} == {k: v for k, v in one.items() if k != "minutes"}


def test_bad_input_is_one_sentence_and_leaves_no_file(home, tmp_path, capsys):
    for arguments, text in (([], "esbflow study: ECSSD's pictures are not at hand"), (["--weights", "x"], "esbflow study: "),
                            (["--epochs", "0"], "esbflow study: epochs and batch must be at least 1")):
        assert main([*arguments, "--results", str(tmp_path / "out")]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(text) and shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_names_of_records():
    names = [record_name({"method": method, "activations": a}) for method, a in (
        ("vecq:2", "u8"), ("esb4.1", "u4"), ("sq(ramped,linear):twn", "pact:4"), ("pq:256,9,esb4.1", "u8"))]
    assert names == ["saliency-unet-" + rest for rest in (
        "vecq2-u8", "esb4.1-u4", "sq-ramped-linear-twn-pact4", "pq256-9-esb4.1-u8")]
