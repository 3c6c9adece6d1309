"""An engine layer before it is closed: coefficients, and integers by hand."""

import numpy as np

from esbflow.graph import ir
from esbflow.lowering.engine_layer import OpenLayer
from esbflow.lowering.nodes import Stored
from esbflow.numbers import Signed, Unsigned

SOURCE = Stored("x", (2, 1, 1), Unsigned(2), 0.5)


def test_a_copy_changes_nothing_and_an_average_sums_its_window():
    copy = OpenLayer.copy_of(SOURCE, "c")
    assert copy.node is ir.Requantize and copy.gain.tolist() == [0.5, 0.5]
    assert [sums.tolist() for sums in copy.sums()] == [[SOURCE.form.min] * 2, [SOURCE.form.max] * 2]
    pool = OpenLayer(ir.AvgPool2d, "p", SOURCE, {"kernel": (2, 3)}, np.full(2, 0.5 / 6), np.zeros(2))
    assert [sums.tolist() for sums in pool.sums()] == [[0, 0], [18, 18]]


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
