"""An engine layer before it is closed: coefficients, the reach of its output, and integers by hand."""

import itertools

import numpy as np
import pytest

from esbflow.graph import ir
from esbflow.numbers import Signed, Unsigned
from esbflow.quant.engine_layer import OpenLayer, Stored

SOURCE = Stored("x", (2, 1, 1), Unsigned(2), 0.5)


def brute_force(layer: OpenLayer) -> float:
    """The largest |y| over all inputs and residuals of a Linear layer of two inputs and one output."""
    residuals = [0] if layer.residual is None else layer.residual.form.levels
    return max(abs(layer.gain[0] * (layer.fields["weight"][0] @ np.array(x)) + layer.offset[0]
                   + (layer.residual_gain[0] * r if layer.residual else 0))
               for x in itertools.product(layer.source.form.levels, repeat=2) for r in residuals)


@pytest.mark.parametrize("weight, offset", [((1, 3), 0.5), ((-1, 2), -1.0), ((-1, -1), 2.0), ((0, 0), 0.25)])
@pytest.mark.parametrize("residual", [None, Stored("r", (1, 1, 1), Signed(3), 0.25)])
def test_no_input_goes_beyond_the_reach(weight, offset, residual):
    layer = OpenLayer(ir.Linear, "l", SOURCE, {"weight": np.array([weight])}, np.array([0.5]), np.array([offset]), residual,
                      np.array([0.25]) if residual else None)
    largest = brute_force(layer)
    assert largest <= layer.reach()
    if min(weight) >= 0 and offset >= 0 and residual is None:
        assert largest == layer.reach(), "exact where all signs agree"
    for rectified, largest_level in ((False, 127), (True, 255)):
        form, scale = layer.output(8, rectified)
        assert form == (Unsigned(8) if rectified else Signed(8)) and layer.reach() / scale <= largest_level
        assert scale == pytest.approx(layer.reach() / (largest_level * 0.999)) or scale == 0.5


@pytest.mark.parametrize("gain, limit, form", [
    (0.001, 6.0, Unsigned(16)), (0.5, 6.0, Unsigned(14)), (0.5, 0.25, Unsigned(10)), (1e6, 1.0, Unsigned(1)), (0.0, 6.0, Unsigned(16))])
def test_an_output_that_clips_has_its_limit_as_largest_level(gain, limit, form):
    """16 bits if the factor from acc to levels, gain / scale, has room in m (2047); 0.5 * 16383 / 6 = 1365."""
    layer = OpenLayer(ir.Linear, "l", SOURCE, {"weight": np.array([(1, 3)])}, np.array([gain]), np.array([0.0]))
    found, scale = layer.output(16, True, limit)
    assert found == form and scale == pytest.approx(limit / form.max)


def test_a_copy_changes_nothing_and_an_average_sums_its_window():
    copy = OpenLayer.copy_of(SOURCE, "c")
    assert copy.node is ir.Requantize and copy.gain.tolist() == [0.5, 0.5] and copy.reach() == 1.5
    assert [sums.tolist() for sums in copy.sums()] == [[SOURCE.form.min] * 2, [SOURCE.form.max] * 2]
    pool = OpenLayer(ir.AvgPool2d, "p", SOURCE, {"kernel": (2, 3)}, np.full(2, 0.5 / 6), np.zeros(2))
    assert pool.reach() == pytest.approx(1.5)


def test_affine_and_closing_by_hand():
    """y = 2 * (acc / 2 + r / 4) - 1 in steps of 1/4 is 4 acc + 2 r - 4: m, n, b over 2**s."""
    residual = Stored("r", (2, 1, 1), Signed(3), 0.25)
    layer = OpenLayer(ir.Add, "a", SOURCE, {}, np.full(2, 0.5), np.zeros(2), residual, np.full(2, 0.25))
    fields = layer.affine(np.full(2, 2.0), np.full(2, -1.0)).closed(Signed(8), 0.25, "layer a")
    q = fields["requantizer"]
    assert fields["inputs"] == ("x", "r")
    assert (np.ldexp(q.m, -q.s) == 4).all() and (np.ldexp(q.n, -q.s) == 2).all() and (np.ldexp(q.b, -q.s) == -4).all()
    assert q.m.max() >= 1024, "the largest shift that fits"
    assert layer.gain.tolist() == [0.5, 0.5], "the layer itself stays as it is"
