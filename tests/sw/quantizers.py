"""The methods by their texts, and tensors to try them on."""

import torch

from esbflow.quant.methods.registry import Options, weight_quantizer

WEIGHTS = ["esb4.1", "esb3.1", "esb2.0", "esb5.2", "s4", "bin", "cb[-3,-1,1,3]", "ul2q:1", "ul2q:2", "ul2q:4",
           "ul2q:2,centred", "vecq:1", "vecq:2", "vecq:4", "vecq:2,norm", "vecq:10", "lqnets:1", "lqnets:2", "lqnets:3",
           "srq:4", "srq:4,drop", "srq:4,learn", "binary", "twn", "twn,layer", "uniform:4", "dorefa:1", "dorefa:4", "lsq:s4",
           "lsq:esb4.1", "lsq:cb[-3,-1,1,3]", "pot:4", "apot:2", "apot:4", "sq:twn", "sq:binary",
           "sq(ramped,softmax):esb4.1", "sq:lqnets:2"]
ACTIVATIONS = ["u4", "uesb4.2", "pact:4", "dorefa:4", "lqnets:2", "lqnets:4", "srq:4"]


def make(text, w, **options):
    quantizer = weight_quantizer(text, Options(**options))
    quantizer.prepare(w)
    return quantizer


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prepared(w, planes=3, grouping="kernel"):
    return make(f"alq:{planes},{grouping}", w)
