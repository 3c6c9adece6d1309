"""The networks by name: what makes one, the shape of its images and how many classes it tells apart."""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from esbflow.errors import BadValue
from esbflow.networks.alexnet import AlexNet
from esbflow.networks.cifarnet import CifarNet
from esbflow.networks.cnv import CNV
from esbflow.networks.densenet import DenseNet
from esbflow.networks.digits import DigitsNet
from esbflow.networks.googlenet import GoogLeNet
from esbflow.networks.lenet5 import CaffeLeNet, LeNet5
from esbflow.networks.mlp import MLP
from esbflow.networks.mobilenet_v2 import MobileNetV2
from esbflow.networks.resnet import ResNet18, ResNet50
from esbflow.networks.resnet20 import ResNet, ResNet20
from esbflow.networks.signals import M5, VGG10
from esbflow.networks.unet import UNet
from esbflow.networks.vgg_small import VGGSmall
from esbflow.suggest import no_such


@dataclass(frozen=True)
class Network:
    """`make(classes=...)` makes the network; so does calling the entry."""

    make: Callable
    shape: tuple
    """(c, h, w) of the images, or (c, length) of the sequences, that it was published for."""
    classes: int
    unused: tuple = ()
    """Prefixes of tensors that published checkpoints hold and inference does not need."""
    renamed: tuple = ()
    """(pattern, replacement) of names in published checkpoints, as re.sub takes them."""

    def __call__(self, **options) -> nn.Module:
        return self.make(**{"classes": self.classes, **options})


def _cifar_resnet(depth: int) -> Network:
    return Network(lambda classes: ResNet(depth, classes), ResNet.shape, 10)


def _mlp(width: int) -> Network:
    return Network(lambda classes: MLP(width, classes), MLP.shape, 10)


IMAGENET = (3, 224, 224)
NETWORKS = {
    "lenet5": Network(LeNet5, LeNet5.shape, 10),
    "lenet-caffe": Network(CaffeLeNet, CaffeLeNet.shape, 10),
    "digits": Network(DigitsNet, DigitsNet.shape, 10),
    "tfc": _mlp(64),
    "sfc": _mlp(256),
    "lfc": _mlp(1024),
    "cifarnet": Network(CifarNet, CifarNet.shape, 10),
    "cnv": Network(CNV, CNV.shape, 10),
    "vgg-small": Network(VGGSmall, VGGSmall.shape, 10),
    "vgg7-64": Network(lambda classes: VGGSmall(classes, width=64, hidden=1024), VGGSmall.shape, 10),
    "resnet20": Network(ResNet20, ResNet20.shape, 10),
    "resnet32": _cifar_resnet(32),
    "resnet56": _cifar_resnet(56),
    "resnet18": Network(ResNet18, IMAGENET, 1000),
    "resnet50": Network(ResNet50, IMAGENET, 1000),
    "mobilenet-v2": Network(MobileNetV2, IMAGENET, 1000),
    "alexnet": Network(AlexNet, IMAGENET, 1000),
    "googlenet": Network(GoogLeNet, IMAGENET, 1000, unused=("aux1.", "aux2.")),
    # The published file is older than the names without a dot (norm.1 for norm1).
    "densenet121": Network(DenseNet, IMAGENET, 1000,
                           renamed=((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)),
    "unet": Network(UNet, UNet.shape, 1),
    "vgg10": Network(VGG10, VGG10.shape, 24),
    "m5": Network(M5, M5.shape, 10),
}


def network(name: str) -> Network:
    """The entry of a name, or of a network of the user's own: MODULE:FACTORY.

    MODULE is imported as Python does, from the current folder too; FACTORY is called without arguments and makes an
    nn.Module. Its `shape`, (c, h, w) of the images, may be an attribute of the factory; else it is None.

    Raises
    ------
    ValueError
        for an unknown name, listing the known ones; for a module or factory that is not there.
    """
    if ":" in name:
        return _own(name)
    if name not in NETWORKS:
        raise BadValue(no_such("network", name, NETWORKS))
    return NETWORKS[name]


def _own(name: str) -> Network:
    module, _, factory = name.partition(":")
    here, places = os.getcwd(), list(sys.path)
    try:
        sys.path.insert(0, here)
        make = getattr(importlib.import_module(module), factory)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise BadValue(f"there is no module {error.name} in {here} or on Python's path; a network of your own is "
                       "MODULE:FACTORY, such as mynet:make") from None
    except (AttributeError, ValueError) as error:
        raise BadValue(f"{name} names no factory of a network ({error}); a network of your own is MODULE:FACTORY, such as "
                       "mynet:make") from None
    finally:
        sys.path[:] = places

    def made(classes=None) -> nn.Module:  # noqa: ARG001 - a network of one's own has its classes
        model = make()
        if not isinstance(model, nn.Module):
            raise BadValue(f"{name} made a {type(model).__name__}, not an nn.Module; return the network in real numbers")
        return model

    return Network(made, getattr(make, "shape", None), 0)
