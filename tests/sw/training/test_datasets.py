"""Image data sets: their files, downloads, and the one sentence about what is wrong with them."""

import gzip
import hashlib
import struct
import urllib.error

import numpy as np
import pytest

from esbflow.training import data
from esbflow.training.data import DataUnavailable, load_images


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
    (("mnist2", "train"), r"no data set named 'mnist2'; known: mnist, digits, cifar10, imagenet-folder; did you mean mnist\?"),
    (("digits", "dev"), r"split must be train or test, not 'dev'"),
    (("digits", "test", 0), r"the number of images must be at least 1, not 0")])
def test_unknown_data_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        load_images(*arguments)
