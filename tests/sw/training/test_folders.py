"""Pictures in folders, and the download of CIFAR-10."""

import hashlib
import io
import sys
import tarfile
import urllib.error

import numpy as np
import pytest

from esbflow.training import folders
from esbflow.training.data import DataUnavailable, load_images
from esbflow.training.folders import list_folder, load_folder

Image = pytest.importorskip("PIL.Image", reason="needs pillow (esbflow[train])")


def picture(path, size=(224, 224), seed=0, mode="RGB"):
    """A random picture at `path`; its pixels (3, h, w)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels.transpose(2, 0, 1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ESBFLOW_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def test_pictures_of_the_right_size_are_read_as_they_are_in_rounds(tmp_path):
    expected = {name: picture(tmp_path / name, seed=i) for i, name in enumerate(
        ["0007/b.png", "0007/a.png", "0123/x.png", "0123/z.BMP", "0123/y.png", "0900/only.png"])}
    (tmp_path / "0007" / "notes.txt").write_text("no picture")
    (tmp_path / "readme.md").write_text("no folder")
    images, labels = load_folder(tmp_path)
    order = ["0007/a.png", "0123/x.png", "0900/only.png", "0007/b.png", "0123/y.png", "0123/z.BMP"]
    assert labels.tolist() == [7, 123, 900, 7, 123, 123] and labels.dtype == np.int64 and images.dtype == np.uint8
    assert [path.relative_to(tmp_path).as_posix() for path, _ in list_folder(tmp_path)] == order
    assert np.array_equal(images, np.stack([expected[name] for name in order]))
    assert np.array_equal(load_folder(tmp_path, 2)[0], images[:2])


def test_classes_that_are_no_numbers_count_in_order(tmp_path):
    for name in ("n02000000", "n01440764", "n09999999"):
        picture(tmp_path / name / "1.png", (8, 8))
    assert [label for _, label in list_folder(tmp_path)] == [0, 1, 2]
    assert list_folder(tmp_path)[0][0].parent.name == "n01440764"


@pytest.mark.parametrize("size, mode", [((500, 375), "RGB"), ((300, 640), "RGB"), ((256, 256), "L"), ((100, 80), "RGBA"),
                                        ((224, 300), "P")])
def test_other_sizes_are_scaled_and_cut_from_the_middle(size, mode, tmp_path):
    """A gradient along the long side: its middle stays in the middle, at the scale of a short side of 256."""
    width, height = size
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :] if width >= height else ramp[:, None], (height, width))
    (tmp_path / "0").mkdir()
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).convert(mode).save(tmp_path / "0" / "1.png")
    images, _ = load_folder(tmp_path)
    line = images[0].mean(axis=(0, 1 if width >= height else 2)).astype(float)
    assert images.shape == (1, 3, 224, 224) and line[111:113].mean() == pytest.approx(127.5, abs=4)
    assert line[-1] - line[0] == pytest.approx(255 * 224 / 256 * min(size) / max(size), abs=6)


def test_damaged_and_missing_pictures_are_refused_by_name(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataUnavailable, match=rf"^{folder} holds no pictures in folders, one folder a class \(\.png, "):
            load_folder(folder)
    picture(tmp_path / "3" / "1.png")
    content = (tmp_path / "3" / "1.png").read_bytes()
    for damaged in (b"", b"GIF89a", content[: len(content) // 2], content[:40]):
        (tmp_path / "3" / "1.png").write_bytes(damaged)
        with pytest.raises(DataUnavailable, match=r"^.*/3/1\.png is no picture, or damaged \(.*\); remove it and try again$"):
            load_folder(tmp_path)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataUnavailable, match=r"^pictures need pillow; install esbflow\[train\]$"):
        load_folder(tmp_path)


def test_imagenet_is_looked_for_in_its_usual_places(home, monkeypatch):
    sentence = (r"^ImageNet's pictures are not at hand and cannot be downloaded without an account; set ESBFLOW_DATA to a "
                r"folder that holds imagenet/train and imagenet/val, each with one folder a class$")
    for split in ("train", "test"):
        with pytest.raises(DataUnavailable, match=sentence):
            load_images("imagenet-folder", split)
    picture(home / "photos" / "0042" / "1.png")
    assert load_images("imagenet-folder", "test", 5)[1].tolist() == [42]
    with pytest.raises(DataUnavailable, match=sentence):
        load_images("imagenet-folder", "train")  # photographs to test are none to train with
    picture(home / "imagenet" / "train" / "n01" / "1.png")
    picture(home / "imagenet" / "train" / "n02" / "1.png")
    picture(home / "imagenet" / "val" / "n02" / "1.png")
    assert load_images("imagenet-folder", "train", 9)[1].tolist() == [0, 1]
    assert load_images("imagenet-folder", "test")[0].shape == (1, 3, 224, 224)
    monkeypatch.delenv("ESBFLOW_DATA")
    with pytest.raises(DataUnavailable, match=sentence):
        load_images("imagenet-folder", "test")


# -- CIFAR-10 -----------------------------------------------------------------------------------------------------
class Response:
    """What urlopen gives."""

    def __init__(self, content):
        self.stream, self.headers = io.BytesIO(content), {"Content-Length": str(len(content))}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size):
        return self.stream.read(size)


def archive(names=folders.CIFAR10_FILES, size=1000, mode="w:gz"):
    """An archive in the layout of the canonical one; every byte of batch i is i."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as file:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = size
            file.addfile(info, io.BytesIO(bytes([i]) * size))
    return stream.getvalue()


@pytest.fixture
def serve(monkeypatch):
    """serve(content): from here on the network gives that, and it is the expected content."""
    asked = []

    def start(content, digest=None):
        monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: asked.append(url) or Response(content))
        monkeypatch.setattr(folders, "CIFAR10_MD5", digest or hashlib.md5(content).hexdigest())
        return asked
    return start


def test_cifar10_is_downloaded_checked_and_kept(home, serve, tmp_path):
    asked = serve(archive())
    folder = folders.cifar10_folder()
    assert [(folder / name).read_bytes() for name in folders.CIFAR10_FILES] == [bytes([i]) * 1000 for i in range(6)]
    assert folders.cifar10_folder() == folder
    assert len(asked) == 1 and asked[0].endswith("/cifar-10-binary.tar.gz"), "the second time from the cache"
    with pytest.raises(DataUnavailable, match=r"/data_batch_1\.bin is missing or damaged: it should have 30730000 bytes$"):
        load_images("cifar10", "train")
    kept = tmp_path / "cache" / "esbflow"
    assert sorted(path.name for path in (kept / "cifar-10-batches-bin").iterdir()) == sorted(folders.CIFAR10_FILES)
    assert [path.name for path in kept.iterdir()] == ["cifar-10-batches-bin"]


def test_a_download_that_is_damaged_is_refused_and_not_kept(home, serve, tmp_path):
    content = archive()
    serve(content, "0" * 32)
    with pytest.raises(DataUnavailable, match=r"^https://.*cifar-10-binary\.tar\.gz is damaged: its MD5 sum is not 0{32}; try "
                                              r"again$"):
        load_images("cifar10", "train")
    for broken in (content[:100], b"no archive", archive(folders.CIFAR10_FILES[:3])):
        serve(broken)
        with pytest.raises(DataUnavailable, match=r"^https://.*cifar-10-binary\.tar\.gz is damaged \(.*\); try again$"):
            load_images("cifar10", "train")
    assert not (tmp_path / "cache" / "esbflow" / "cifar-10-batches-bin").exists()


def test_without_a_network_cifar10_says_where_it_was_looked_for(home, monkeypatch):
    def refuse(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataUnavailable, match=rf"^CIFAR-10 is not under {home}/cifar-10-batches-bin and cannot be downloaded "
                                              r"\(.*no route to host.*\); set ESBFLOW_DATA to a folder that holds "
                                              r"cifar-10-batches-bin$"):
        load_images("cifar10", "test")
    monkeypatch.delenv("ESBFLOW_DATA")
    with pytest.raises(DataUnavailable, match=r"^CIFAR-10 is not under ESBFLOW_DATA \(not set\) and cannot be downloaded"):
        load_images("cifar10", "test")


def test_the_canonical_archives_sum_is_the_published_one():
    assert folders.CIFAR10_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"
