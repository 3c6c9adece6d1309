"""The report's pictures, each an SVG text that can stand inside a page."""

import functools
import io
import re

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from esbflow.numbers import Format

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#999999")
SPENT = (
    ("compute", "array at work", BLUE), ("weights", "waits for weights", ORANGE),
    ("activations", "waits for activations", GREEN), ("accumulators", "waits for the requantizer", RED),
    ("instruction", "waits for instructions", PURPLE), ("hazard", "bubbles after short passes", YELLOW),
    ("rest", "start, last requantization and store", GREY),
)
"""What a layer's cycles went to: key, text, colour."""

WIDTH = 9.0
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"}
SHOWN_LEVELS = 32
"""Formats with more levels than this are drawn as a histogram of integers without a line for each level."""


def _styled(draw):
    """Draw in this module's style, whatever matplotlib is set to elsewhere."""

    @functools.wraps(draw)
    def styled(*arguments):
        with matplotlib.rc_context(STYLE):
            return draw(*arguments)

    return styled


@_styled
def weight_histograms(layers: list) -> str:
    """Weights of each layer in integer steps, with the format's levels as lines.

    Parameters
    ----------
    layers : (name, integers, Format, real weights in units of one step or None) of each layer. With real weights, their
        density before rounding is drawn too: how well do the levels sit where the weights are?
    """
    columns = 2 if len(layers) > 1 else 1
    rows = -(-len(layers) // columns)
    figure = _figure(WIDTH, 2.3 * rows)
    for number, (name, integers, form, real) in enumerate(layers):
        axes = figure.add_subplot(rows, columns, number + 1)
        _histogram(axes, name, integers, form, real)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, ncols=2, loc="outside upper left")
    return _svg(figure, "weights", "Histograms of weights, one panel for each layer, with the levels of its format")


def _histogram(axes, name: str, integers: np.ndarray, form: Format, real) -> None:
    values, counts = np.unique(integers, return_counts=True)
    share = 100 * counts / integers.size
    few = len(form.levels) <= SHOWN_LEVELS
    if few:
        for level in form.levels:
            axes.axvline(level, color=GREY, linewidth=0.5, zorder=0)
        axes.set_xticks(form.levels[::2] if len(form.levels) > 12 else form.levels)
        axes.tick_params(axis="x", labelsize=7)
    if real is not None:
        span = max(abs(form.min), abs(form.max)) * 1.15
        bins = np.linspace(-span, span, 121)
        height, _ = np.histogram(np.clip(real, -span, span), bins)
        # On the scale of the bars: the share of weights in one step.
        axes.fill_between((bins[1:] + bins[:-1]) / 2, 100 * height / real.size / (bins[1] - bins[0]), step="mid",
                          color=SKY, alpha=0.6, linewidth=0, label="before rounding, % a step")
    axes.bar(values, share, width=0.3 if few else 1.0, color=BLUE, label="on this level, %")
    axes.set_title(f"{name}: {form}, {integers.size:,} weights", fontsize=9, loc="left")


@_styled
def layer_cycles(layers: list) -> str:
    """Stacked bars, one a layer: `layers` are (name, {key of SPENT: cycles})."""
    figure = _figure(WIDTH, 1.3 + 0.38 * len(layers))
    axes = figure.add_subplot()
    left = np.zeros(len(layers))
    positions = range(len(layers))
    for key, text, colour in SPENT:
        sizes = np.array([spent.get(key, 0) for _, spent in layers], dtype=float)
        if sizes.any():
            axes.barh(positions, sizes, left=left, color=colour, label=text, height=0.65)
        left += sizes
    for position, total in zip(positions, left):
        axes.text(total, position, f" {total:,.0f}", va="center", fontsize=8)
    axes.set_yticks(positions, [name for name, _ in layers])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("cycles an image")
    _legend_above(axes)
    return _svg(figure, "cycles", "Cycles of each layer, split by what the array did")


@_styled
def resource_split(blocks: dict) -> str:
    """LUTs of each block, logic and RAM apart: `blocks` is {name: fields of esbhw.synthesis.Resources}."""
    figure = _figure(WIDTH, 1.2 + 0.3 * len(blocks))
    axes = figure.add_subplot()
    total = sum(block["lut"] for block in blocks.values())
    for position, block in enumerate(blocks.values()):
        logic = block["lut"] - block["lutram"]
        first = position == 0
        axes.barh(position, logic, color=BLUE, height=0.65, label="LUTs as logic" if first else None)
        axes.barh(position, block["lutram"], left=logic, color=ORANGE, height=0.65,
                  label="LUTs as memory" if first else None)
        axes.text(block["lut"], position, f" {block['lut']:,} ({100 * block['lut'] / total:.0f} %)", va="center", fontsize=8)
    axes.set_yticks(range(len(blocks)), list(blocks))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("LUTs")
    _legend_above(axes)
    return _svg(figure, "resources", "LUTs of each block of the engine")


def _legend_above(axes) -> None:
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure, salt: str, description: str) -> str:
    """The figure as an <svg> element; `salt` keeps the ids of several on one page apart."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r'\bid="((?:figure|axes|patch|matplotlib|text|line2d|xtick|ytick|legend)[^"]*)"', rf'id="{salt}-\1"', svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
