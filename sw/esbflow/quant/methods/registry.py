"""The methods by name: a text such as "vecq:2" or "sq:twn" -> a quantizer.

A text is a format ("esb4.1", "s8": its levels, with scales of least error) or METHOD or METHOD:ARGUMENTS. It is what
recipes, checkpoints and the command line hold.
"""

from collections.abc import Callable
from dataclasses import dataclass

from esbflow.errors import BadValue
from esbflow.numbers import ESB, Format, Signed, Unsigned
from esbflow.quant.activation import ActivationQuantizer
from esbflow.quant.methods.alq import ALQQuantizer
from esbflow.quant.methods.apot import APoTQuantizer
from esbflow.quant.methods.binary import BinaryQuantizer
from esbflow.quant.methods.dorefa import DoReFaActivation, DoReFaQuantizer
from esbflow.quant.methods.esb import ESBWeightQuantizer
from esbflow.quant.methods.lqnets import LQActivation, LQWeightQuantizer
from esbflow.quant.methods.lsq import LSQWeightQuantizer
from esbflow.quant.methods.pact import PACTActivation
from esbflow.quant.methods.pot import PowerOfTwoQuantizer
from esbflow.quant.methods.product import ProductQuantizer
from esbflow.quant.methods.sq import StochasticQuantizer
from esbflow.quant.methods.srq import SRQActivation, SRQWeightQuantizer
from esbflow.quant.methods.twn import TernaryQuantizer
from esbflow.quant.methods.ul2q import MuL2QQuantizer
from esbflow.quant.methods.uniform import UniformQuantizer
from esbflow.quant.methods.vecq import VecQQuantizer
from esbflow.quant.weights import WeightQuantizer
from esbflow.suggest import nearest


@dataclass(frozen=True)
class Options:
    """What a recipe says of all weights."""

    per_channel: bool | None = None
    """None: as the method was published."""
    scale_mode: str = "refined"


@dataclass(frozen=True)
class Method:
    """`make(arguments, options, name)` makes a quantizer; `usage` shows how the text is written."""

    usage: str
    title: str
    make: Callable


def _bits(arguments: list, usage: str) -> int:
    if not arguments or not arguments[0].isdigit():
        raise BadValue(f"write {usage}, with the number of bits")
    return int(arguments[0])


def _channels(options: Options, published: bool) -> bool:
    return published if options.per_channel is None else options.per_channel


def _by_bits(cls, published: bool, flag: str | None = None, keyword: str | None = None):
    """A method of bits and at most one flag word."""
    def make(arguments, options, name):
        rest = arguments[1:]
        extra = {keyword: True} if flag in rest else {}
        if len(rest) > len(extra):
            raise BadValue(f"{rest[-1]!r} is no option here" + (f"; known: {flag}" if flag else ""))
        return cls(_bits(arguments, "METHOD:BITS"), per_channel=_channels(options, published), name=name, **extra)
    return make


def _no_arguments(cls, published: bool, flag: str | None = None, keyword: str | None = None):
    def make(arguments, options, name):
        extra = {keyword: True} if flag in arguments else {}
        if len(arguments) > len(extra):
            raise BadValue(f"{arguments[-1]!r} is no option here" + (f"; known: {flag}" if flag else ""))
        return cls(per_channel=_channels(options, published), name=name, **extra)
    return make


def _lsq(arguments, options, name):
    if not arguments:
        raise BadValue("write lsq:FORMAT, such as lsq:s4")
    return LSQWeightQuantizer(Format.parse(",".join(arguments)), _channels(options, False), name)


def _pot(arguments, options, name):
    return PowerOfTwoQuantizer(_bits(arguments, "pot:BITS"), _channels(options, True), options.scale_mode, name)


def _srq(arguments, options, name):
    mode = arguments[1] if len(arguments) > 1 else "fixed"
    return SRQWeightQuantizer(_bits(arguments, "srq:BITS"), mode, _channels(options, False), name=name)


def _alq(arguments, _options, name):
    if len(arguments) > 2:
        raise BadValue(f"{arguments[2]!r} is no option here")
    return ALQQuantizer(_bits(arguments, "alq:BITS"), *arguments[1:], name=name)


def _pq(arguments, options, name):
    if len(arguments) < 2 or not all(a.isdigit() for a in arguments[:2]):
        raise BadValue("write pq:K,d or pq:K,d,FORMAT, such as pq:256,9,esb4.1")
    form = Format.parse(",".join(arguments[2:])) if len(arguments) > 2 else None
    return ProductQuantizer(int(arguments[0]), int(arguments[1]), form, _channels(options, False), name)


WEIGHT_METHODS = {
    "ul2q": Method("ul2q:BITS[,centred]", "muL2Q", _by_bits(MuL2QQuantizer, False, "centred", "centred")),
    "vecq": Method("vecq:BITS[,norm]", "VecQ", _by_bits(VecQQuantizer, False, "norm", "norm_ratio")),
    "lqnets": Method("lqnets:BITS", "LQ-Nets", _by_bits(LQWeightQuantizer, True)),
    "srq": Method("srq:BITS[,drop|learn]", "SRQ + DropBits", _srq),
    "binary": Method("binary", "binary (BWN)", _no_arguments(BinaryQuantizer, True)),
    "twn": Method("twn[,layer]", "ternary (TWN)", _no_arguments(TernaryQuantizer, True, "layer", "layer_threshold")),
    "uniform": Method("uniform:BITS", "uniform, largest magnitude", _by_bits(UniformQuantizer, True)),
    "dorefa": Method("dorefa:BITS", "DoReFa", _by_bits(DoReFaQuantizer, False)),
    "lsq": Method("lsq:FORMAT", "LSQ", _lsq),
    "pot": Method("pot:BITS", "powers of two", _pot),
    "apot": Method("apot:BITS", "APoT", _by_bits(APoTQuantizer, False)),
    "alq": Method("alq:BITS[,kernel|channel|pixel|sub2]", "ALQ", _alq),
    "pq": Method("pq:K,d[,FORMAT]", "product quantization", _pq),
}
"""Methods for weights, but for SQ, which wraps another: "sq:METHOD", "sq(ramped,softmax):METHOD"."""

ACTIVATION_METHODS = {
    "pact": Method("pact:BITS", "PACT", lambda a, name: PACTActivation(_bits(a, "pact:BITS"), name=name)),
    "dorefa": Method("dorefa:BITS", "DoReFa", lambda a, name: DoReFaActivation(_bits(a, "dorefa:BITS"), name=name)),
    "lqnets": Method("lqnets:BITS", "LQ-Nets", lambda a, name: LQActivation(_bits(a, "lqnets:BITS"), name=name)),
    "srq": Method("srq:BITS", "SRQ", lambda a, name: SRQActivation(_bits(a, "srq:BITS"), name=name)),
}


def weight_quantizer(text: str, options: Options = Options(), name: str = "weight") -> WeightQuantizer:
    """The quantizer that a text describes.

    Raises
    ------
    ValueError
        if the text is none, saying how it is written.

    >>> weight_quantizer("vecq:2")
    VecQQuantizer(cb[-3,-1,1,3], per tensor)
    """
    if text.split(":")[0].split("(")[0] == "sq":
        return _stochastic(text, options, name)
    head, _, tail = text.partition(":")
    words = head.split(",")
    method = WEIGHT_METHODS.get(words[0])
    if method is None:
        return _from_format(text, options, name)
    try:
        return method.make(words[1:] + [a for a in tail.split(",") if a], options, name)
    except ValueError as error:
        raise BadValue(f"{text!r} ({method.usage}): {error}") from None


def _from_format(text, options, name):
    try:
        form = Format.parse(text)
    except ValueError:
        raise BadValue(f"{text!r} is neither a format (esb4.1, s8) nor a method ("
                       + ", ".join(m.usage for m in WEIGHT_METHODS.values()) + ", sq:METHOD)"
                       + nearest(text.partition(":")[0], [*WEIGHT_METHODS, "sq"])) from None
    if not form.signed:
        raise BadValue(f"weights need a signed format, not {text}: negative ones would be lost")
    return ESBWeightQuantizer(form, _channels(options, True), options.scale_mode, name=name)


def _stochastic(text, options, name):
    head, _, inner = text.partition(":")
    words = head[3:-1].split(",") if head.startswith("sq(") and head.endswith(")") else []
    if not inner or (head != "sq" and not words):
        raise BadValue(f"{text!r}: write sq:METHOD or sq(SCHEDULE,SELECTION):METHOD, such as sq(ramped,linear):twn")
    return StochasticQuantizer(weight_quantizer(inner, options, name), schedule=words[0] if words else "staged",
                               selection=words[1] if len(words) > 1 else "linear")


def activation_quantizer(text: str, scale: str = "learned", name: str = "activation",
                         power_of_two: bool = False) -> ActivationQuantizer:
    """The quantizer of activations that a text describes: a format, or a method.

    Raises
    ------
    ValueError
        if the text is neither, the format does not contain zero, or the method has no scale that can be a power of two where
        it is to be one.
    """
    quantizer = _activation_quantizer(text, scale, name)
    if power_of_two and type(quantizer) not in (ActivationQuantizer, PACTActivation):
        raise BadValue(f"power_of_two: the method {text!r} has levels of its own; use a format (u4, uesb4.2) or pact:BITS")
    quantizer.power_of_two = power_of_two
    return quantizer


def _activation_quantizer(text: str, scale: str, name: str) -> ActivationQuantizer:
    head, _, tail = text.partition(":")
    method = ACTIVATION_METHODS.get(head)
    if method is not None and tail:
        try:
            return method.make(tail.split(","), name)
        except ValueError as error:
            raise BadValue(f"{text!r} ({method.usage}): {error}") from None
    try:
        form = Format.parse(text)
    except ValueError:
        raise BadValue(f"{text!r} is neither a format (u4, uesb4.2) nor a method for activations ("
                       + ", ".join(m.usage for m in ACTIVATION_METHODS.values()) + ")"
                       + nearest(text.partition(":")[0], ACTIVATION_METHODS)) from None
    if not isinstance(form, (ESB, Signed, Unsigned)) or not form.contains(0):
        raise BadValue(f"an activation format must contain zero, {form} does not")
    return ActivationQuantizer(form, scale, name=name)
