"""The searched scale of weights has the least error, whatever the distribution and the format."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esbflow.numbers import ESB, Binary, Codebook, Format, Signed
from esbflow.quant.base import round_to_levels
from esbflow.quant.methods.esb import ESBWeightQuantizer
from esbflow.quant.scale_search import LONG, SWEPT, least_error_scales, sweep
from tests.sw.quantizers import gaussian

FORMATS = ["esb4.1", "esb3.0", "esb3.1", "esb2.0", "esb4.0", "esb4.2", "esb5.0", "esb5.1", "esb6.3", "esb8.5", "esb8.6",
           "s2", "s3", "s4", "s6", "s8", "bin", "cb[-3,-1,1,3]", "cb[-4,-1,0,1,4]", "cb[-3,0,1,2,9]"]
SIZES = [1, 2, 9, 27, 64, 147, 300, 576, 1024, 3000]


def laplace(u):
    return -u.sign() * torch.log1p(-2 * u.abs() + 1e-7)


KINDS = {
    "gaussian": lambda n, g: torch.randn(4, n, generator=g),
    "laplace": lambda n, g: laplace(torch.rand(4, n, generator=g) - 0.5),
    "student 1": lambda n, g: torch.randn(4, n, generator=g) / torch.randn(4, n, generator=g).abs().clamp(min=1e-6),
    "student 3": lambda n, g: torch.randn(4, n, generator=g) / (torch.randn(3, 4, n, generator=g).square().mean(0).sqrt()
                                                               + 1e-6),
    "sparse 90": lambda n, g: torch.randn(4, n, generator=g) * (torch.rand(4, n, generator=g) > 0.9),
    "sparse 99": lambda n, g: torch.randn(4, n, generator=g) * (torch.rand(4, n, generator=g) > 0.99),
    "one outlier": lambda n, g: outliers(n, g, 20.0),
    "far outlier": lambda n, g: outliers(n, g, -1e5),
    "uniform": lambda n, g: torch.rand(4, n, generator=g) - 0.5,
    "positive": lambda n, g: torch.rand(4, n, generator=g),
    "levels": lambda n, g: torch.randint(-100, 101, (4, n), generator=g) * 0.013,
}


def outliers(n, g, *values):
    rows = torch.randn(4, n, generator=g)
    rows[:, :len(values)] = torch.tensor(values)[:n]
    return rows


def error(rows, scale, form):
    rows, scale = rows.double(), scale.double()[:, None]
    return (round_to_levels(rows / scale, form) * scale - rows).square().sum(1)


def least(rows, form, steps):
    """Error of the best of `steps` scales up to twice that of the largest magnitude, and of those at which it is a level."""
    rows, best = rows.double(), torch.full((len(rows),), torch.inf, dtype=torch.float64)
    top = rows.abs().amax(1).clamp(min=1e-30) / form.max
    levels = [form.max / int(v) for v in form.levels if v > 0][-200:]
    for share in [*np.linspace(0.005, 2.0, steps), *levels]:
        best = torch.minimum(best, error(rows, top * share, form))
    return best


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.sampled_from(FORMATS), st.sampled_from(SIZES), st.integers(0, 10**6))
@example("one outlier", "s8", 1024, 0)
@example("one outlier", "esb4.1", 1024, 0)
@example("student 1", "esb8.5", 576, 0)
@example("sparse 90", "s8", 576, 1)
@example("far outlier", "cb[-3,0,1,2,9]", 1, 0)
def test_no_row_has_more_than_1_02_times_the_error_of_a_fine_search(kind, text, size, seed):
    rows, form = KINDS[kind](size, torch.Generator().manual_seed(seed)), Format.parse(text)
    found, wanted = error(rows, ESBWeightQuantizer(form).scale(rows)[:, 0], form), least(rows, form, 600)
    assert (found <= 1.02 * wanted + 1e-11 * rows.double().square().sum(1) + 1e-50).all(), found / wanted


REAL = Path(os.environ.get("ESBFLOW_DATA", ".")) / "weights"


@pytest.mark.parametrize("name", ["resnet18_imagenet", "resnet20_cifar10", "lenet_mnist"])
def test_nor_has_a_row_of_trained_weights(name):
    if not (REAL / f"{name}.npz").exists():
        pytest.skip("ESBFLOW_DATA has no such weights")
    weights = [value for value in np.load(REAL / f"{name}.npz").values() if value.ndim >= 2]
    for value in weights[::4]:
        rows = torch.from_numpy(value.reshape(len(value), -1)[:6]).float()
        for text in ("s8", "esb4.1", "esb2.0"):
            form = Format.parse(text)
            assert (error(rows, least_error_scales(rows, form), form)
                    <= 1.02 * least(rows, form, 300) + 1e-11 * rows.double().square().sum(1)).all(), (value.shape, text)


def test_one_outlier_is_kept():
    rows = gaussian(1, 1024)
    rows[0, 0] = 20.0
    for text, largest in (("s8", 0.0021), ("esb8.5", 0.0011), ("esb4.1", 0.148)):
        form = Format.parse(text)
        assert float(error(rows, least_error_scales(rows, form), form)) / 1024 < largest


@pytest.mark.parametrize("form", [ESB(4, 1), Signed(8), Codebook((-3, -1, 1, 3)), Binary()], ids=str)
def test_the_sweep_is_exact_on_rows_that_can_be_tried_out(form):
    rows = gaussian(40, 3, seed=4)
    found = error(rows, sweep(rows / rows.abs().amax(1, keepdim=True), form) * rows.abs().amax(1), form)
    assert (found <= least(rows, form, 2000) * (1 + 1e-9) + 1e-13).all()


@pytest.mark.parametrize("form", [ESB(4, 1), Signed(8), ESB(8, 5)], ids=str)
@pytest.mark.parametrize("size", [9, 200, 5000])
def test_weights_that_are_levels_stay_what_they_are(form, size):
    levels = torch.from_numpy(np.random.default_rng(0).choice(form.levels[np.abs(form.levels) <= 0.8 * form.max], (3, size)))
    rows = (levels * 0.37).float()
    assert (error(rows, least_error_scales(rows, form), form) <= 1e-12 * rows.double().square().sum(1)).all()


def test_rows_do_not_depend_on_each_other_and_sizes_of_weights_do_not_matter():
    for form, size in ((ESB(4, 1), 20), (ESB(4, 1), 1000), (Signed(8), 1000)):
        rows = gaussian(5, size) * torch.tensor([1e-30, 1e-3, 1.0, 1e3, 1e30])[:, None]
        scales = least_error_scales(rows, form)
        assert torch.equal(torch.cat([least_error_scales(row[None], form) for row in rows]), scales)
        assert torch.isfinite(scales).all() and (scales > 0).all()
        assert torch.equal(least_error_scales(8 * rows, form), 8 * scales)


def test_short_and_long_rows_are_tried_here():
    assert max(SIZES) > LONG and 1024 * 7 > SWEPT > min(SIZES) * 255
