"""docs/density.svg: GOPS/kLUT of both arrays from 256 to 16,384 lanes, beside published engines.

A point is an engine's record where docs/results/engines.json has one of that configuration (filled), else the area model's
(hollow). The clock is the planning clock: nothing is routed.
"""

import math

from esbflow import area
from esbflow.engine_config import EngineConfig
from esbhw.performance import PLANNING_MHZ, density, is_of
from esbhw.published import PUBLISHED

PICTURE = "density.svg"
SIZES = ((16, 16), (32, 32), (64, 64), (64, 128), (128, 128))
WIDTHS = {  # of weights and activations: (range of the shift-add array, of the table array, digit_bits, passes)
    "W2A2": ((-2, 1), (-2, 1), 2, 1), "W3A3": ((-4, 3), (-4, 3), 4, 1), "W4A4": ((-15, 15), (-8, 7), 4, 1),
    "W8A8": ((-15, 15), (-8, 7), 4, 4)}
COLOURS = {"W2A2": "#1b6ca8", "W3A3": "#2a9d5c", "W4A4": "#c1440e", "W8A8": "#6b4e9b"}
LEFT, TOP, WIDTH, HEIGHT = 60, 30, 560, 400
LOWEST, HIGHEST = 1, 200
LINE = 13
"""Height of a line of text."""


def config_of(array: str, rows: int, cols: int, width: str) -> EngineConfig:
    """The engine of a point; of the sizes that have a named engine it is that one."""
    shift_add, table, digit_bits, _ = WIDTHS[width]
    low, high = table if array == "table" else shift_add
    options = {}
    if rows == 32:
        options = dict(requantize_lanes=8, weight_path_beats=2)
    elif rows > 32:
        options = dict(activation_beats=2048, residual_beats=2048, weight_path_beats=4, requantize_lanes=16)
    if rows == 128 and digit_bits == 4:
        options |= dict(activation_beats=4096, residual_beats=4096, weight_slots=8)
    if digit_bits == 2:
        options |= dict(accumulator_width=24)
        if rows > 32:
            options["residual_beats"] = 1024
    if array == "table":
        options["table_groups"] = 1 if rows == 16 else 8 if cols == 64 else 4
    return EngineConfig("point", rows=rows, cols=cols, array=array, weight_min=low, weight_max=high, digit_bits=digit_bits,
                        **options)


def points(records: dict) -> dict:
    """{(array, width): [(lanes, GOPS/kLUT, is it a record)]}."""
    found = {}
    for array in ("shiftadd", "table"):
        for width, (*_, passes) in WIDTHS.items():
            line = found[array, width] = []
            for rows, cols in SIZES:
                config = config_of(array, rows, cols, width)
                record = next((record for record in records.values() if is_of(record, config)), None)
                lut = record["lut"] if record else area.area(config).lut
                value = density({"rows": rows, "cols": cols, "lut": lut}, PLANNING_MHZ) / passes
                line.append((rows * cols, value, record is not None))
    return found


def picture(records: dict) -> str:
    """The SVG."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 190}" height="{TOP + HEIGHT + 60}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
             f'<text x="{LEFT}" y="18" font-size="14">GOPS/kLUT at the planning clock of {PLANNING_MHZ} MHz, not routed'
             "</text>"]
    for value in (1, 2, 5, 10, 20, 50, 100, 200):
        parts.append(f'<path d="M{LEFT} {_y(value):.1f}h{WIDTH}" stroke="#dddddd"/>'
                     f'<text x="{LEFT - 8}" y="{_y(value) + 4:.1f}" text-anchor="end">{value}</text>')
    for rows, cols in SIZES:
        lanes = f'{rows * cols:,}</text>'
        parts.append(f'<text x="{_x(rows * cols):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{lanes}')
    middle = LEFT + WIDTH / 2
    parts.append(f'<text x="{middle}" y="{TOP + HEIGHT + 40}" text-anchor="middle">multiply-accumulate lanes</text>')
    for name, bits, value, *_ in PUBLISHED:
        parts.append(f'<path d="M{LEFT} {_y(value):.1f}h{WIDTH}" stroke="#555555" stroke-dasharray="2 4"/>'
                     f'<text x="{LEFT + 6}" y="{_y(value) - 4:.1f}" fill="#555555">{name}, {bits}: {value:.1f}</text>')
    found = points(records)
    for (array, width), line in found.items():
        colour, dashes = COLOURS[width], "" if array == "table" else ' stroke-dasharray="7 4"'
        path = " ".join(f"{_x(lanes):.1f},{_y(value):.1f}" for lanes, value, _ in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        for lanes, value, measured in line:
            parts.append(f'<circle cx="{_x(lanes):.1f}" cy="{_y(value):.1f}" r="4" stroke="{colour}" '
                         f'fill="{colour if measured else "white"}"><title>{array}, {width}, {lanes:,} lanes: {value:.1f}'
                         f'{"" if measured else " by the model"}</title></circle>')
    parts += _labels(found)
    legend = ("solid: table array", "dashed: shift-add array", "filled: synthesized", "hollow: the area model's",
              "W8A8: four passes of W4A4")
    parts += [f'<text x="{LEFT + WIDTH + 20}" y="{TOP + HEIGHT - 80 + 18 * k}">{text}</text>'
              for k, text in enumerate(legend)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _labels(found: dict) -> list:
    """A label behind the end of each line, at least LINE apart."""
    parts, lowest = [], 0.0
    for (array, width), line in sorted(found.items(), key=lambda item: -item[1][-1][1]):
        lanes, value, _ = line[-1]
        lowest = max(lowest + LINE, _y(value) + 4)
        parts.append(f'<text x="{_x(lanes) + 10:.1f}" y="{lowest:.1f}" fill="{COLOURS[width]}">{width}, {array} {value:.0f}'
                     "</text>")
    return parts


def _x(lanes: int) -> float:
    return LEFT + 20 + (WIDTH - 60) * (math.log2(lanes) - 8) / 6


def _y(value: float) -> float:
    return TOP + HEIGHT * (1 - math.log(value / LOWEST) / math.log(HIGHEST / LOWEST))
