"""Tables of functions: what both front doors make of a function of one stored value."""

from typing import NamedTuple

import numpy as np

from esbflow.graph import ir
from esbflow.graph.errors import GraphError
from esbflow.lowering.nodes import Stored
from esbflow.numbers import Format, Signed, Unsigned


def entries(form: Format) -> np.ndarray:
    """int64 (256,): the level that each entry of a table stands for; where no level finds an entry, the one next to it.

    >>> entries(Signed(3))[[0, 3, 200, 252, 255]]
    array([ 0,  3, -4, -4, -1])
    """
    return form.nearest(np.arange(ir.LOOKUP_ENTRIES).astype(np.int8 if form.signed else np.uint8))


def lookup(name: str, source: Stored, table: np.ndarray, form: Format, scale: float) -> ir.Lookup:
    """The node that makes table[x & 255] of a stored tensor x."""
    return ir.Lookup(name, (source.name,), source.shape, form, float(scale), table=np.asarray(table, np.int64))


def check_finite(real: np.ndarray, source: Stored, where: str) -> None:
    """GraphError if a function of `source` has no number for a level, whose table `real` (256,) is."""
    if not np.isfinite(real).all():
        low, high = (end * source.scale for end in (source.form.min, source.form.max))
        raise GraphError(f"{where}: its function is not finite for all of {low:.3g}..{high:.3g}, which is what it reads; "
                         "clip its input")


class OutputTable(NamedTuple):
    """A table as a network's output: its integers, their format, the real size of one step, and the error."""

    table: np.ndarray
    form: Format
    scale: float
    error: dict


def last_table(real: np.ndarray) -> OutputTable:
    """(table, format, scale, error) of a function behind the last layer, of values float64 (256,): 8 bits whose largest
    level is the largest value. `error` is as `esbflow.lowering.last_layer.rounding_error` has it."""
    largest = float(np.abs(real).max())
    form = Signed(8) if real.min() < 0 else Unsigned(8)
    scale = largest / form.max or 1.0
    table = form.nearest(real / scale)
    error = float(np.abs(table * scale - real).max())
    return OutputTable(table, form, scale, {"largest": error, "share": error / largest if largest else 0.0})
