"""Trained weights in files: what loads, and the one sentence about what does not. The public weights, where they are at hand."""

import os
import re
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from esbflow.networks.checkpoints import load_checkpoint, load_network, read_tensors
from esbflow.networks.densenet import DenseNet
from esbflow.networks.digits import DigitsNet
from esbflow.networks.lenet5 import LeNet5
from esbflow.networks.registry import NETWORKS, network
from esbflow.networks.resnet import ResNet18
from esbflow.networks.resnet20 import ResNet20


def trained(model=DigitsNet, seed=1):
    torch.manual_seed(seed)
    return model()


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def arrays(model) -> dict:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".ckpt", ".bin"])
@pytest.mark.parametrize("wrap", [
    lambda state: state, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state},
    lambda state: {"state_dict": OrderedDict((f"module.{k}", v) for k, v in state.items()), "best": 0.5},
    lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()}])
def test_state_dicts_load_out_of_their_wrappers_and_prefixes(wrap, suffix, tmp_path):
    saved, model = trained(), trained(seed=2)
    torch.save(wrap(saved.state_dict()), tmp_path / f"net{suffix}")
    assert not same(model, saved)
    loaded = load_checkpoint(model, tmp_path / f"net{suffix}")
    assert loaded is model and not model.training and same(model, saved)


def test_numpy_archives_load_and_half_precision_is_widened(tmp_path):
    saved = trained(ResNet20)
    np.savez(tmp_path / "net.npz", **arrays(saved))
    assert same(load_checkpoint(trained(ResNet20, 2), tmp_path / "net.npz"), saved)
    halves = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in arrays(saved).items()}
    np.savez(tmp_path / "half.npz", **halves)
    model = load_checkpoint(trained(ResNet20, 2), tmp_path / "half.npz")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert np.array_equal(model.linear.weight.detach().numpy(), halves["linear.weight"].astype(np.float32))


def test_safetensors_load_where_the_library_is_installed(tmp_path):
    library = pytest.importorskip("safetensors.torch", reason="needs the package safetensors, an optional reader")
    saved = trained()
    library.save_file(saved.state_dict(), tmp_path / "net.safetensors")
    assert same(load_checkpoint(trained(seed=2), tmp_path / "net.safetensors"), saved)
    (tmp_path / "net.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match=r"^.*net\.safetensors is damaged, or no safetensors file \(.*\)$"):
        load_checkpoint(trained(), tmp_path / "net.safetensors")


def test_without_the_library_safetensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "net.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^.*net\.safetensors: reading it needs the package safetensors; install it, or save "
                                         r"the tensors as \.npz$"):
        load_checkpoint(trained(), tmp_path / "net.safetensors")


def without(*names):
    return lambda state: {k: v for k, v in state.items() if k not in names}


@pytest.mark.parametrize("change, message", [
    (without("fc1.bias"), r"missing tensors: fc1\.bias"),
    (without("conv2.weight", "fc1.bias", "fc2.bias"), r"missing tensors: conv2\.weight \(and 2 more\)"),
    (lambda state: {**state, "extra": torch.ones(2)}, r"unexpected tensors: extra"),
    (lambda state: {**state, "fc2.weight": torch.ones(7, 64)}, r"fc2\.weight has shape \(7, 64\) and not \(10, 64\)"),
    (lambda state: {**state, "fc2.weight": torch.ones(7, 64), "fc2.bias": torch.ones(7)},
     r"fc2\.weight \(and 1 more\) has shape \(7, 64\) and not \(10, 64\)"),
    (lambda state: {**without("conv1.bias")(state), "conv0.bias": torch.ones(3), "fc2.bias": torch.ones(2, 5)},
     r"missing tensors: conv1\.bias; unexpected tensors: conv0\.bias; fc2\.bias has shape \(2, 5\) and not \(10,\)"),
])
def test_a_mismatch_names_the_first_tensors_and_leaves_the_model(change, message, tmp_path):
    path, model = tmp_path / "net.pth", trained(seed=2)
    torch.save(change(trained().state_dict()), path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} does not fit DigitsNet: {message}$"):
        load_checkpoint(model, path)
    assert same(model, trained(seed=2)) and model.training


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    def refuses(name, message):
        with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / name))}{message}$"):
            read_tensors(tmp_path / name)

    with pytest.raises(ValueError, match=r"^there is no checkpoint .*none\.pth$"):
        read_tensors(tmp_path / "none.pth")
    (tmp_path / "net.h5").write_bytes(b"x")
    refuses("net.h5", r": checkpoints are \.npz, \.safetensors or \.pth, \.pt, \.th, \.ckpt, \.bin, \.tar")
    torch.save(DigitsNet(), tmp_path / "whole.pth")
    refuses("whole.pth", r" is damaged, or holds more than tensors \([^\n]*\); save a model's state_dict\(\)")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    refuses("list.pth", r" holds a list and no state dict; save a model's state_dict\(\)")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    refuses("empty.pth", r" holds no tensors; save a model's state_dict\(\)")
    for name, save in (("net.pth", lambda p: torch.save(trained().state_dict(), p)),
                       ("net.npz", lambda p: np.savez(p, **arrays(trained())))):
        save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        for length in (0, 10, len(content) // 2):
            (tmp_path / name).write_bytes(content[:length])
            refuses(name, r" is damaged, or (holds more than tensors|no \.npz of plain arrays) \([^\n]*\).*")
    np.savez(tmp_path / "objects.npz", weight=np.array([{"a": 1}], dtype=object))
    refuses("objects.npz", r" is damaged, or no \.npz of plain arrays \([^\n]*\)")


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {"weight": Runs()}}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"is damaged, or holds more than tensors \("):
        read_tensors(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


def test_folded_batch_norms_load_on_request(tmp_path):
    saved = {k: v for k, v in arrays(trained(ResNet20)).items() if "running" not in k and "batches" not in k}
    np.savez(tmp_path / "net.npz", **saved)
    with pytest.raises(ValueError, match=r"^.*missing tensors: bn1\.running_mean \(and 37 more\) \(if its batch norms hold scale and "
                                         r"shift only, say folded_statistics=True\)$"):
        load_checkpoint(ResNet20(), tmp_path / "net.npz")
    model = ResNet20()
    model.bn1.running_var.fill_(3)
    model.layer1[0].bn1.running_mean.fill_(3)
    load_checkpoint(model, tmp_path / "net.npz", folded_statistics=True)
    assert (model.bn1.running_var == 1).all() and (model.layer1[0].bn1.running_mean == 0).all()


def test_the_names_of_published_files_are_translated(tmp_path):
    """DenseNet's file has norm.1 for norm1, GoogLeNet's the auxiliary heads."""
    options = dict(classes=5, blocks=(2, 2, 2, 2), growth=4)
    saved = DenseNet(**options)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in saved.state_dict().items()}
    assert "features.denseblock1.denselayer2.norm.2.running_var" in old
    torch.save(old, tmp_path / "densenet.pth")
    assert same(load_network("densenet121", tmp_path / "densenet.pth", **options), saved)
    saved = NETWORKS["googlenet"](classes=5)
    torch.save({**saved.state_dict(), "aux1.fc1.weight": torch.ones(3), "aux2.conv.bn.bias": torch.ones(3)},
               tmp_path / "googlenet.pth")
    assert same(load_network("googlenet", tmp_path / "googlenet.pth", classes=5), saved)


def test_an_unknown_network_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^no network named 'resnet19'; known: lenet5, lenet-caffe, digits, tfc, "):
        network("resnet19")


# -- the public weights -------------------------------------------------------------------------------------------
WEIGHTS = Path(os.environ.get("ESBFLOW_DATA", "")) / "weights"
public = pytest.mark.skipif(not (os.environ.get("ESBFLOW_DATA") and WEIGHTS.is_dir()),
                            reason="needs the public weights: set ESBFLOW_DATA to a folder that holds weights")


@public
@pytest.mark.parametrize("name, file", [("resnet20", "resnet20_cifar10"), ("resnet32", "resnet32_cifar10"),
                                        ("resnet56", "resnet56_cifar10"), ("lenet-caffe", "lenet_mnist")])
def test_public_weights_load(name, file):
    model = load_network(name, WEIGHTS / f"{file}.npz")
    with np.load(WEIGHTS / f"{file}.npz") as content:
        for key, value in model.state_dict().items():
            if "num_batches" not in key and "shortcut" not in key:
                assert np.array_equal(value.numpy(), content[key])


@public
def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"resnet32_cifar10\.npz does not fit ResNet20: unexpected tensors: layer1\.3\.conv1\.weight "
                                         r"\(and 59 more\)$"):
        load_checkpoint(ResNet20(), WEIGHTS / "resnet32_cifar10.npz")
    with pytest.raises(ValueError, match=r"lenet_mnist\.npz does not fit LeNet5: missing tensors: fc1\.weight \(and 3 more\); "
                                         r"unexpected tensors: ip1\.weight \(and 3 more\)$"):
        load_checkpoint(LeNet5(), WEIGHTS / "lenet_mnist.npz")
    with pytest.raises(ValueError, match=r"folded_statistics=True\)$"):
        load_checkpoint(ResNet18(), WEIGHTS / "resnet18_imagenet.npz")
