"""Stochastic quantization: which filters are quantized, and when."""

import pytest
import torch

from esbflow.quant.methods.registry import weight_quantizer
from esbflow.quant.methods.sq import SELECTIONS, selection_weights
from tests.sw.quantizers import gaussian, make


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_sq_quantizes_the_stated_part_of_the_filters(ratio):
    w = gaussian(16, 30)
    quantizer = make("sq:twn", w)
    quantizer.ratio = ratio
    torch.manual_seed(0)
    mixed = quantizer(w)
    quantized = (mixed != w).any(dim=1)
    assert int(quantized.sum()) == ratio * 16
    assert torch.equal(mixed[quantized], quantizer.inner(w)[quantized])
    quantizer.eval()
    assert torch.equal(quantizer(w), quantizer.inner(w))


def test_sq_prefers_filters_of_small_error_and_stages_its_ratio():
    errors = torch.tensor([0.1, 0.2, 0.4])
    for rule in SELECTIONS:
        p = selection_weights(errors, rule)
        assert (p.diff() <= 0).all() and (rule == "constant") == bool((p.diff() == 0).all())
    p = selection_weights(errors, "linear")
    assert (p[0] / p[1]).item() == pytest.approx(2, rel=1e-5)
    for text, wanted in (("sq:binary", [0.5, 0.75, 0.875, 1.0, 1.0]), ("sq(ramped,linear):binary", [0.5, 0.95, 1, 1, 1])):
        quantizer = weight_quantizer(text)
        ratios = []
        for progress in (0.0, 0.3, 0.6, 0.8, 1.0):
            quantizer.advance(progress)
            ratios.append(quantizer.ratio)
        assert ratios == pytest.approx(wanted)
    single = make("sq:binary", gaussian(1, 9))
    assert not torch.equal(single(gaussian(1, 9)), gaussian(1, 9)), "one filter is always quantized"
