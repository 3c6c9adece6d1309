"""The format selector: every ESB(b, k) with its error on Gaussian and Laplacian data and its cost in hardware."""

import math

import numpy as np

from esbflow.errors import BadValue
from esbflow.numbers import ESB, Format, Unsigned
from esbflow.quant.methods.dda import expected_error, optimal_scale

PRODUCTS = 576
"""A 3x3 convolution of 64 channels."""
MOST_EXPONENT_BITS = 3
"""More exponent bits lower the error by less than 0.1 % and double the shifter."""


def product_cost(weight: ESB, activation: Format) -> dict:
    """multiplier (bits x bits), shift (most places), largest_product, accumulator_bits for PRODUCTS terms, and LUTs.

    LUTs are a formula, not a synthesis: (k+1) rows of an adder as wide as the activation's significand, one LUT6 a bit,
    a 2:1 multiplexer a bit for each bit of the shift, and one LUT a bit of the adder tree. `esbflow rtl --report` measures
    whole engines.

    >>> product_cost(ESB(4, 1), Unsigned(4))["accumulator_bits"]
    18
    """
    significand = activation.significand + 1 if isinstance(activation, ESB) else activation.bits
    shifts = max(0, 2 ** weight.exponent_bits - 2)
    if isinstance(activation, ESB):
        shifts += max(0, 2 ** activation.exponent_bits - 2)
    largest = max(abs(weight.min), weight.max) * activation.max
    width = largest.bit_length() + 1
    rows = weight.significand + 1
    adders = (rows - 1) * (significand + 1)
    shifter = math.ceil(math.log2(shifts + 1)) * width / 2 if shifts else 0
    return {"multiplier": f"{rows}x{significand}", "shift": shifts, "largest_product": largest,
            "accumulator_bits": math.ceil(math.log2(PRODUCTS * largest + 1)) + 1,
            "lut": round(max(adders, rows * significand / 2) + shifter + width)}


def list_formats(most_bits: int, activation: Format = Unsigned(4)) -> list:
    """A dict for each ESB(b, k) of 2 to `most_bits` bits: format, levels, gaussian, laplace (mean squared errors at the best
    scale), sqnr_db, what `product_cost` gives, and `best`: whether no other format of as many bits errs less.

    Raises
    ------
    ValueError
        if most_bits is not in 2..10.
    """
    if not 2 <= most_bits <= 10:
        raise BadValue(f"formats are listed for 2 to 10 bits, not {most_bits}")
    found = []
    for bits in range(2, most_bits + 1):
        group = []
        for k in range(max(0, bits - 1 - MOST_EXPONENT_BITS), bits - 1):
            form = ESB(bits, k)
            levels = form.levels[form.levels >= 0].astype(np.float64)
            errors = {name: expected_error(levels, optimal_scale(form, name), name) for name in ("gaussian", "laplace")}
            group.append({"format": str(form), "bits": bits, "levels": len(form.levels), **errors,
                          "sqnr_db": -10 * math.log10(errors["gaussian"]), **product_cost(form, activation), "best": ""})
        for name in ("gaussian", "laplace"):
            winner = min(group, key=lambda entry, name=name: entry[name])
            winner["best"] = ", ".join(filter(None, (winner["best"], name)))
        found += group
    return found
