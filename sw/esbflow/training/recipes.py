"""Frozen training recipes: data set, network, formats and schedules that were measured together (docs/quantization.md)."""

from dataclasses import dataclass, field, replace

from esbflow.errors import BadValue
from esbflow.quant.recipe import Recipe
from esbflow.training.alq import ALQSchedule
from esbflow.training.loop import Schedule
from esbflow.training.product import ProductSchedule


@dataclass(frozen=True)
class TrainingRecipe:
    """Train in real numbers with `real`, then quantize by `quant` and train on with `low_bit`.

    start : name of trained real weights, ESBFLOW_DATA/weights/START.npz, in place of training with `real` (None then).
    teacher : (network, weights under ESBFLOW_DATA/weights) to distil from; None is the network itself in real numbers.
    """

    network: str
    data: str
    real: Schedule | None
    low_bit: Schedule | ALQSchedule | ProductSchedule
    quant: Recipe = field(default_factory=Recipe)
    start: str | None = None
    teacher: tuple | None = None

    def with_epochs(self, epochs: int | None) -> "TrainingRecipe":
        """The same with another number of epochs in each stage."""
        if epochs is None:
            return self
        real = self.real and replace(self.real, epochs=epochs)
        return replace(self, real=real, low_bit=self.low_bit.with_epochs(epochs))

    def changed(self, rate: float | None = None, batch: int | None = None, sharpness: float | None = None,
                **quant) -> "TrainingRecipe":
        """The same with another rate, batch and sharpness of the low-bit stage, and other fields of `quant`; None
        leaves one.

        Raises
        ------
        ValueError
            if the stage is of a method that has no such thing.
        """
        given = _given(rate=rate, batch=batch, sharpness=sharpness)
        missing = [name for name in given if not hasattr(self.low_bit, name)]
        if missing:
            raise BadValue(f"{type(self.low_bit).__name__} has no {missing[0]}; leave it out with this recipe")
        return replace(self, low_bit=replace(self.low_bit, **given), quant=replace(self.quant, **_given(**quant)))


def _given(**fields) -> dict:
    return {name: value for name, value in fields.items() if value is not None}


CIFAR10_MEAN, CIFAR10_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""As the public CIFAR-10 ResNets were trained (they are ImageNet's)."""


def resnet20(weights: str, activations: str, epochs: int, rate: float, residual: str | None = "u8") -> TrainingRecipe:
    """ResNet-20 on CIFAR-10 from the public real weights (91.73 %), first and last layer at 8 bits, a public ResNet-56
    (93.39 %) the teacher. After 6 epochs 4 bits came to 91.1 % with the network itself as teacher and a rate of 0.01, to
    91.3 % with the ResNet-56 and 0.03, after 15 at 0.015 to 91.6 %. Fewer bits need the lower rate, or what the weights
    know is lost: at 2 bits 15 epochs came to 87.0 % at 0.04 and to 88.3 % at 0.01; with PACT, learned scales and batches
    of 64 to 88.3 % after 12 and 88.4 % after 15, and to 88.6 % with sharpness 0.2 in the last five of those (88.3 % with
    0.1: two runs differ by a quarter point anyhow)."""
    return TrainingRecipe(
        network="resnet20", data="cifar10", real=None, start="resnet20_cifar10", teacher=("resnet56", "resnet56_cifar10"),
        low_bit=Schedule(epochs=epochs, batch=128, rate=rate, shift=4, mirror=True, distill=0.7, temperature=3.0),
        quant=Recipe(weights=weights, activations=activations, residual_activations=residual, mean=CIFAR10_MEAN,
                     std=CIFAR10_STD))


def resnet56(weights: str, activations: str, epochs: int, rate: float) -> TrainingRecipe:
    """ResNet-56 on CIFAR-10 from the public real weights (93.39 %), which teach it too; all layers alike, first and last
    included, as stochastic quantization was published."""
    like = resnet20(weights, activations, epochs, rate)
    return replace(like, network="resnet56", start="resnet56_cifar10", teacher=None,
                   quant=replace(like.quant, first_weights=weights, last_weights=weights))


def alq_lenet5() -> TrainingRecipe:
    """To 0.4 bits a weight, with the groups that were published for LeNet-5."""
    return TrainingRecipe(
        network="lenet5", data="mnist", real=Schedule(epochs=3, batch=64, rate=0.03, shift=1),
        low_bit=ALQSchedule(rounds=2, shadow_epochs=4),
        quant=Recipe(weights="alq:2,sub2", first_weights="alq:2,kernel", last_weights="alq:2,channel", activations="u4",
                     overrides=(("conv*", "alq:2,kernel"),)))


def pq_lenet5(form: str = "") -> TrainingRecipe:
    """256 codewords a layer, of real numbers or of a format (",esb4.1")."""
    return TrainingRecipe(
        network="lenet5", data="mnist", real=Schedule(epochs=3, batch=64, rate=0.03, shift=1), low_bit=ProductSchedule(),
        quant=Recipe(weights="pq:256,8" + form, first_weights="pq:256,5" + form, last_weights="pq:256,4" + form,
                     activations="u4", overrides=(("conv2", "pq:256,5" + form),)))


def resnet20_by(low_bit, weights: str) -> TrainingRecipe:
    """ResNet-20 with 4-bit activations by a method with a training of its own, in about three epochs."""
    like = resnet20(weights, "u4", 1, 0.01)
    return replace(like, low_bit=low_bit, teacher=None)


def vgg_small(weights: str, activations: str) -> TrainingRecipe:
    """VGG-small on CIFAR-10 from nothing, then at low bits with a public ResNet-56 as teacher. Not measured to its end: with
    608 M MACs an image, 15 times ResNet-20's, it is for a GPU. The first stage has the rate that LQ-Nets was published with
    and a slow start: its last layer reads 8,192 features, and at 0.05 from the first step on the loss went from 2.3 to 82 in
    four steps, the first layer's weights grew sixfold, and seven epochs ended at 55 %. The second stage is ResNet-20's at 2
    bits."""
    return TrainingRecipe(
        network="vgg-small", data="cifar10", teacher=("resnet56", "resnet56_cifar10"),
        real=Schedule(epochs=100, batch=128, rate=0.02, weight_decay=5e-4, shift=4, mirror=True, warmup=2),
        low_bit=Schedule(epochs=60, batch=128, rate=0.02, shift=4, mirror=True, distill=0.7, temperature=3.0,
                         sharpness=0.2),
        quant=Recipe(weights=weights, activations=activations, scale_mode="learned", mean=CIFAR10_MEAN, std=CIFAR10_STD))


def vgg7(weights: str, epochs: int) -> TrainingRecipe:
    """VGG7-64 on CIFAR-10 from nothing, with the last layer at 8 bits, as muL2Q was published. 154 M MACs an image. Not
    measured to its end; the slow start took the loss after 80 steps from 1.96 to 1.73."""
    return TrainingRecipe(
        network="vgg7-64", data="cifar10",
        real=Schedule(epochs=12, batch=128, rate=0.05, weight_decay=5e-4, shift=4, mirror=True, warmup=0.25),
        low_bit=Schedule(epochs=epochs, batch=128, rate=0.01, shift=4, mirror=True, distill=0.7, temperature=3.0),
        quant=Recipe(weights=weights, first_weights=weights, activations="u8", mean=CIFAR10_MEAN, std=CIFAR10_STD))


def cifarnet(weights: str, epochs: int) -> TrainingRecipe:
    """CifarNet on CIFAR-10, otherwise as `vgg7`."""
    return replace(
        vgg7(weights, epochs), network="cifarnet",
        real=Schedule(epochs=20, batch=128, rate=0.1, weight_decay=1e-4, shift=2, mirror=True),
        low_bit=Schedule(epochs=epochs, batch=128, rate=0.02, shift=2, mirror=True, distill=0.7, temperature=3.0))


def cnv(weights: str, activations: str) -> TrainingRecipe:
    """CNV on CIFAR-10 from nothing, all layers alike, with a public ResNet-20 (91.73 %) as teacher of the second stage."""
    return TrainingRecipe(
        network="cnv", data="cifar10", teacher=("resnet20", "resnet20_cifar10"),
        real=Schedule(epochs=10, batch=128, rate=0.1, weight_decay=2e-4, shift=4, mirror=True),
        low_bit=Schedule(epochs=8, batch=128, rate=0.02, shift=4, mirror=True, distill=0.7, temperature=3.0),
        quant=Recipe(weights=weights, activations=activations, first_weights=weights, last_weights=weights,
                     mean=CIFAR10_MEAN, std=CIFAR10_STD))


def mlp(network: str, weights: str, activations: str, input_bits: int) -> TrainingRecipe:
    """TFC, SFC or LFC on MNIST from nothing, all layers alike, the image of few bits too."""
    return TrainingRecipe(
        network=network, data="mnist", real=Schedule(epochs=6, batch=128, rate=0.05, shift=1),
        low_bit=Schedule(epochs=16, batch=128, rate=0.02, shift=1, distill=0.7, temperature=3.0),
        quant=Recipe(weights=weights, activations=activations, first_weights=weights, last_weights=weights,
                     input_bits=input_bits))


RECIPES = {
    "lenet5-mnist": TrainingRecipe(
        network="lenet5", data="mnist", real=Schedule(epochs=2, batch=64, rate=0.03, shift=1),
        low_bit=Schedule(epochs=1, batch=64, rate=0.01, shift=1),
        quant=Recipe(weights="esb4.1", activations="u4", first_weights="esb4.1", last_weights="esb4.1")),
    "digits": TrainingRecipe(
        network="digits", data="digits", real=Schedule(epochs=30, batch=32, rate=0.05, shift=1),
        low_bit=Schedule(epochs=15, batch=32, rate=0.02, shift=1),
        quant=Recipe(weights="esb4.1", activations="u4", first_weights="esb4.1", last_weights="esb4.1")),
    "resnet20-cifar10-w4a4": resnet20("esb4.1", "u4", 15, 0.015),
    "resnet20-cifar10-w3a3": resnet20("esb3.1", "u3", 12, 0.01),
    "resnet20-cifar10-w2a2": resnet20("esb2.0", "pact:2", 15, 0.005).changed(
        batch=64, sharpness=0.2, scale_mode="learned"),
    "resnet56-cifar10-w2a8": resnet56("sq(ramped,linear):twn", "u8", 3, 0.01),
    "lenet5-mnist-alq": alq_lenet5(),
    "lenet5-mnist-pq": pq_lenet5(),
    "lenet5-mnist-pq-esb": pq_lenet5(",esb4.1"),
    # Four planes a channel, pruned to 3.5 bits a weight over all layers.
    "resnet20-cifar10-alq": resnet20_by(ALQSchedule(3.5, 1, 1, 0, shadow_epochs=1, shift=4, mirror=True), "alq:4,channel"),
    # 18 layers of 20 steps are about an epoch. A block is a row of a kernel: blocks of whole kernels (pq:256,9) take a fifth
    # less memory, since codebooks are large beside a small network, and came to 87.9 %, rows to 90.0 %.
    "resnet20-cifar10-pq": resnet20_by(ProductSchedule(layer_steps=20, epochs=2, shift=4, mirror=True), "pq:256,3"),
    "vgg-small-cifar10-w2a2": vgg_small("esb2.0", "pact:2"),
    "vgg7-64-cifar10-w2a8": vgg7("ul2q:2", 4),
    "cifarnet-cifar10-w2a8": cifarnet("ul2q:2", 6),
    "cnv-cifar10-w2a2": cnv("esb2.0", "u2"),
    "lfc-mnist-w1a1": mlp("lfc", "binary", "u1", 1),
    "tfc-mnist-w2a2": mlp("tfc", "esb2.0", "u2", 2),
}
