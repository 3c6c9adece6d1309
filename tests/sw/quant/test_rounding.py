"""Rounding to levels in torch is the formats' own, on both sides of every tie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esbflow.numbers import ESB, Binary, Codebook, Signed, Unsigned
from esbflow.quant.base import round_to_levels

ALL_ESB = [ESB(b, k, signed) for signed in (True, False) for b in range(1 + signed, 9)
           for k in range(b - signed) if k + 2 ** (b - signed - k) - 1 <= 31]
SMALL = [*ALL_ESB, Signed(4), Signed(8), Unsigned(2), Unsigned(8), Binary(), Codebook((-3, -1, 1, 3)), Codebook((-7, 0, 2, 11))]


@pytest.mark.parametrize("form", SMALL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_rounds_as_the_format_does_on_both_sides_of_every_tie(form, dtype):
    levels = torch.tensor(form.levels.tolist(), dtype=dtype)
    ties = (levels[1:] + levels[:-1]) / 2
    exact = (levels[1:] + levels[:-1]).double() == 2 * ties.double()  # float32 holds 24 bits
    ties = ties[exact]
    infinity = torch.tensor(torch.inf, dtype=dtype)
    x = torch.cat([levels, ties, torch.nextafter(ties, infinity), torch.nextafter(ties, -infinity),
                   torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e15, -1e15, 0.49999997, -0.5], dtype=dtype),
                   torch.randn(2000, generator=torch.Generator().manual_seed(2)).to(dtype) * form.max])
    assert round_to_levels(x, form).tolist() == form.nearest(x.double().numpy()).tolist()


@given(st.sampled_from(SMALL), st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=20))
def test_torch_rounds_as_the_format_does(form, values):
    x = torch.tensor(values, dtype=torch.float64)
    assert round_to_levels(x, form).tolist() == form.nearest(values).tolist()


@pytest.mark.parametrize("form", SMALL, ids=str)
def test_rounding_twice_changes_nothing(form):
    x = torch.linspace(1.5 * form.min - 2, 1.5 * form.max + 2, 999, dtype=torch.float64)
    once = round_to_levels(x, form)
    assert torch.equal(round_to_levels(once, form), once)
