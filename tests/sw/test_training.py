"""Data sets, the training loop, and what recipes reach."""

import copy
import gzip
import hashlib
import json
import struct
import urllib.error

import numpy as np
import pytest
import torch

from esbflow.graph.bounds import check
from esbflow.graph.execute import execute
from esbflow.graph.file import load
from esbflow.networks.digits import DigitsNet
from esbflow.networks.lenet5 import LeNet5
from esbflow.networks.resnet20 import ResNet20
from esbflow.quant.convert import quantize
from esbflow.quant.export import export
from esbflow.quant.fixed import convert
from esbflow.quant.recipe import Recipe
from esbflow.training import api, data, loop
from esbflow.training.api import load_float_model, load_model, train_network
from esbflow.training.augment import augmented
from esbflow.training.data import DataUnavailable, load_images
from esbflow.training.loop import Schedule, calibrate, evaluate, normalise, train
from esbflow.training.recipes import RECIPES


# -- data ---------------------------------------------------------------------------------------------------------
def idx(array):
    """An idx file, as yann.lecun.com describes it."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def little_mnist(tmp_path, monkeypatch):
    """A folder with five images a split in MNIST's layout, whose checksums are the expected ones."""
    random, files = np.random.default_rng(0), {}
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for (split, what), (name, _) in data.MNIST_FILES.items():
        content = idx(random.integers(0, 256, (5, 28, 28)) if what == "images" else np.arange(5))
        files[split, what] = (name, hashlib.md5(content).hexdigest())
        (folder / name).write_bytes(content)
    monkeypatch.setattr(data, "MNIST_FILES", files)
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_read_from_idx_files_plain_or_zipped(little_mnist, zipped):
    content = (little_mnist / "t10k-images-idx3-ubyte").read_bytes()
    if zipped:
        for path in list(little_mnist.iterdir()):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    images, labels = load_images("mnist", "test")
    assert images.shape == (5, 1, 28, 28) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert images.tobytes() == content[16:] and labels.tolist() == [0, 1, 2, 3, 4]
    assert len(load_images("mnist", "train", 3)[0]) == 3


def test_a_damaged_file_is_refused_by_its_checksum(little_mnist):
    path = little_mnist / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"^.*train-labels-idx1-ubyte is damaged: its MD5 sum is not [0-9a-f]{32}; "
                                              r"remove it and try again$"):
        load_images("mnist", "train")


def test_a_truncated_or_changed_zip_is_refused(little_mnist):
    path = little_mnist / "train-labels-idx1-ubyte"
    zipped = gzip.compress(path.read_bytes())
    path.unlink()
    for damaged in (zipped[:-9], b"", zipped[:12] + bytes(byte ^ 0xFF for byte in zipped[12:])):
        path.with_name(path.name + ".gz").write_bytes(damaged)
        with pytest.raises(DataUnavailable, match=r"^.*train-labels-idx1-ubyte(\.gz)? is damaged.*; remove it and try again$"):
            load_images("mnist", "train")


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", idx(np.zeros(5))[:-1], idx(np.zeros(5)) + b"\0",
                                     b"\0\0\x0d" + idx(np.zeros(5))[3:]])
def test_an_idx_file_whose_size_does_not_fit_its_header_is_refused(content):
    with pytest.raises(DataUnavailable, match=r"^an idx file is damaged: its size does not fit its header; remove it and try "
                                              r"again$"):
        data._read_idx(content)


def test_missing_mnist_says_where_it_was_looked_for(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path))
    with pytest.raises(DataUnavailable, match=rf"^MNIST is not under {tmp_path}/MNIST/raw and cannot be downloaded \(.*no "
                                              r"route to host.*\); set ESBFLOW_DATA to a folder that holds MNIST/raw$"):
        load_images("mnist", "train")
    monkeypatch.delenv("ESBFLOW_DATA")
    with pytest.raises(DataUnavailable, match=r"^MNIST is not under ESBFLOW_DATA \(not set\) and cannot be downloaded"):
        load_images("mnist", "test")
    assert not (tmp_path / "cache").exists()


class Response:
    """What urlopen gives."""

    def __init__(self, content):
        self.content, self.headers = content, {"Content-Length": str(len(content))}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size):
        part, self.content = self.content[:size], self.content[size:]
        return part


def test_a_download_is_checked_and_kept(little_mnist, tmp_path, monkeypatch):
    contents = {path.name: path.read_bytes() for path in little_mnist.iterdir()}
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return Response(gzip.compress(contents[url.rsplit("/", 1)[1].removesuffix(".gz")]))

    expected = load_images("mnist", "test")[0]
    monkeypatch.delenv("ESBFLOW_DATA")
    monkeypatch.setattr("urllib.request.urlopen", serve)
    assert np.array_equal(load_images("mnist", "test")[0], expected) and len(asked) == 2
    assert np.array_equal(load_images("mnist", "test")[0], expected) and len(asked) == 2, "the second time from the cache"
    kept = sorted(path.name for path in (tmp_path / "cache" / "esbflow" / "MNIST" / "raw").iterdir())
    assert kept == ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Response(gzip.compress(b"something else")))
    with pytest.raises(DataUnavailable, match=r"^https://.*train-images-idx3-ubyte\.gz is damaged: its MD5 sum is not "):
        load_images("mnist", "train")


def test_the_bundled_digits_are_split_without_overlap():
    images, labels = load_images("digits", "train")
    test, test_labels = load_images("digits", "test")
    assert images.shape == (1437, 1, 8, 8) and test.shape == (360, 1, 8, 8) and images.dtype == np.uint8
    assert images.max() == 255 and images.min() == 0 and set(labels) == set(test_labels) == set(range(10))
    again, _ = load_images("digits", "train")
    assert np.array_equal(images, again)
    rows = {image.tobytes() for image in images}
    assert sum(image.tobytes() in rows for image in test) == 0


def test_cifar_is_read_in_planes_and_short_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path))
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    records = np.random.default_rng(0).integers(0, 256, (10_000, 3073), dtype=np.uint8)
    (folder / "test_batch.bin").write_bytes(records.tobytes())
    images, labels = load_images("cifar10", "test", 7)
    assert images.shape == (7, 3, 32, 32) and labels.tolist() == records[:7, 0].tolist()
    assert images[4, 2, 31, 30] == records[4, 1 + 2 * 1024 + 31 * 32 + 30]
    (folder / "test_batch.bin").write_bytes(records.tobytes()[:-1])
    for split in ("test", "train"):
        with pytest.raises(DataUnavailable, match=r"_batch(_1)?\.bin is missing or damaged: it should have 30730000 bytes$"):
            load_images("cifar10", split)


@pytest.mark.parametrize("arguments, message", [
    (("mnist2", "train"), r"no data set named 'mnist2'; known: mnist, digits, cifar10, imagenet-folder"),
    (("digits", "dev"), r"split must be train or test, not 'dev'"),
    (("digits", "test", 0), r"the number of images must be at least 1, not 0")])
def test_unknown_data_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        load_images(*arguments)


# -- the loop -----------------------------------------------------------------------------------------------------
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
    with pytest.raises(ValueError, match=r"(?s)^.*run\.ckpt is no checkpoint of this run \(.*\); remove it to start again$"):
        small_run(fresh(False), path)


def test_a_diverged_loss_is_refused():
    images, labels = load_images("digits", "train", 100)
    with pytest.raises(ValueError, match=r"^the loss is (nan|inf) in epoch \d+: training has diverged; lower the rate$"):
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


def test_no_images_are_refused():
    none = np.zeros((0, 1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"^there are no images to train on$"):
        train(DigitsNet(), none, np.zeros(0, np.int64), Schedule())
    with pytest.raises(ValueError, match=r"^there are no images to calibrate on$"):
        calibrate(quantize(DigitsNet()), none)


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
    groups = loop._parameter_groups(quantize(DigitsNet()), Schedule(weight_decay=0.1))
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


# -- recipes ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits recipe, trained once."""
    out = tmp_path_factory.mktemp("digits")
    return out, train_network("digits", out, progress=False)


def test_the_digits_recipe_reaches_97_percent_on_the_integer_graph(digits):
    out, metrics = digits
    assert metrics["graph_top1"] >= 97.0 and metrics["images"] == 360
    assert abs(metrics["graph_top1"] - metrics["fake_quant_top1"]) <= 100 / 360 + 1e-9  # one image of 360
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert sorted(path.name for path in out.iterdir()) == ["float.pt", "graph.npz", "metrics.json", "model.pt"]


def test_what_training_writes_agrees_with_its_metrics(digits):
    out, metrics = digits
    images, labels = load_images("digits", "test")
    graph = load(out / "graph.npz")
    outputs = execute(graph, images)
    assert api.top1(outputs, labels) == metrics["graph_top1"] == graph.info["graph_top1"]
    model = load_model(out / "model.pt")
    assert evaluate(model, images, labels) == metrics["fake_quant_top1"]
    assert np.array_equal(convert(model, (1, 8, 8))(torch.from_numpy(images)).numpy(), outputs)
    assert evaluate(load_float_model(out / "float.pt"), images, labels) == metrics["float_top1"]
    assert Recipe.from_json(graph.info["recipe"]) == RECIPES["digits"].quant
    check(graph, 28)


def test_training_starts_from_an_earlier_network_in_real_numbers(digits, tmp_path):
    start = digits[0] / "float.pt"
    metrics = train_network("digits", tmp_path / "again", epochs=1, progress=False, float_model=start)
    assert metrics["float_top1"] == digits[1]["float_top1"] and metrics["epochs"] == 1
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(start.read_bytes()[:1000])
    for path, text in ((tmp_path / "none.pt", "there is no file .*none.pt"),
                       (damaged, "damaged.pt is not a network in real numbers"),
                       (digits[0] / "graph.npz", "graph.npz is not a network in real numbers")):
        with pytest.raises(ValueError, match=text):
            load_float_model(path)
    with pytest.raises(ValueError, match="float.pt holds digits, and lenet5 is to be trained"):
        load_float_model(start, "lenet5")


@pytest.mark.parametrize("save_number", [1, 3])
def test_a_killed_training_resumes_to_the_same_graph(save_number, tmp_path, monkeypatch):
    """Killed in the real stage (first checkpoint) or in the low-bit stage (third)."""
    arguments = {"epochs": 2, "train_images": 150, "test_images": 50, "progress": False}
    train_network("digits", tmp_path / "unbroken", **arguments)
    save, saves = loop._save, []

    def save_and_die(*values):
        save(*values)
        saves.append(1)
        if len(saves) == save_number:
            raise Killed

    monkeypatch.setattr(loop, "_save", save_and_die)
    with pytest.raises(Killed):
        train_network("digits", tmp_path / "killed", **arguments)
    monkeypatch.setattr(loop, "_save", save)
    train_network("digits", tmp_path / "killed", resume=True, **arguments)
    one, two = (load(tmp_path / name / "graph.npz") for name in ("unbroken", "killed"))
    for a, b in zip(one.nodes, two.nodes, strict=True):
        assert np.array_equal(getattr(a, "weight", None), getattr(b, "weight", None)) and a.scale == b.scale
    images = load_images("digits", "test")[0]
    assert np.array_equal(execute(one, images), execute(two, images))


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^no recipe named 'lenet'; known: lenet5-mnist, digits, "):
        train_network("lenet", tmp_path)


def test_a_compiled_model_computes_and_trains_the_same():
    torch.manual_seed(0)
    one = quantize(DigitsNet(), Recipe())
    images, labels = load_images("digits", "train", 64)
    calibrate(one, images)
    two = copy.deepcopy(one)
    x = loop.normalise(images, (0.0,), (1.0,))
    compiled = torch.compile(two.train(), backend="aot_eager", fullgraph=True)
    left, right = one.train()(x), compiled(x)
    assert torch.allclose(left, right, atol=1e-6)
    for out in (left, right):
        torch.nn.functional.cross_entropy(out, torch.as_tensor(labels)).backward()
    assert all(torch.allclose(p.grad, q.grad, atol=1e-5) for p, q in zip(one.parameters(), two.parameters()))


def test_mixed_precision_trains_and_exports():
    images, labels = load_images("digits", "train")
    torch.manual_seed(0)
    model = train(DigitsNet(), images, labels, Schedule(epochs=6, batch=32, rate=0.05), precision="bfloat16")
    model = train(quantize(model, Recipe()), images, labels, Schedule(epochs=3, batch=32, rate=0.02), precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    test, answers = load_images("digits", "test")
    assert (execute(export(model, shape=(1, 8, 8)), test).reshape(len(test), -1).argmax(1) == answers).mean() > 0.93
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, not 'int4'"):
        train(model, images, labels, Schedule(), precision="int4")


# -- MNIST --------------------------------------------------------------------------------------------------------
def has_mnist():
    folder = data.data_folder()
    return folder is not None and (folder / "MNIST" / "raw").is_dir()


@pytest.mark.skipif(not has_mnist(), reason="needs MNIST: set ESBFLOW_DATA to a folder that holds MNIST/raw")
def test_lenet5_on_mnist_at_four_bits(tmp_path):
    """The promise of the README: 10,000 images on the integer graph, at ESB(4,1) weights and 4-bit activations."""
    metrics = train_network("lenet5-mnist", tmp_path, progress=False)
    assert metrics["images"] == 10_000
    assert metrics["graph_top1"] >= 99.0
    assert metrics["graph_top1"] >= metrics["float_top1"] - 0.2
    assert abs(metrics["fake_quant_top1"] - metrics["graph_top1"]) <= 0.05 + 1e-9
    graph, model = load(tmp_path / "graph.npz"), load_model(tmp_path / "model.pt")
    check(graph, 28)
    layers = [node for node in graph.nodes if getattr(node, "weight", None) is not None]
    assert [str(node.weight_format) for node in layers] == ["esb4.1"] * 4
    assert {str(node.format) for node in layers[:-1]} == {"u4"} and str(graph.output.format) == "s16"
    images, labels = load_images("mnist", "test")
    outputs, module = execute(graph, images), convert(model, (1, 28, 28))
    assert api.top1(outputs, labels) == metrics["graph_top1"]
    for i in range(0, len(images), 500):
        assert np.array_equal(module(torch.from_numpy(images[i:i + 500])).numpy(), outputs[i:i + 500])
