"""Offsets b with which every sum is rounded to the level that the real coefficients give it.

m has 12 bits, so acc*m + b runs away from the real line by up to a two-thousandth of acc, and a sum near the border of two
levels falls on the wrong side. But sums are integers: only between T - 1 and T, T being the first sum of a level, the output
must step up. With M the border of that level in units of 2**-s, that is

    T*m + b >= M  and  (T - 1)*m + b < M

for each level that a sum can reach, an interval for b. Where the intervals of all levels meet, rounding is exact. They do
for few levels, so that a layer is what thresholds would make of it (Umuroglu et al., "FINN", FPGA 2017, section 4.2.2), and
not where a level is narrower than a sum's error.
"""

from dataclasses import replace

import numpy as np

from esbflow.graph import ir
from esbflow.numbers import Format

MOST_LEVELS = 256
"""Of more levels, as wide outputs have, each is narrower than what m's rounding does at the ends."""

_NOISE = 2.0**-22
"""Relative, of real coefficients: they come from float32 numbers. A sum as near to a border may have either level."""


def exact_thresholds(q: ir.Requantizer, gain: np.ndarray, offset: np.ndarray, form: Format, low: np.ndarray,
                     high: np.ndarray) -> ir.Requantizer:
    """The constants with b moved, no further than needed, to where sums of low..high get the level nearest to
    gain*acc + offset, in output steps.

    gain, offset : float64 (c,), of which q.m and q.b are the roundings. low, high : (c,), the sums that occur. Channels for
    which no b does that keep theirs, which is best where sums are small.

    >>> one = lambda value: np.array([value], np.int64)
    >>> q = ir.Requantizer(m=one(1547), b=one(-744489), s=one(18), n=one(0))  # 0.0059 * 566 - 2.84 = 0.4994, yet
    >>> (566 * q.m + q.b) / 2**18
    array([0.5001564])
    >>> moved = exact_thresholds(q, np.array([0.0059]), np.array([-2.84]), Format.parse("u2"), one(0), one(999))
    >>> int(moved.b[0])
    -744676
    """
    if 1 << form.bits > MOST_LEVELS:
        return q
    sign = np.where(q.m < 0, -1, 1)
    m, steep = np.abs(q.m), (gain * sign > 0) & (q.m != 0)
    first, last = (np.where(sign > 0, a, -b).astype(np.float64)[:, None] for a, b in ((low, high), (high, low)))
    borders = (form.levels[1:] + form.levels[:-1]) / 2
    step = 1 / np.where(steep, np.abs(gain), 1.0)[:, None]
    place, noise = (borders - offset[:, None]) * step, _NOISE * (np.abs(borders) + np.abs(offset)[:, None]) * step
    above, below = (np.clip(np.ceil(end), first, last + 1) for end in (place + noise, place - noise))
    border = np.ceil(np.ldexp(borders, q.s[:, None]))
    least = np.where(above <= last, border - above * m[:, None], -np.inf).max(axis=1)
    most = np.where(below > first, border - (below - 1) * m[:, None] - 1, np.inf).min(axis=1)
    moved = np.clip(np.clip(q.b, least, np.maximum(least, most)), -ir.B_LIMIT, ir.B_LIMIT)
    return replace(q, b=np.where(steep & (least <= most), moved, q.b).astype(np.int64))
