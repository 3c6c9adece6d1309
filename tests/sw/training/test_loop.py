"""The training loop: reproducible, resumable, and loud about what cannot work."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.networks.digits import DigitsNet
from esbflow.networks.lenet5 import LeNet5
from esbflow.networks.resnet20 import ResNet20
from esbflow.quant.quantize import quantize
from esbflow.quant.recipe import Recipe
from esbflow.training import api, loop
from esbflow.training.augment import augmented
from esbflow.training.data import load_images
from esbflow.training.loop import Schedule, calibrate, evaluate, normalise, train
from esbflow.training.run_state import Interrupted


def small_run(model, checkpoint=None, report=None, low_bit=False):
    images, labels = load_images("digits", "train", 200)
    return train(model, images, labels, Schedule(epochs=2, batch=32, rate=0.05, shift=1), seed=5, checkpoint=checkpoint,
                 report=report)


class Killed(Exception):
    pass


def killer(after):
    def report(done, total, loss):
        if done == after:
            raise Killed

    return report


def fresh(low_bit):
    torch.manual_seed(3)
    return quantize(DigitsNet(), Recipe()) if low_bit else DigitsNet()


@pytest.mark.parametrize("low_bit", [False, True])
@pytest.mark.parametrize("step", [8, 12])
def test_a_run_that_was_killed_and_resumed_equals_an_unbroken_one_bit_for_bit(low_bit, step, tmp_path):
    unbroken = small_run(fresh(low_bit)).state_dict()
    with pytest.raises(Killed):
        small_run(fresh(low_bit), tmp_path / "run.ckpt", killer(step))
    assert (tmp_path / "run.ckpt").exists()
    seen = []
    resumed = small_run(fresh(low_bit), tmp_path / "run.ckpt", lambda done, total, loss: seen.append(done)).state_dict()
    assert seen == list(range(8, 15)), "it goes on at the second epoch of seven steps"
    assert all(torch.equal(value, resumed[name]) for name, value in unbroken.items())
    assert [path.name for path in tmp_path.iterdir()] == ["run.ckpt"]


def test_the_same_seed_gives_the_same_model_and_another_another():
    images, labels = load_images("digits", "train", 100)
    weights = []
    for seed in (0, 0, 1):
        model = train(fresh(True), images, labels, Schedule(epochs=1), seed=seed)
        weights.append(model.conv2.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    for content in (b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"(?s)^.*run\.ckpt is no checkpoint of this run \(.*\); remove it to start again$"):
            small_run(fresh(False), path)
    torch.save({"model": LeNet5().state_dict(), "optimizer": {}, "epoch": 1}, path)
    with pytest.raises(ValueError, match=r"^.*run\.ckpt is no checkpoint of this run \(it does not say of which run it is\); "
                                         r"remove it to start again$"):
        small_run(fresh(False), path)
    with pytest.raises(Killed):
        small_run(fresh(False), path.with_name("whole.ckpt"), killer(8))
    state = torch.load(path.with_name("whole.ckpt"))
    torch.save(state | {"model": LeNet5().state_dict()}, path)
    with pytest.raises(ValueError, match=r"(?s)^.*run\.ckpt is no checkpoint of this run \(.*\); remove it to start again$"):
        small_run(fresh(False), path)


@pytest.mark.parametrize("change, said", [
    ({"schedule": Schedule(epochs=3, batch=32)}, "epochs is 2 there and 3 here"),
    ({"schedule": Schedule(epochs=2, batch=32, rate=0.01)}, "rate is 0.02 there and 0.01 here"),
    ({"seed": 1}, "seed is 0 there and 1 here"),
    ({"origin": "elsewhere"}, 'origin is "" there and "elsewhere" here'),
    ({"labels": 1}, 'data is "[0-9a-f]{8}" there and "[0-9a-f]{8}" here'),
    ({"recipe": Recipe(weights="twn")}, 'recipe\'s weights is "esb4.1" there and "twn" here'),
    ({"mean": (0.5,), "recipe": Recipe(mean=(0.5,))}, 'recipe\'s mean is \\[0.0\\] there and \\[0.5\\] here')])
def test_a_run_goes_on_only_from_its_own_checkpoint(change, said, tmp_path):
    images, _labels = load_images("digits", "train", 200)
    path = tmp_path / "run.ckpt"

    def run(schedule=Schedule(epochs=2, batch=32), recipe=Recipe(), labels=0, **options):
        return train(quantize(DigitsNet(), recipe), images, (load_images("digits", "train", 200)[1] + labels) % 10, schedule,
                     checkpoint=path, **options)

    run()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"^.*run\.ckpt is of another run \(.*{said}.*\); to go on with it train as it did, "
                                         r"to start anew remove it or write elsewhere$"):
        run(**change)
    assert path.read_bytes() == before
    run(report=lambda *_: pytest.fail("all of it was done"))


def test_a_stopped_training_says_how_to_go_on(tmp_path):
    def stop_after(count):
        def report(done, total, loss):
            if done == count:
                raise KeyboardInterrupt
        return report

    with pytest.raises(Interrupted, match=r"^stopped; .*run\.ckpt keeps what was trained until unit 1, and the same training "
                                          r"goes on from there$"):
        small_run(fresh(True), tmp_path / "run.ckpt", stop_after(9))
    with pytest.raises(KeyboardInterrupt) as stop:
        small_run(fresh(True), tmp_path / "other.ckpt", stop_after(3))
    assert not str(stop.value) and not (tmp_path / "other.ckpt").exists()


# -- the normalisation that a model carries -------------------------------------------------------------------------
NORMAL = {"mean": (0.5,), "std": (0.25,)}


def test_loops_take_the_normalisation_from_the_recipe_and_refuse_another(task):
    images, labels = task
    low = quantize(DigitsNet(), Recipe(**NORMAL))
    x = []
    low.register_forward_pre_hook(lambda _, inputs: x.append(inputs[0]))
    calibrate(low, images[:32])
    train(low, images[:32], labels[:32], Schedule(epochs=1, batch=32))
    evaluate(low, images[:32], labels[:32])
    wanted = normalise(images[:32], **NORMAL)
    assert len(x) == 3 and all(torch.allclose(found.sort(dim=0).values, wanted.sort(dim=0).values) for found in x)
    for loop_of in (lambda **given: calibrate(low, images, **given), lambda **given: evaluate(low, images, labels, **given),
                    lambda **given: train(low, images, labels, Schedule(epochs=1), **given)):
        with pytest.raises(ValueError, match=r"^the model has a recipe with mean 0\.5, and 0 is given; leave mean and std out, "
                                             r"or give the same$"):
            loop_of(mean=(0.0,))
        with pytest.raises(ValueError, match=r"^the model has a recipe with std 0\.25, and 1 is given; "):
            loop_of(std=1.0)
    assert evaluate(low, images, labels, (0.5,), (0.25,)) == evaluate(low, images, labels)


def test_a_model_in_real_numbers_remembers_what_it_was_trained_with(task):
    images, labels = task[0][:64], task[1][:64]
    real = train(DigitsNet(), images, labels, Schedule(epochs=1), **NORMAL)
    assert evaluate(real, images, labels) == evaluate(real, images, labels, **NORMAL)
    with pytest.raises(ValueError, match=r"^the model was trained with mean 0\.5, and the recipe has 0; train and quantize "
                                         r"with the same$"):
        quantize(real, Recipe())
    with pytest.raises(ValueError, match=r"^the model was trained with mean 0\.5, and 0\.4 is given; "):
        train(real, images, labels, Schedule(epochs=1), mean=(0.4,))
    assert quantize(real, Recipe(**NORMAL)) is not None


def test_a_diverged_loss_is_refused():
    images, labels = load_images("digits", "train", 100)
    with pytest.raises(ValueError, match=r"^the loss is (nan|inf) in step \d+ of \d+: training has diverged; lower the rate$"):
        train(DigitsNet(), images, labels, Schedule(epochs=20, rate=1e6))


def test_a_low_bit_model_that_diverges_is_refused_too():
    images, labels = load_images("digits", "train", 100)
    with pytest.raises(ValueError, match=r"training has diverged"):
        train(quantize(DigitsNet()), images, labels, Schedule(epochs=20, rate=1e30))


@pytest.mark.parametrize("fields, message", [
    ({"epochs": 0}, r"epochs and batch must be at least 1, not 0 and 64"),
    ({"batch": 0}, r"epochs and batch must be at least 1, not 3 and 0"),
    ({"rate": 0.0}, r"the learning rate must be positive, not 0.0"),
    ({"rate": float("nan")}, r"the learning rate must be positive, not nan")])
def test_a_schedule_refuses_nonsense_when_it_is_made(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Schedule(**fields)


def test_a_slow_start_keeps_a_wide_last_layer_from_being_thrown_away(task):
    """8,192 features that are all positive: what the first steps at the full rate do to their weights."""
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.last = nn.Conv2d(1, 128, 1), nn.Linear(8192, 8)

        def forward(self, x):
            return self.last(torch.relu(self.features(x)).flatten(1))

    peaks = []
    for warmup in (0, 4):
        torch.manual_seed(0)
        losses = []
        train(Wide(), *task, Schedule(epochs=4, batch=32, rate=0.01, warmup=warmup),
              report=lambda done, total, loss, losses=losses: losses.append(loss))
        assert len(losses) == 64
        peaks.append(max(losses))
    assert peaks[1] < 0.5 * peaks[0] and peaks[1] < 4


def test_no_images_are_refused():
    none = np.zeros((0, 1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"^there are no images to train on$"):
        train(DigitsNet(), none, np.zeros(0, np.int64), Schedule())
    with pytest.raises(ValueError, match=r"^there are no images to calibrate on$"):
        calibrate(quantize(DigitsNet()), none)


@pytest.mark.parametrize("labels, message", [
    (np.arange(7), "there are 7 labels for 16 images"),
    (np.arange(16) % 5 - 1, "labels must be integers from 0, not int64 from -1"),
    (np.arange(16) % 5 / 2, "labels must be integers from 0, not float64 from 0.0"),
    (np.arange(16), "labels go up to 15, but the network has 10 outputs"),
])
def test_labels_that_fit_neither_images_nor_network_are_refused(labels, message):
    images = np.zeros((16, 1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=f"^{message}$"):
        train(DigitsNet(), images, labels, Schedule(epochs=1, batch=8))


@pytest.mark.parametrize("images, what", [
    (np.zeros((4, 1, 8, 8), np.float32), r"float32 (4, 1, 8, 8)"), (np.zeros((4, 8, 8), np.uint8), r"uint8 (4, 8, 8)")])
def test_images_that_are_no_bytes_are_refused(images, what):
    message = f"images must be uint8 of shape (n, channels, height, width), not {what}"
    for use in (lambda: train(DigitsNet(), images, np.zeros(4, int), Schedule()), lambda: calibrate(quantize(DigitsNet()), images),
                lambda: evaluate(DigitsNet(), images, np.zeros(4, int))):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            use()


@pytest.mark.parametrize("count", [2, 4])
def test_a_mean_for_other_channels_is_refused(count):
    with pytest.raises(ValueError, match=f"^mean and std have {count} entries and images 3 channels; "):
        normalise(np.zeros((1, 3, 2, 2), np.uint8), (0.5,) * count, (1.0,) * count)


def test_a_last_batch_of_one_image_is_left_out(task):
    images, labels = task
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
    done = []
    train(model, images[:17], labels[:17], Schedule(epochs=2, batch=8), report=lambda *seen: done.append(seen[:2]))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_normalise_subtracts_the_mean_of_each_channel():
    images = np.array([0, 51, 255, 102], np.uint8).reshape(1, 2, 1, 2)
    x = normalise(images, (0.2, 0.4), (0.5, 0.2))
    assert torch.allclose(x, torch.tensor([-0.4, 0.0, 3.0, 0.0]).reshape(1, 2, 1, 2), atol=1e-6)


def test_images_move_by_whole_pixels_and_zeros_come_in():
    images = np.arange(1, 26, dtype=np.uint8).reshape(1, 1, 5, 5)
    seen = set()
    for seed in range(60):
        moved = augmented(images, 1, False, np.random.default_rng(seed))[0, 0]
        padded = np.pad(images[0, 0], 1)
        found = [(y, x) for y in range(3) for x in range(3) if np.array_equal(padded[y:y + 5, x:x + 5], moved)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 9


def test_half_of_the_images_are_mirrored_and_none_is_changed_in_place():
    images = np.arange(200 * 6, dtype=np.uint8).reshape(200, 1, 2, 3)
    kept = images.copy()
    mirrored = augmented(images, 0, True, np.random.default_rng(0))
    turned = [np.array_equal(m, i[..., ::-1]) for m, i in zip(mirrored, images)]
    assert all(t or np.array_equal(m, i) for t, m, i in zip(turned, mirrored, images))
    assert 70 < sum(turned) < 130 and np.array_equal(images, kept)


def test_scales_and_biases_are_not_pulled_to_zero():
    groups = loop.parameter_groups(quantize(DigitsNet()), Schedule(weight_decay=0.1))
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.dim() >= 2 for p in groups[0]["params"]) and len(groups[0]["params"]) == 4
    assert len(groups[1]["params"]) == 4 + 3, "four biases and three activation scales"


def test_evaluate_counts_right_answers_in_percent():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 1.0, 0.5]]).repeat(len(x), 1)

    labels = np.array([1] * 3 + [2] * 5)
    assert evaluate(Constant(), np.zeros((8, 1, 2, 2), np.uint8), labels, batch=3) == 37.5
    assert api.top1(np.array([[[[5]], [[5]]], [[[1]], [[2]]]]), np.array([0, 1])) == 100.0, "of equals the first counts"


@pytest.mark.parametrize("network", [LeNet5, DigitsNet, ResNet20])
def test_networks_take_their_shape_and_give_ten_scores(network):
    assert network().eval()(torch.zeros(2, *network.shape)).shape == (2, 10)


def test_resnet20_has_the_published_number_of_parameters():
    # He et al., "Deep Residual Learning", table 6: 0.27 M.
    assert sum(p.numel() for p in ResNet20().parameters()) == 269_722
    assert sum(p.numel() for p in LeNet5().parameters()) == 431_080  # Caffe's LeNet
