"""The one format and scale of tensors that are concatenated: the rule of both front doors, torch's and ONNX's.

What training or calibration has rounded once must be rounded again here, where operands differ; so finely that this second
rounding is that of an operand of 8 bits, whatever the operands' own formats are.
"""

import numpy as np

from esbflow.lowering.nodes import StoredAs
from esbflow.numbers import Format, Signed, Unsigned

WIDTH = 8
"""Bits of what the engine can read."""

_SAME = 1e-5
"""Relative: scales are float32 numbers."""


def common(parts: list) -> StoredAs:
    """The (format, scale) of a concatenation of tensors with the (formats, scales) `parts`.

    - Equal parts keep what they have.
    - Else the fewest bits, up to 8 (or those of the widest part), that hold every level of every part exactly.
    - Else 8 bits, signed if a part is, and a step with which no part saturates: the least such step, or a fraction of a
      part's own below twice that, whichever has the smallest mean squared error over the levels of all parts.

    Neither the order of parts nor how often one is there matters.

    >>> [str(v) for v in common([(Unsigned(4), 0.5), (Signed(3), 1.0)])]  # 0..15 and -8..6 halves
    ['s5', '0.5']
    >>> [str(v) for v in common([(Unsigned(4), 3.0), (Unsigned(2), 2.0)])]  # 0, 3..45 and 0, 2, 4, 6
    ['u6', '1.0']
    >>> form, scale = common([(Signed(8), 1.0), (Unsigned(8), 0.7)])  # 178.5 / 127
    >>> str(form), round(scale, 3)
    ('s8', 1.406)
    >>> form, scale = common([(Unsigned(4), 1.0), (Signed(8), 0.03)])  # an eighth of 1; 15 / 127 is less
    >>> str(form), scale
    ('s8', 0.125)
    """
    parts = sorted(set(parts), key=lambda part: (part[1], str(part[0])))
    if len(parts) == 1:
        return StoredAs(*parts[0])
    width = max(WIDTH, *(form.bits for form, _ in parts))
    return _exact(parts, width) or _nearest(parts, width)


def _exact(parts: list, width: int) -> StoredAs | None:
    """The fewest bits that hold all levels, in a whole fraction of the finest scale; None if `width` is not enough."""
    finest, signed = min(scale for _, scale in parts), any(form.min < 0 for form, _ in parts)
    for fraction in range(1, 1 << WIDTH):
        steps = [scale / finest * fraction for _, scale in parts]
        low = min(round(step) * form.min for step, (form, _) in zip(steps, parts))
        high = max(round(step) * form.max for step, (form, _) in zip(steps, parts))
        bits = 1 + max(high.bit_length(), (-low - 1).bit_length()) if signed else high.bit_length()
        if bits > width:
            return None
        if all(abs(step - round(step)) < _SAME * step for step in steps):
            return StoredAs(Signed(bits) if signed else Unsigned(bits), finest / fraction)
    return None


def _nearest(parts: list, width: int) -> StoredAs:
    form = Signed(width) if any(part.min < 0 for part, _ in parts) else Unsigned(width)
    # The ratio first: it is exactly one where a part has the format.
    least = max(scale * max(part.max / form.max, part.min / form.min if part.min < 0 else 0) for part, scale in parts)
    levels = [_levels(part) * scale for part, scale in parts]
    values, weights = np.concatenate(levels), np.repeat([1 / len(some) for some in levels], [len(some) for some in levels])

    def error(step: float) -> float:
        return float(np.square(values - step * np.rint(values / step)) @ weights)

    counts = [range(int(scale / least / 2) + 1, min(int(scale / least), 1 << WIDTH) + 1) for _, scale in parts]
    fractions = {scale / count for (_, scale), some in zip(parts, counts) for count in some}
    return StoredAs(form, min(sorted({least} | fractions), key=error))


def _levels(form: Format) -> np.ndarray:
    """The levels; of many, some in even steps."""
    return form.levels if form.bits <= WIDTH else np.rint(np.linspace(form.min, form.max, 1 << WIDTH))
